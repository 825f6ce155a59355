"""Throughput of `python -m dfd score` with two workers against one, each held to one thread."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dfd import cluster
from dfd.checkpoints import build_model
from dfd.inputs import Inputs
from dfd.scoring import Job
from dfd.stage import CHECKPOINTS

IMAGES, PART, TURNS = 720, 24, 2
SMALL = {"backbone": "tf_efficientnet_lite0", "representation": "highpass", "unet_width": 8, "residual_bound": 0.1}


def main() -> None:
    """Print one line per comparison, and the ratio."""
    for what, one, two in rows():
        print(f"{what:62} {two:7.2f} images/s against {one:6.2f}: {two / one:5.2f} times")


def rows():
    """What, images/s of one worker, and of two.

    The steady rate counts from when each worker has its networks and has written a part, until the first has nothing
    left; the whole run has the start of the workers and the end too. Ray itself is started before.
    """
    with tempfile.TemporaryDirectory() as folder, cluster.joined(None, 2, None, 1):
        contents = checkpoints()
        write_images(Path(folder) / "in")
        rates = {
            workers: [scored(Path(folder), contents, workers, turn) for turn in range(TURNS)] for workers in (1, 2)
        }
    for number, what in enumerate(("steady rate", "whole run with the start of the workers")):
        yield f"`score`, two workers against one, {what}", *(max(one[number] for one in rates[n]) for n in (1, 2))


def scored(folder: Path, contents: dict[str, bytes], workers: int, turn: int) -> tuple[float, float]:
    """Images/s of one run: steady, and whole."""
    job = Job(str(folder / f"out{workers}{turn}"), part_size=PART, threshold=0.5)
    inputs, pool = Inputs((str(folder / "in"),)), cluster.Pool(workers, 0)
    started, times = time.perf_counter(), []
    for _ in cluster.scored(pool, inputs, set(), contents, job):
        times.append(time.perf_counter())
    whole = IMAGES / (time.perf_counter() - started)
    first, last = workers, len(times) - workers
    return (last - first) * PART / (times[last] - times[first]), whole


def write_images(folder: Path) -> None:
    """JPEG files of 256 x 256 pixels."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        small = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        small.resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{number:04}.jpg", quality=90)


def checkpoints() -> dict[str, bytes]:
    """Both stages with random weights, five crops an image."""
    found = {}
    for name, classes in (("stage1", ["real", "fake"]), ("stage2", ["BigGAN", "ProGAN", "StyleGAN2"])):
        content = {"stage": name, "classes": classes, "config": SMALL, "crops": 5, "threshold": 0.5, "temperature": 1.0}
        content |= {"weights": build_model(name, SMALL, len(classes)).state_dict(), "history": [], "key": ""}
        content |= {"preprocessing": {"crop_size": 64, "equalise_quality": 90}, "manifest_hash": ""}
        with tempfile.TemporaryFile() as file:
            torch.save(content, file)
            file.seek(0)
            found[CHECKPOINTS[name]] = file.read()
    return found


if __name__ == "__main__":
    main()
