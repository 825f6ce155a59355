"""Memory that must not grow with the number of images: a scan of 200,000 files, a score run over 20,000."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import pictures
from benchmarks.measure import Row
from benchmarks.predicting import untrained
from dfd.data import manifest
from dfd.evaluate import scores

FILES, SCORED = 200_000, 20_000
GIB = 2.0


def rows(root: Path, files: int = FILES, scored: int = SCORED) -> Iterator[Row]:
    """Peak memory of both, each in a process of its own, and their seconds."""
    small(root / "small files", files)
    for what, call, count in (("scan", scan, files), ("score run, stage 1", score, scored)):
        peak, seconds = alone(partial(call, root / "small files", count))
        yield Row(f"{what} over {count} small files, peak memory ({seconds:.0f} s)", peak, GIB, "GiB")


def small(root: Path, count: int) -> None:
    """Noise of 16 x 16 pixels, no two alike, in four classes."""
    for label in pictures.LABELS:
        (root / label).mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / pictures.LABELS[number % 4] / f"{number:06}.png")


def scan(root: Path, count: int) -> None:
    """A first scan; all files must be in it."""
    assert len(manifest.scan(root, progress=False)) == count


def score(root: Path, count: int) -> None:
    """Score that many files with a tiny network; the table is made by hand, for its scan is not measured."""
    import pandas as pd

    paths = [f"{path.parent.name}/{path.name}" for path in sorted(root.glob("*/*.png"))[:count]]
    table = pd.DataFrame({"path": paths, "label": [path.split("/")[0] for path in paths], "split": "test"})
    table["is_fake"], table["group"], table.attrs["root"] = table["label"] != "RealPhotos", table["path"], str(root)
    stage = untrained(backbone="test_resnet.r160_in1k").stage1
    assert len(scores.score(stage, table)) == count


def alone(call: Callable[[], None]) -> tuple[float, float]:
    """Peak memory in GiB and seconds of a call in a fresh process."""
    os.environ["TQDM_DISABLE"] = "1"
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(call, sender, torch.get_num_threads()))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"the measured process ended with {process.exitcode}; its error is above") from None
    finally:
        process.join()


def _report(call: Callable[[], None], sender, threads: int) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    torch.set_num_threads(threads)
    started = time.perf_counter()
    call()
    seconds = time.perf_counter() - started
    sender.send((peak(), seconds))


def peak() -> float:
    """Peak memory of this process alone, in GiB; getrusage would count its parent's when it started."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line[:6] == "VmHWM:") / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
