"""Throughput of `python -m dfd score` with two workers against one, each held to one thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import pictures
from benchmarks.measure import Row
from benchmarks.predicting import contents
from dfd.config import CHECKPOINTS
from dfd.inference.files import save_checkpoint

IMAGES, PART, TURNS = 720, 24, 2
SIDE = 256  # pixels
BAR = 1.8


def rows(root: Path) -> Iterator[Row]:
    """The steady rate, and that of the whole run.

    The steady rate counts from when each worker has its networks and has given a part, until the first has nothing
    left; the whole run has the start of the workers and the end too. Ray itself is started before.
    """
    import ray  # here: it is an extra

    images, model = pictures.folder(root / "scored", IMAGES, SIDE), root / "model"
    model.mkdir()
    for content in contents():
        save_checkpoint(content, model / CHECKPOINTS[content["stage"]])
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init("local", num_cpus=2, num_gpus=0, **quiet)
    try:
        rates = {workers: [] for workers in (1, 2)}
        for turn in range(TURNS):
            for workers, rate in rates.items():
                rate.append(scored(images, root / f"scores {workers} {turn}", model, workers))
    finally:
        ray.shutdown()
    for number, (what, bar) in enumerate((("steady rate", BAR), ("whole run with the start of the workers", None))):
        one, two = (max(rate[number] for rate in rates[workers]) for workers in (1, 2))
        yield Row(f"score, {what}: two workers against one", two / one, bar, "of one")
        yield Row(f"score, {what}: two workers", two, unit="images/s")


def scored(images: Path, out: Path, model: Path, workers: int) -> tuple[float, float]:
    """Images/s of one run: steady, and whole."""
    from dfd.scale.score import Options, score

    started = time.perf_counter()
    score([str(images)], str(out), model, Options(workers=workers, part_size=PART))
    whole = IMAGES / (time.perf_counter() - started)
    times = sorted(path.stat().st_mtime for path in out.glob("part-*"))
    first, last = workers, len(times) - workers
    return (last - first) * PART / (times[last] - times[first]), whole
