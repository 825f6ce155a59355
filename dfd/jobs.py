"""Slow work in steps on one thread of its own, so that a page of widgets stays alive and work can be dropped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence


class Jobs:
    """Runs one job per slot, the first slot of the order first, a step at a time.

    A job is a generator: between two steps a job of an earlier slot gets its turn, and a job that was replaced or
    cancelled is not resumed. So a job that yields between computing and showing never shows what is out of date.
    """

    def __init__(self, order: Sequence[str], failed: Callable[[str, Exception], None], idle: Callable[[], None]):
        """Jobs that run in the slots of `order`.

        Args:
            order: names of the slots, the most urgent first.
            failed: gets the slot and the error of a job that raised one; that job is dropped.
            idle: called on the thread when nothing is left to do, and not where the last job was cancelled.
        """
        self.order, self.failed, self.idle = order, failed, idle
        self.jobs: dict[str, Iterator[None]] = {}
        self.thread: threading.Thread | None = None
        self.changed = threading.Condition()

    def start(self, slot: str, job: Iterator[None]) -> None:
        """Run a job; one that its slot still holds is dropped."""
        if slot not in self.order:
            raise ValueError(f"no slot {slot!r}; there are: {', '.join(self.order)}")
        with self.changed:
            self.jobs[slot] = job
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, daemon=True, name="dfd jobs")
                self.thread.start()

    def cancel(self, *slots: str) -> set[str]:
        """Drop the jobs of these slots, of all where none is named, and tell which had one.

        The step that is running ends, but what comes after it does not happen.
        """
        with self.changed:
            return {slot for slot in slots or self.order if self.jobs.pop(slot, None) is not None}

    def has(self, *slots: str) -> bool:
        """Whether one of these slots has work left."""
        return any(slot in self.jobs for slot in slots)

    def wait(self, timeout: float | None = None) -> bool:
        """Block until nothing is left to do, and tell whether that came before the timeout, in seconds."""
        with self.changed:
            return self.changed.wait_for(lambda: self.thread is None, timeout)

    def _run(self) -> None:
        while True:
            with self.changed:
                slot = next((name for name in self.order if name in self.jobs), None)
                if slot is None:
                    self.thread = None
                    self.changed.notify_all()
                    return
                job = self.jobs[slot]
            try:
                next(job)
                continue
            except StopIteration:
                error = None
            except Exception as raised:  # a job's failure is told, and the thread goes on
                error = raised
            with self.changed:
                dropped = self.jobs.get(slot) is not job
                if not dropped:
                    del self.jobs[slot]
                left = bool(self.jobs)
            if error is not None and not dropped:
                self.failed(slot, error)
            elif not left and not dropped:
                self.idle()
