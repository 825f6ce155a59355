"""Work done ahead in a thread: order, bounds, errors in their turn, and an early end."""

import threading
import time

import pytest

from dfd.ahead import in_groups


def test_results_come_in_order_and_groups_grow_while_the_consumer_is_busy():
    groups = []
    for group in in_groups(lambda item: item * item, range(50), 8):
        groups.append(group)
        time.sleep(0.005)
    assert [pair for group in groups for pair in group] == [(item, item * item) for item in range(50)]
    assert max(map(len, groups)) > 1 and max(map(len, groups)) <= 8


def test_a_first_result_does_not_wait_for_the_others():
    second = threading.Event()
    groups = in_groups(lambda item: item or second.wait(30), [1, 0, 2], 3)
    assert next(groups) == [(1, 1)]
    second.set()
    assert [item for group in groups for item, _ in group] == [0, 2]


def test_no_more_is_taken_than_may_wait():
    taken, before = [], threading.active_count()
    groups = in_groups(lambda item: item, (taken.append(item) or item for item in range(100)), 4)
    next(groups)
    assert len(taken) == 4
    groups.close()
    for thread in set(threading.enumerate()) - {threading.current_thread()}:
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(5)
    assert len(taken) == 4 and threading.active_count() == before


def test_an_error_is_raised_in_its_items_turn():
    seen = []
    with pytest.raises(ZeroDivisionError):
        for group in in_groups(lambda item: 1 // item, [1, 1, 0, 1], 1):
            seen += group
    assert seen == [(1, 1), (1, 1)]
