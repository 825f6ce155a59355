"""Loader processes: as many as asked for, the same batches, and on a CPU only while the training waits."""

import threading
import time

import pytest
import torch

from dfd.core import runs
from dfd.train import loading


class Numbers(torch.utils.data.Dataset):
    """Items are their index, and the second at which they were loaded."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        time.sleep(0.002)
        return torch.tensor([index, time.monotonic()], dtype=torch.float64)


PLAN = [[(index, index) for index in range(first, first + 8)] for first in range(0, 64, 8)]


def test_as_many_processes_as_asked_for_or_a_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(runs, "cores", lambda: 6)
    assert [loading.processes(asked) for asked in (0, 1, 11, -1)] == [0, 1, 11, 6]
    monkeypatch.setattr(loading.parallel, "count", lambda: 4)
    assert loading.processes(-1) == 1
    monkeypatch.setattr(runs, "cores", lambda: 96)
    assert loading.processes(-1) == loading.MOST


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("cores", [1, 10_000])
def test_batches_come_in_the_order_of_the_plan(monkeypatch, workers, cores):
    monkeypatch.setattr(runs, "cores", lambda: cores)
    found = list(loading.batches(Numbers(), PLAN, torch.device("cpu"), workers))
    assert [batch[:, 0].tolist() for batch in found] == [[index for index, _ in batch] for batch in PLAN]


@pytest.mark.parametrize(("cores", "takes_turns"), [(1, True), (10_000, False)])
def test_loaders_stand_aside_while_the_training_computes_on_all_cores(monkeypatch, cores, takes_turns):
    monkeypatch.setattr(runs, "cores", lambda: cores)
    computing, loaded = [], []
    for batch in loading.batches(Numbers(), PLAN, torch.device("cpu"), 2):
        start = time.monotonic()
        time.sleep(0.1)
        computing.append((start + 0.02, time.monotonic()))  # an item that was begun is finished
        loaded += batch[:, 1].tolist()
    meanwhile = [second for second in loaded if any(start < second < end for start, end in computing)]
    assert bool(meanwhile) != takes_turns


def test_a_loader_waits_no_longer_than_its_patience_and_then_no_more():
    items = loading.InTurns(Numbers())
    items.patience = 0.3
    with items.held():
        thread = threading.Thread(target=items.__getitem__, args=[0])
        thread.start()
        thread.join(0.15)
        assert thread.is_alive()
        thread.join(10)
        before = time.monotonic()
        items[1]
        assert time.monotonic() - before < 0.25
    items = loading.InTurns(Numbers())
    with items.held():
        thread = threading.Thread(target=items.__getitem__, args=[0])
        thread.start()
    thread.join(5)
    assert not thread.is_alive()


class TooShort:
    """A turn that is over before the loader looks, twice: multiprocessing's Event says so before the time is out."""

    def __init__(self):
        self.answers = [False, False, True]

    def wait(self, seconds):
        return self.answers.pop(0)


def test_a_turn_that_is_over_at_once_does_not_end_the_patience_of_a_loader():
    items = loading.InTurns(Numbers())
    items.may_load = TooShort()
    assert items[5][0] == 5
    assert items.may_load.answers == [] and items.patience == loading.PATIENCE
