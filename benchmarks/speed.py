"""Speed as ratios within one run: `make bench`. Absolute times depend on the machine, ratios much less."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from dfd import manifest, sample
from dfd.inference import Stage, build_model
from dfd.models import EncoderClassifier, RealFakeClassifier, UNetRes

REPEATS = 3


def main() -> None:
    """Print one line per comparison: what, seconds of both, and the ratio."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        rows = [*start_up(), *precision(), *crops(), *scans(Path(folder))]
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, best of {REPEATS}")
    for what, slow, fast in rows:
        print(f"{what:62} {slow:7.2f} s against {fast:6.2f} s: {slow / fast:5.2f} times")


def start_up():
    """`--help` against importing torch, which it must not do."""
    helped = best(lambda: subprocess.run([sys.executable, "-m", "dfd", "--help"], check=True, capture_output=True))
    loaded = best(lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True, capture_output=True))
    yield "importing torch, against `python -m dfd --help`", loaded, helped


def precision():
    """A training step in float32 against bfloat16: depthwise convolutions are why EfficientNet stays in float32."""
    images = torch.rand(16, 3, 64, 64)
    for model in (RealFakeClassifier(), UNetRes(), EncoderClassifier().backbone):
        times = [best(partial(step, model, images, bfloat16)) for bfloat16 in (False, True)]
        yield f"{type(model).__name__} training step, float32 against bfloat16", *times


def crops():
    """Five images scored crop by crop against crops of all images in one batch."""
    settings = {"backbone": "resnet50", "representation": "rgb"}
    content = {"stage": "stage1", "classes": ["real", "fake"], "config": settings, "crops": 5, "threshold": 0.5}
    content |= {"weights": build_model("stage1", settings, 2).state_dict(), "temperature": 1.0, "history": []}
    content |= {"preprocessing": {"crop_size": 64, "equalise_quality": 90}, "manifest_hash": "", "key": ""}
    stage = Stage(content)
    images = [torch.rand(1, 3, 128, 128)] * 10
    singly = best(lambda: [list(stage.stream([image], 1)) for image in images for _ in range(5)])
    yield "50 crops scored one by one, against in batches", singly, best(lambda: list(stage.stream(images, 5)))


def scans(folder: Path):
    """The first scan of the built-in data against the second, which decodes nothing."""
    sample.build(folder / "sample", progress=False)
    os.environ["DFD_CACHE"] = str(folder / "cache")
    first = best(lambda: manifest.scan(folder / "sample", progress=False), repeats=1)
    yield (
        "first scan of the built-in data, against the second",
        first,
        best(lambda: manifest.scan(folder / "sample", progress=False)),
    )


def step(model: torch.nn.Module, images: torch.Tensor, bfloat16: bool) -> None:
    """One forward and backward pass."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss = model(images).float().square().mean()
    loss.backward()


def best(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Seconds of the fastest of some calls."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    main()
