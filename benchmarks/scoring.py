"""Throughput of `python -m dfd score` with two workers against one, each held to one thread."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import pictures
from benchmarks.measure import Row
from benchmarks.predicting import contents
from dfd.config import CHECKPOINTS
from dfd.scale.inputs import Inputs
from dfd.scale.parts import RECORD, Parts
from dfd.scale.scoring import Job

IMAGES, PART, TURNS = 720, 24, 2
SIDE = 256  # pixels
BAR = 1.7


def rows(root: Path) -> Iterator[Row]:
    """The steady rate, and that of the whole run.

    The steady rate counts from when each worker has its networks and has written a part, until the first has nothing
    left; the whole run has the start of the workers and the end too. Ray itself is started before.
    """
    from dfd.scale import cluster  # here: Ray is an extra

    images, networks = pictures.folder(root / "scored", IMAGES, SIDE), checkpoints()
    with cluster.joined(None, 2, None, 1):
        rates = {workers: [] for workers in (1, 2)}
        for turn in range(TURNS):
            for workers, found in rates.items():
                found.append(scored(images, root / f"scores {workers} {turn}", networks, workers))
    for number, (what, bar) in enumerate((("steady rate", BAR), ("whole run with the start of the workers", None))):
        one, two = (max(rate[number] for rate in rates[workers]) for workers in (1, 2))
        yield Row(f"score, {what}: two workers, {two:.0f} images/s, against one", two / one, bar, "of one")


def scored(images: Path, out: Path, networks: dict[str, bytes], workers: int) -> tuple[float, float]:
    """Images/s of one run: steady, and whole."""
    from dfd.scale import cluster

    job, pool = Job(str(out), part_size=PART, threshold=0.5), cluster.Pool(workers, 0)
    Parts(job.out).put(RECORD, b"{}")  # workers look for it
    started, times = time.perf_counter(), []
    for _ in cluster.scored(pool, Inputs((str(images),)), set(), networks, job):
        times.append(time.perf_counter())
    whole = IMAGES / (time.perf_counter() - started)
    first, last = workers, len(times) - workers
    return (last - first) * PART / (times[last] - times[first]), whole


def checkpoints() -> dict[str, bytes]:
    """Both stages with random weights, as files."""
    found = {}
    for content in contents():
        torch.save(content, file := io.BytesIO())
        found[CHECKPOINTS[content["stage"]]] = file.getvalue()
    return found
