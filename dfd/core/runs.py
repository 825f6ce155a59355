"""What surrounds work in a run folder: its lock, signals that let a step finish, progress bars, the data's state."""

import _thread
import contextlib
import ctypes
import errno
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
from filelock import FileLock, Timeout
from tqdm import tqdm

from dfd.core.io import PART, explained, printable, write_text

PROVENANCE = "provenance.csv"  # in the data folder or the one above it; see dfd.data.provenance
HEADLESS = "DFD_HEADLESS"  # set for the kernels of `run`
SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 60.0  # seconds that a notebook's kernel has to finish its step and to save
LOCK, HOLDER = ".lock", ".running"  # in the run folder
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}  # NFS without lockd, SMB, Lustre
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun and accelerate set
command_line = subprocess.list2cmdline if sys.platform == "win32" else shlex.join  # as the shells there take it
PATIENCE = 5.0  # seconds after which waiting is said
_held: set[Path] = set()  # folders that this process works in


class Interrupted(KeyboardInterrupt):
    """Work ended by a signal; `code` is the exit status for the shell, 130 or 143."""

    def __init__(self, text: str = "Interrupted.", number: int = signal.SIGINT):
        super().__init__(text)
        self.code = 128 + number


class TooFew(ValueError):
    """There are not images enough for a figure or a table; the text says of what, and how many it needs."""


class InUse(RuntimeError):
    """Another run works in the folder."""


@contextlib.contextmanager
def deferred(say: str, pass_on: Callable[[], bool] | None = None, grace: float = 0.0,
             tell: Callable[[str], None] = click.echo) -> Iterator[SimpleNamespace]:  # fmt: skip
    """Let SIGINT and SIGTERM set a `number`, else 0, for a step to finish; a second one ends at once, as Interrupted.

    The first tells `say` and calls `pass_on`, which may refuse: then it ends at once, as after `grace` seconds, if any.
    """
    stop, owner = SimpleNamespace(number=0), os.getpid()
    timer = threading.Timer(grace, _thread.interrupt_main)
    timer.daemon = True

    def handle(number: int, frame: object) -> None:
        if os.getpid() != owner:  # a process forked within, for the owner to end
            return
        is_first, stop.number = not stop.number, stop.number or number
        if not is_first or (pass_on and not pass_on()):
            raise Interrupted(number=stop.number)
        with contextlib.suppress(RuntimeError):  # the signal came in the middle of a print
            tell(say)
        if grace:
            timer.start()

    with _handled(handle) as stack:
        stack.callback(timer.cancel)
        yield stop


@contextlib.contextmanager
def run_lock(folder: str | Path, shared: bool = False) -> Iterator[None]:
    """Work in a run folder that nobody else writes to meanwhile, made where it is missing; InUse names who does.

    The system's lock goes with the process. A kernel of `run` works under the lock of its run, where it is `shared` the
    other processes of a training under that of the first, and a folder inside a held one under that one.
    """
    (folder := Path(folder).resolve()).mkdir(parents=True, exist_ok=True)
    if HEADLESS in os.environ or (shared and not is_main_process()) or not _held.isdisjoint((folder, *folder.parents)):
        yield
        return
    holder, who = folder / HOLDER, "another process"  # which began a moment ago
    with contextlib.suppress(OSError):  # nobody says so
        who = holder.read_text("utf-8")
    with contextlib.ExitStack() as stack:
        in_use = f"{folder} is in use by {who}; wait for it, end it, or choose another folder"
        stack.enter_context(file_lock(folder / LOCK, in_use))
        who = f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        for draft in folder.glob(f"*{PART}") if holder.exists() else ():  # what a killed run left half-written
            draft.unlink()
        write_text(holder, printable(f"{who} ({command_line(sys.argv)})"))
        stack.callback(holder.unlink, missing_ok=True)
        _held.add(folder)
        stack.callback(_held.discard, folder)
        yield


def file_lock(path: Path, in_use: str) -> contextlib.AbstractContextManager:
    """Take the system's lock on a file; where another process has it InUse says so, a line where there are no locks."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path, timeout=0, fallback_to_soft=False).acquire()
    except Timeout:
        raise InUse(in_use) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise explained(error, path) from error
        print(f"The file system of {path.parent} has no locks: see to it that no other run works there.")
        return contextlib.nullcontext()


def is_alone() -> bool:
    """Whether this process trains by itself; what a launcher left in the environment, incomplete, is dropped."""
    missing = [name for name in LAUNCHED if name not in os.environ]
    if left := [name for name in LAUNCHED[:3] if name in os.environ and missing]:
        tell = f"{', '.join(left)} in the environment without {', '.join(missing)}: this is no training of several"
        click.echo(f"{tell} processes, and goes on alone.", err=True)
    for name in left:
        del os.environ[name]
    return bool(missing)


def is_main_process() -> bool:
    """Whether this process is the first of a training's, or the only one."""
    return is_alone() or int(os.environ["RANK"]) == 0


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say what a block waits for, if it takes longer than PATIENCE; a signal ends the process at once meanwhile."""
    timer = threading.Timer(PATIENCE, lambda: click.echo(f"waiting for {what}", err=True))
    timer.daemon = True
    with _handled(signal.SIG_DFL) as stack:  # libraries wait in code that runs no handler of Python's
        timer.start()
        stack.callback(timer.cancel)
        yield


@contextlib.contextmanager
def _handled(handler: Any) -> Iterator[contextlib.ExitStack]:
    """Let a handler have both SIGNALS within a block, where this is the main thread; others cannot set one."""
    with contextlib.ExitStack() as stack:
        for number in SIGNALS if threading.current_thread() is threading.main_thread() else ():
            stack.callback(signal.signal, number, signal.signal(number, handler))
        yield stack


def bar(iterable: Iterable | None = None, **options: Any):
    """A tqdm bar that goes when it is done: on stderr, which `run` reads, but in JupyterLab on stdout, without red."""
    by_hand = "ipykernel" in sys.modules and HEADLESS not in os.environ
    return tqdm(iterable, leave=False, file=sys.stdout if by_hand else sys.stderr, **options)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def elapsed(seconds: float) -> str:
    """75 -> '1:15'; 3675 -> '1:01:15'."""
    return tqdm.format_interval(round(seconds)).removeprefix("0")


def cores() -> int:
    """How many this process may use, by its affinity and its container's quota."""
    from joblib.externals import loky  # here: it takes a sixth of a second

    return loky.cpu_count()


def keep_freed() -> None:
    """Let glibc keep freed blocks up to 1 GiB: new, zeroed pages are 6 to 8 % of a training step, a sixth of CLIP's."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None:
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
