"""How work ends early: signals that let the running step finish, and one run at a time in a folder."""

from __future__ import annotations

import _thread
import contextlib
import errno
import json
import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import click

from dfd import atomic
from dfd.progress import HEADLESS

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 60.0  # seconds that a notebook's kernel has to finish its step and to save
LINGER = 15  # seconds that its loader processes stay for
LOCK, HOLDER = ".lock", ".running.json"

_held: set[Path] = set()  # folders that this process works in


class Interrupted(KeyboardInterrupt):
    """Work ended by a signal; `code` is the exit status for the shell, 130 or 143."""

    def __init__(self, text: str = "Interrupted.", number: int = signal.SIGINT):
        super().__init__(text)
        self.code = 128 + number

    def _render_traceback_(self) -> list[str]:
        """What Jupyter shows in place of a traceback."""
        return [str(self)]


class InUse(RuntimeError):
    """Another run works in the folder."""


class Stop:
    """Whether a signal asked to end, and which; 0 is none."""

    number: int = 0


@contextlib.contextmanager
def deferred(
    say: str,
    pass_on: Callable[[], bool] | None = None,
    grace: float = 0.0,
    tell: Callable[[str], None] = click.echo,
) -> Iterator[Stop]:
    """Let SIGINT and SIGTERM set a flag once, for a step to finish; a second one ends at once, with Interrupted.

    Only the main thread gets signals; elsewhere nothing is changed. Processes forked within stay for LINGER.

    Args:
        say: told at the first signal.
        pass_on: called at the first signal; where it gives False nothing can finish, and the signal ends at once.
        grace: seconds after which the first signal ends too; 0 waits as long as it takes.
        tell: shows a line.
    """
    stop, owner, timers = Stop(), os.getpid(), []

    def handle(number: int, frame: object) -> None:
        if os.getpid() != owner:
            return _later(number, frame)
        first = not stop.number
        stop.number = stop.number or number
        if not first or (pass_on and not pass_on()):
            raise Interrupted(number=stop.number)
        with contextlib.suppress(RuntimeError):  # the signal came in the middle of a print
            tell(say)
        if grace:
            timers.append(threading.Timer(grace, _thread.interrupt_main))
            timers[0].daemon = True
            timers[0].start()

    with _handling(handle):
        try:
            yield stop
        finally:
            for timer in timers:
                timer.cancel()


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let a SIGTERM end the block as Ctrl-C does, with an exit status of its own."""

    def handle(number: int, frame: object) -> None:
        raise Interrupted(number=number)

    with _handling(handle):
        yield


@contextlib.contextmanager
def _handling(handler: Callable) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def left_to_the_parent(_: int) -> None:
    """Let a loader process outlive a SIGINT or SIGTERM to all of a training, which may want another batch."""
    for number in SIGNALS:
        signal.signal(number, _later)


def _later(number: int, frame: object) -> None:
    if number == signal.SIGTERM:  # may be the training's own, to a process that it has done with
        signal.alarm(LINGER)


@contextlib.contextmanager
def alone(folder: str | Path) -> Iterator[None]:
    """Work in a run folder that nobody else writes to meanwhile; it is made where it is missing.

    The system's lock on `.lock` goes with the process, however it ends. A kernel of `run` works under the lock of its
    run, the other processes of a training under that of the first, and a folder inside a held one under that one.

    Raises:
        InUse: another run works there; the text names its process and machine.
        OSError: the folder cannot be written.
    """
    folder = Path(folder).resolve()
    covered = HEADLESS in os.environ or os.environ.get("RANK", "0") != "0"
    if covered or not _held.isdisjoint((folder, *folder.parents)):
        yield
        return
    with contextlib.ExitStack() as lock:
        _lock(folder, lock)
        _held.add(folder)
        lock.callback(_held.discard, folder)
        atomic.sweep(folder)
        yield


def _lock(folder: Path, stack: contextlib.ExitStack) -> None:
    from filelock import FileLock, Timeout

    path, holder = folder / LOCK, folder / HOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(FileLock(path, timeout=0, fallback_to_soft=False))
    except Timeout:
        raise InUse(f"{folder} is in use by {_named(holder)}; wait for it, end it, or choose another --out") from None
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise atomic.explained(error, path) from error
        print(f"The file system of {folder} has no locks: see to it that no other run works there.")
    about = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
    }
    with atomic.whole(holder) as draft:
        draft.write_text(json.dumps(about), "utf-8")
    stack.callback(holder.unlink, missing_ok=True)


def _named(holder: Path) -> str:
    try:
        about = json.loads(holder.read_text("utf-8"))
        return f"process {about['pid']} on {about['host']} since {about['since']} ({about['command']})"
    except (OSError, ValueError, KeyError):  # it began a moment ago
        return "another process"
