"""Work that a thread does ahead of its consumer, so that decoding and computing take turns no longer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")


def in_groups(
    function: Callable[[Item], Result], items: Iterable[Item], most: int
) -> Iterator[list[tuple[Item, Result]]]:
    """Call a function on each item in a thread, and give what is ready, in order.

    Args:
        function: anything that lets go of the interpreter now and then, as Pillow does while it decodes.
        items: taken when their turn comes.
        most: results that wait at the utmost, and the size of a group.

    Yields:
        Lists of (item, result), none of them empty: all that is ready when the consumer asks, or the next one alone.

    Raises:
        Whatever the function raises, when its item's turn comes.
    """
    items, waiting = iter(items), deque[tuple[Item, Future]]()
    with ThreadPoolExecutor(1) as pool:
        try:
            while True:
                waiting.extend((item, pool.submit(function, item)) for item in islice(items, most - len(waiting)))
                if not waiting:
                    return
                group = [(waiting[0][0], waiting.popleft()[1].result())]
                while waiting and waiting[0][1].done():
                    item, future = waiting.popleft()
                    group.append((item, future.result()))
                yield group
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
