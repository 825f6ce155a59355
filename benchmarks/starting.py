"""How long it takes until something can be seen: --help, one prediction, the first cell of a notebook."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from jupyter_client.manager import KernelManager
from PIL import Image

from benchmarks.measure import Row, against, in_turns
from benchmarks.predicting import contents
from dfd import config
from dfd.config import CHECKPOINTS
from dfd.inference.files import save_checkpoint

SPARING = "import atexit, gc; gc.set_threshold(50_000); atexit.register(gc.freeze)"  # of garbage collection, as dfd is
LIBRARIES = f"{SPARING}; import sys, torch, torchvision, timm, pandas, scipy.sparse, pydantic, huggingface_hub"
OPENING = f"{LIBRARIES}; [torch.load(path, weights_only=True) for path in sys.argv[1:]]"
CELL = "from dfd import config, plots, train"  # what notebook 01 begins with


def rows(folder: Path, repeats: int) -> Iterator[Row]:
    """Each against the least that it could take; libraries are most of it."""
    run, image = folder / "run", folder / "image.png"
    run.mkdir(parents=True)
    for content in contents():
        save_checkpoint(content, run / CHECKPOINTS[content["stage"]])
    Image.linear_gradient("L").save(image)
    in_turns([helped := partial(python, "-m", "dfd", "--help")], 1)
    yield Row("start: `dfd --help`", *in_turns([helped], repeats), 0.15, "s")
    opening = partial(python, "-c", OPENING, *map(str, sorted(run.glob("*.pt"))))
    predicted = partial(python, "-m", "dfd", "predict", "--model", str(run), str(image))
    what = "start: `dfd predict` of one image, bare: importing its libraries and opening its weights"
    yield against(what, predicted, opening, repeats, 1 / 1.15)
    yield against(
        "start: kernel to the first cell of notebook 01, bare: a kernel that imports torch",
        partial(kernel, CELL),
        partial(kernel, f"{SPARING}; import torch"),
        repeats,
    )


def python(*words: str) -> None:
    """Run the interpreter, in the project's folder."""
    subprocess.run([sys.executable, *words], check=True, capture_output=True, cwd=config.ROOT)


def kernel(source: str) -> None:
    """Start a kernel, run one cell, and end it.

    Raises:
        RuntimeError: the cell failed.
    """
    manager = KernelManager(transport="ipc")
    manager.start_kernel(cwd=str(config.ROOT))
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=120)
        reply = client.execute_interactive(source, output_hook=lambda _: None, timeout=120)
        if reply["content"]["status"] != "ok":
            raise RuntimeError(f"{source!r} failed in the kernel: {reply['content'].get('evalue')}")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
