"""Work that threads do ahead of its consumer, so that decoding and computing take turns no longer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")
PATIENCE = 0.5  # seconds that a group is waited for; what is ready then is given


def in_groups(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    size: int,
    threads: int = 1,
    patience: float = PATIENCE,
    meanwhile: bool = True,
) -> Iterator[list[tuple[Item, Result]]]:
    """Call a function on each item in threads, and give the results in order, in groups that a network likes.

    The first group holds one item, so that the first answer comes at once; each later one up to twice as many as the
    one before, so that small groups, which waste the network's time, are few.

    Args:
        function: anything that lets go of the interpreter now and then, as Pillow does while it decodes.
        items: taken when their turn comes; two groups are taken at the utmost.
        size: of the largest groups.
        threads: that call the function.
        patience: seconds that a group is waited for; what is ready then is given, or else the next result alone.
        meanwhile: work on later groups while the consumer has one. Where both want all cores, turns are faster: torch
            divides its work evenly, and a thread that takes a core for a while holds the others up.

    Yields:
        Lists of (item, result), none of them empty.

    Raises:
        Whatever the function raises, when its item's turn comes.
    """
    items, waiting, wanted = iter(items), deque[tuple[Item, Future]](), 1
    with ThreadPoolExecutor(threads) as pool:
        try:
            while True:
                room = max((2 * size if meanwhile else wanted) - len(waiting), 0)
                waiting.extend((item, pool.submit(function, item)) for item in islice(items, room))
                if not waiting:
                    return
                wait([future for _, future in islice(waiting, wanted)], patience)
                group = [(waiting[0][0], waiting.popleft()[1].result())]
                while waiting and len(group) < wanted and waiting[0][1].done():
                    item, future = waiting.popleft()
                    group.append((item, future.result()))
                yield group
                wanted = min(2 * wanted, size)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
