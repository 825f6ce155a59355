"""Loader processes of a training: how many there are, and when they work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import multiprocessing
from torch.utils.data import DataLoader, Dataset

from dfd.core import parallel, runs
from dfd.core.runs import cores
from dfd.data.crops import Seeded

MOST = 8  # loader processes, where none are asked for
PATIENCE = 10.0  # seconds that a loader process stands aside for one step of the training


class InTurns(Dataset):
    """Another data set, whose items wait while the training computes.

    On a CPU torch divides its work evenly among the cores, and the first to be ready wait for the last: a loader that
    takes a core for a while holds all of them up. So the loaders work, on all cores, while the training waits for them.
    """

    def __init__(self, data: Dataset):
        self.data, self.patience = data, PATIENCE
        self.may_load = multiprocessing.get_context().Event()
        self.may_load.set()

    @contextmanager
    def held(self) -> Iterator[None]:
        """While the training computes."""
        self.may_load.clear()
        try:
            yield
        finally:
            self.may_load.set()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, draw):
        until = time.monotonic() + self.patience
        while self.patience and not self.may_load.wait(max(until - time.monotonic(), 0)):  # woken for too short a turn?
            if time.monotonic() >= until:
                self.patience = 0.0  # the step is a long one, or the training has gone: for the rest of the epoch
        return self.data[draw]


def processes(asked: int) -> int:
    """Loader processes of one process of a training; below 0 its share of the cores, at most MOST."""
    return asked if asked >= 0 else min(MOST, max(1, cores() // parallel.count()))


def batches(data: Dataset, plan: list[list[tuple[int, int]]], device: torch.device, workers: int) -> Iterator:
    """Load the draws of a plan, batch by batch.

    Args:
        data: takes an index.
        plan: of each batch the draws, (index, seed).
        device: where the batches go.
        workers: as in `processes`.

    Yields:
        What the data set's items are collated to, in the memory of the host.
    """
    items, count = Seeded(data), processes(workers)
    if count and device.type == "cpu" and torch.get_num_threads() >= cores():
        items = InTurns(items)
    loader = DataLoader(
        items,
        batch_sampler=plan,
        num_workers=count,
        pin_memory=device.type == "cuda",
        worker_init_fn=runs.left_to_the_parent,
        generator=torch.Generator(),  # else it would draw from torch's own
    )
    for batch in loader:
        with items.held() if isinstance(items, InTurns) else nullcontext():
            yield batch
