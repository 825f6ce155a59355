"""How long it takes until something can be seen: --help, one prediction, the first cell of a notebook."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from jupyter_client.manager import KernelManager
from PIL import Image

from benchmarks.measure import Row, against
from benchmarks.predicting import contents
from dfd import config
from dfd.config import CHECKPOINTS
from dfd.inference.files import save_checkpoint

LIBRARIES = "import torch, timm, numpy, PIL.Image, scipy.sparse"
CELL = "from dfd import config, plots, train"  # what notebook 01 begins with


def rows(folder: Path, repeats: int) -> Iterator[Row]:
    """Each against the least that it could take; libraries are most of it."""
    run, image = folder / "run", folder / "image.png"
    run.mkdir(parents=True)
    for content in contents():
        save_checkpoint(content, run / CHECKPOINTS[content["stage"]])
    Image.linear_gradient("L").save(image)
    libraries = partial(python, "-c", LIBRARIES)
    helped = partial(python, "-m", "dfd", "--help")
    yield against(
        "start: importing torch (bare), against `dfd --help`", helped, partial(python, "-c", "import torch"), 2, 1
    )
    predicted = partial(python, "-m", "dfd", "predict", "--model", str(run), str(image))
    yield against("start: `dfd predict` of one image, bare: importing its libraries", predicted, libraries, repeats)
    yield against(
        "start: kernel to the first cell of notebook 01, bare: a kernel that imports torch",
        partial(kernel, CELL),
        partial(kernel, "import torch"),
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
