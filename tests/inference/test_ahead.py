"""Work done ahead in threads: order, groups, bounds, errors in their turn, and an early end."""

import threading

import pytest

from dfd.inference.stage import in_groups


@pytest.mark.parametrize("threads", [1, 4])
def test_results_come_in_order_in_groups_that_double(threads):
    groups = list(in_groups(lambda item: item * item, range(30), 8, threads, patience=60))
    assert [pair for group in groups for pair in group] == [(item, item * item) for item in range(30)]
    assert [len(group) for group in groups] == [1, 2, 4, 8, 8, 7]


def test_what_is_ready_does_not_wait_for_a_slow_one():
    slow = threading.Event()
    groups = in_groups(lambda item: item or slow.wait(30), [1, 2, 0, 3], 4, patience=0.05)
    assert next(groups) == [(1, 1)]
    assert next(groups) == [(2, 2)]
    slow.set()
    assert [item for group in groups for item, _ in group] == [0, 3]


def test_no_more_than_two_groups_are_taken():
    taken, before = [], threading.active_count()
    groups = in_groups(lambda item: item, (taken.append(item) or item for item in range(100)), 4)
    next(groups)
    assert len(taken) == 8
    groups.close()
    for thread in set(threading.enumerate()) - {threading.current_thread()}:
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(5)
    assert len(taken) == 8 and threading.active_count() == before


def test_nothing_is_worked_on_meanwhile_where_both_take_turns():
    seen, taken = [], []
    for group in in_groups(lambda item: taken.append(item), range(20), 8, threads=2, patience=60, meanwhile=False):
        seen += [item for item, _ in group]
        assert sorted(taken) == seen
    assert seen == list(range(20))


def test_an_error_is_raised_in_its_items_turn():
    seen = []
    with pytest.raises(ZeroDivisionError):
        for group in in_groups(lambda item: 1 // item, [1, 1, 0, 1], 1):
            seen += group
    assert seen == [(1, 1), (1, 1)]
