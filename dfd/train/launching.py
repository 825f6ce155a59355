"""A training in several processes, one a GPU, from a notebook; `dfd.core.parallel` is what they say to one another."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dfd.core import parallel, runs

LAUNCHER_HANDLES = [one for one in signal.Signals if one.name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")]


def gpus() -> int:
    """GPUs that `launch` can use from here: 1 where there is one or none, or this is one of several processes."""
    found = torch.cuda.device_count()
    if found < 2 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return 1
    if torch.cuda.is_initialized():
        print(f"This kernel has used a GPU already, so it trains on one of {found}; restart it to train on all.")
        return 1
    return found


def launch(function: Callable[..., Any], *given: Any, processes: int) -> Any:
    """Call a function in several processes of this machine, from a notebook; gives what it gives in the main one.

    Raises:
        LostProcess: one of them was killed.
        Interrupted: a signal ended them.
        Exception: what the first that failed raised, with its traceback as a note.
    """
    from accelerate import notebook_launcher
    from accelerate.utils import patch_environment
    from accelerate.utils.other import get_free_port
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it would say is raised here
    with tempfile.TemporaryDirectory() as folder, _signals_kept():
        answer, refusal = (Path(folder) / name for name in ("answer", "refusal"))
        try:
            with patch_environment(omp_num_threads=1):
                given = (function, given, answer, refusal)
                notebook_launcher(_answer, given, processes, use_port=str(get_free_port()))
        except (ChildFailedError, SignalException, KeyboardInterrupt) as error:
            if refusal.exists():
                raise pickle.loads(refusal.read_bytes()) from None
            if isinstance(error, ChildFailedError):
                code = error.get_first_failure()[1].exitcode
                how = f"a process of this training ended without a word (code {code})"
                raise parallel.LostProcess(f"{how}; {parallel.GO_ON}") from None
            raise runs.Interrupted() from None
        return pickle.loads(answer.read_bytes())


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Take the launcher's handlers away again, or the next Ctrl-C would raise its SignalException."""
    before = {number: signal.getsignal(number) for number in LAUNCHER_HANDLES}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _answer(function: Callable[..., Any], given: tuple, answer: Path, refusal: Path) -> None:
    os.setsid()  # a Stop is to the whole kernel, and the launcher passes it on: two signals would not let a step end
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork: a second one would wait for ever
    try:
        with parallel.chorus():
            found = function(*given)
    except (Exception, KeyboardInterrupt) as error:
        error.add_note(f"in process {parallel.rank()} of {parallel.count()}:\n{traceback.format_exc()}")
        refusal.write_bytes(pickle.dumps(error))
        raise SystemExit(1) from None
    if parallel.is_main():
        answer.write_bytes(pickle.dumps(found))
