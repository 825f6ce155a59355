"""How fast a GPU trains and predicts, and how much of its own matrix rate that is: `make bench ARGS=--gpu`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import pictures, training
from benchmarks.measure import Row
from benchmarks.predicting import networks_alone, untrained
from dfd.data import manifest

SIDE = 8192  # of the matrices


def rows(
    root: Path, device: str = "cuda", count: int = 2000, side: int = SIDE, profile: str = "full", **settings
) -> Iterator[Row]:
    """Images a second of both trainings and of predict, and what share of the matrix rate their networks reach.

    Args:
        root: an empty folder, for the pictures.
        device: cuda; cpu only tries the code.
        count: pictures.
        side: of the matrices whose product sets the rate.
        profile, settings: of the trainings.

    Raises:
        RuntimeError: there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("there is no GPU that torch can use here; leave --gpu out")
    rate = matrix_rate(device, side)
    yield Row(f"{device}: product of two bfloat16 matrices of {side} x {side}", rate / 1e12, unit="TFLOP/s")
    folder = pictures.folder(root / "gpu", count)
    table = manifest.scan(folder, progress=False)
    for stage in ("stage1", "stage2"):
        per_second, flops = trained(stage, table, profile, **settings)
        yield Row(f"{stage}: training, profile {profile}", per_second, unit="images/s")
        yield Row(f"{stage}: share of the matrix rate", 100 * flops * per_second / rate, unit="%")
    per_second, flops = predicted(sorted(folder.glob("*/*.*")), device)
    yield Row("predict, five crops an image, both stages", per_second, unit="images/s")
    yield Row("predict: share of the matrix rate", 100 * flops * per_second / rate, unit="%")


def matrix_rate(device: str, side: int) -> float:
    """FLOPs a second of a plain product of bfloat16 matrices, the best of five."""
    a, b = (torch.rand(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / min(_timed(lambda: a @ b, device) for _ in range(6))


def trained(stage: str, table, profile: str, **settings) -> tuple[float, float]:
    """Images a second of a training, and FLOPs an image of its networks, forward and backward."""
    size = settings.get("batch_size", 32)
    steps = training.TIMED
    per_second = steps * size / training.seconds(stage, table, training.Timed, profile, **settings)
    with FlopCounterMode(display=False) as counter:
        training.seconds(stage, table, training.Bare, profile, **settings)
    return per_second, counter.get_total_flops() / ((training.WARM + steps) * size)


def predicted(paths: list[Path], device: str) -> tuple[float, float]:
    """Images a second of predict, and FLOPs an image of both networks."""
    detector = untrained()
    for stage in (detector.stage1, detector.stage2):
        stage.device = torch.device(device)
        stage.model.to(device)
    seconds = min(_timed(lambda: list(detector.predict(paths)), device) for _ in range(2))
    bare = networks_alone(detector, paths)
    with FlopCounterMode(display=False) as counter:
        bare()
    return len(paths) / seconds, counter.get_total_flops() / len(paths)


def _timed(call, device: str) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    wait()
    started = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - started
