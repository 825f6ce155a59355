"""Work done ahead in threads: order, groups, bounds, errors in their turn, and an early end."""

import gc
import threading
import weakref

import networks
import pytest
from PIL import Image

from dfd.core import ImageError
from dfd.inference import Stage
from dfd.inference.detector import prefetch, score_files


@pytest.mark.parametrize("threads", [1, 4])
def test_results_come_in_order_in_groups_that_double(threads):
    groups = list(prefetch(lambda item: item * item, range(30), 8, threads))
    assert [pair for group in groups for pair in group] == [(item, item * item) for item in range(30)]
    assert [len(group) for group in groups] == [1, 2, 4, 8, 8, 7]


def test_one_group_is_taken_ahead_and_nothing_is_left_running():
    taken, before = [], threading.active_count()

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    groups = prefetch(lambda item: item, items(), 4, threads=2)
    assert len(next(groups)) == 1 and len(taken) == 3
    assert len(next(groups)) == 2 and len(taken) == 7
    groups.close()
    for thread in set(threading.enumerate()) - {threading.current_thread()}:
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(5)
    assert len(taken) == 7 and threading.active_count() == before


def test_nothing_is_worked_on_meanwhile_where_both_take_turns():
    seen, taken = [], []
    for group in prefetch(taken.append, range(20), 8, threads=2, overlap=False):
        seen += [item for item, _ in group]
        assert sorted(taken) == seen
    assert seen == list(range(20))


def test_an_error_is_raised_in_its_items_turn():
    seen = []
    with pytest.raises(ZeroDivisionError):
        for group in prefetch(lambda item: 1 // item, [1, 1, 0, 1], 1, 1):
            seen += group
    assert seen == [(1, 1), (1, 1)]


def test_files_that_cannot_be_used_leave_no_pixels_behind():
    """200 damaged photos of 6 million pixels once took 5 GB: each error's frames held them, and the error itself."""
    images = []

    def read(item):
        image = Image.new("RGB", (8, 8))
        images.append(weakref.ref(image))
        raise ImageError(f"{item}: damaged")

    stage = Stage(networks.checkpoint("stage1"))
    gc.disable()  # what is in a cycle stays
    try:
        answers = [str(error) for _, error in score_files([stage], "abcd", read)]
        left = [image() for image in images]
    finally:
        gc.enable()
    assert answers == ["a: damaged", "b: damaged", "c: damaged", "d: damaged"] and left == [None] * 4
