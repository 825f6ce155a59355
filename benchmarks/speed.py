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
from dfd.images import load_rgb
from dfd.inference import BATCH, Detector, Stage, build_model
from dfd.models import EncoderClassifier, RealFakeClassifier, UNetRes

REPEATS = 3


def main() -> None:
    """Print one line per comparison: what, seconds of both, and the ratio."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        rows = [*start_up(), *precision(), *crops(), *scans(Path(folder)), *folders(Path(folder))]
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, best of {REPEATS}")
    for what, slow, fast in rows:
        print(f"{what:62} {slow:7.2f} s against {fast:6.2f} s: {slow / fast:5.2f} times, or {fast / slow:.2f}")


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
    stage = untrained("stage1", 64, backbone="resnet50", representation="rgb")
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


def folders(folder: Path):
    """Files of the built-in data through `predict`, against the bare networks on the same crops in full batches.

    Decoding, cutting and the equalising JPEG come on top of the networks. 0.85 is the bar for bare over predict.
    """
    small = {"backbone": "tf_efficientnet_lite0", "representation": "highpass", "unet_width": 8, "residual_bound": 0.1}
    detector = Detector(untrained("stage1", 64, **small), untrained("stage2", 96, **small))
    paths = sorted((folder / "sample").glob("*/*.png"))[:60]
    images = [load_rgb(path) for path in paths]
    stages = (detector.stage1, detector.stage2)
    batches = [(stage, torch.cat([stage.prepare(image).windows for image in images]) / 255) for stage in stages]

    @torch.inference_mode()
    def bare() -> None:
        for stage, windows in batches:
            for chunk in windows.split(BATCH):
                stage.model(chunk)

    def predict() -> None:
        list(detector.predict(paths))

    pairs = [(best(predict, 1), best(bare, 1)) for _ in range(REPEATS + 1)][1:]  # in turn: other work slows both
    yield (
        f"`predict` on {len(paths)} files, against the bare networks",
        *(min(times) for times in zip(*pairs, strict=True)),
    )


def untrained(name: str, crop_size: int, **settings) -> Stage:
    """A stage with random weights, five crops an image."""
    classes = ["real", "fake"] if name == "stage1" else ["BigGAN", "ProGAN", "StyleGAN2"]
    content = {"stage": name, "classes": classes, "config": settings, "crops": 5, "threshold": 0.5}
    content |= {"weights": build_model(name, settings, len(classes)).state_dict(), "temperature": 1.0, "history": []}
    content |= {"preprocessing": {"crop_size": crop_size, "equalise_quality": 90}, "manifest_hash": "", "key": ""}
    return Stage(content)


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
