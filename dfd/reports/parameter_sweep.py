"""A parameter sweep: many runs of the notebooks, several at once, each a process of its own.

`sweep.json` in the sweep's folder says of each run how it ended; the same command again keeps what is finished. After
each run `sweep.csv` and `index.html` are written anew.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from dfd import config
from dfd.core import io, runs
from dfd.core.runs import NOT_TEXT, cores, elapsed
from dfd.reports import runner
from dfd.reports.parameter_grid import Run, Sweep, SweepError

RECORD, LOG = "sweep.json", "sweep.log"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
COMMAND = (sys.executable, "-m", "dfd", "run")
STOPPING = (signal.SIGINT, signal.SIGTERM)
GRACE = 90.0  # seconds that a run has to save and end
PAUSE = 0.2  # seconds between two looks at the runs
TAIL = 8  # last lines of a failed run that are shown
TIED = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):  # else it has ended meanwhile
    os.execvp(sys.argv[2], sys.argv[2:])
"""  # starts a command that Linux ends with the thread that started it


class Job(Protocol):
    """A run that was started."""

    seconds: float | None  # that it ran, once it has ended; None where nobody can tell

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""

    def end(self) -> None:
        """Ask it to save and end."""

    def kill(self) -> None:
        """End it at once."""


Launch = Callable[[Sequence[str], Path, int], Job]  # of a command, its log, and its threads


class Process:
    """A run on this machine, in a session of its own: a Ctrl-C in the terminal reaches it through the sweep alone.

    On Linux it ends with the process that started it, a `kill -9` of that included; so the thread that starts it has to
    wait for it.
    """

    def __init__(self, command: Sequence[str], log: Path, threads: int):
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", TIED, str(os.getpid()), *command]
        self.began, self.seconds = time.monotonic(), None
        given = {name: str(threads) for name in THREADS if name not in os.environ}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | given,
                start_new_session=True,
            )

    def poll(self) -> int | None:
        code = self.process.poll()
        if code is not None and self.seconds is None:
            self.seconds = time.monotonic() - self.began
        return code

    def end(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        """Its kernel ends by itself when it misses its parent."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def default_jobs() -> int:
    """Runs at once: one for two cores, as a run has a loader beside its training."""
    return max(1, cores() // 2)


def run(
    sweep: Sweep,
    out: str | Path,
    jobs: int | None = None,
    launch: Launch = Process,
    threads: int | None = None,
    folder: str | Path = config.ROOT / "notebooks",
    command: Sequence[str] = COMMAND,
    say: Callable[[str], None] = print,
) -> Path:
    """Run what is not finished, several at once; a run that fails does not stop the others.

    Args:
        sweep: from `parameter_grid.read`.
        out: the sweep's folder, made if missing; each run has one below it.
        jobs: how many at once.
        launch: starts one; `ray_runs.on_ray` gives another.
        threads: of each run; none shares the cores among the jobs.
        folder: the notebooks'.
        command: what runs the notebooks.
        say: shows a line.

    Returns:
        The page over the runs.

    Raises:
        SweepError: runs failed (code 1), or it was interrupted (130 or 143); what is done is kept.
        InUse: another sweep works in the folder.
        OSError: the folder cannot be written.
    """
    from dfd.reports import parameter_sweep_report as pages

    out, jobs = config.resolve(str(out)), jobs or default_jobs()
    threads = threads or max(1, cores() // jobs)
    if out.resolve().is_relative_to(config.resolve(sweep.data).resolve()):
        raise SweepError(f"the folder {out} lies inside the data folder {sweep.data}; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    kept, made = entries(sweep, out, folder)
    waiting = deque(one for one in sweep.runs if kept[one.name]["status"] != "finished")
    if len(waiting) < len(sweep.runs):
        say(f"{len(sweep.runs) - len(waiting)} of {len(sweep.runs)} runs finished before; kept.")
    running: dict[str, Job] = {}

    def keep(name: str, **values: Any) -> None:
        kept[name] |= values
        io.write_json(out / RECORD, {"name": sweep.name, "made": made, "runs": kept})

    def close(name: str, code: int) -> None:
        """Note how a run ended."""
        job = running.pop(name)
        status = {0: "finished", 130: "interrupted", 143: "interrupted"}.get(code, "failed")
        log = last_lines(out / name / LOG) if status == "failed" else []
        if code < 0:
            log = [*log, f"ended by signal {-code}" + ("; most often memory ran out" if code == -9 else "")]
        seconds = None if job.seconds is None else round(job.seconds, 1)
        took = "" if seconds is None else f" after {elapsed(seconds)}"
        keep(name, status=status, code=code, seconds=seconds, ended=datetime.now(UTC).isoformat(), last_lines=log)
        say(f"{_count(kept)}  {name}  {status}{took}{pages.headline(sweep, out / name)}")
        for line in log:
            say(f"    {line}")

    with runs.run_lock(out), asked_to_stop() as asked:
        try:
            while (waiting and not asked) or running:
                while waiting and len(running) < jobs and not asked:
                    one = waiting.popleft()
                    (out / one.name).mkdir(exist_ok=True)
                    words = command_of(sweep, one, out, command)
                    running[one.name] = launch(words, out / one.name / LOG, threads)
                    keep(one.name, status="running")
                    say(f"{_count(kept)}  {one.name}  started")
                if asked:
                    end(list(running.values()), asked, say)
                ended = {name: code for name, job in running.items() if (code := job.poll()) is not None}
                for name, code in ended.items():
                    close(name, code if code == 0 or not asked else 130)
                if ended:
                    pages.write(sweep, kept, out)
                time.sleep(0 if ended else PAUSE)
            page = pages.write(sweep, kept, out, paired=True)
        except BaseException:
            end(list(running.values()), [signal.SIGTERM], say)
            raise
    if asked:
        raise SweepError(
            f"Interrupted. What is done is kept in {out}; the same command goes on from there.", 128 + asked[0]
        )
    failed = [name for name, entry in kept.items() if entry["status"] != "finished"]
    if failed:
        raise SweepError(
            f"{len(failed)} of {len(kept)} runs did not finish: {', '.join(failed)}. {page} has their last lines, "
            f"{LOG} in each folder all; mend the cause, then run the same command again.",
            1,
        )
    return page


def entries(sweep: Sweep, out: Path, folder: str | Path) -> tuple[dict[str, dict], dict[str, Any]]:
    """What is known of each run, and what the runs are made from.

    A run counts as finished while its parameters, the data, the notebooks and the package's code are what they were.
    """
    made = {
        "data": [sweep.data, runs.fingerprint(config.resolve(sweep.data))],
        "profile": sweep.profile,
        "code": {path.stem: runner.code_of(path) for path in _notebooks(sweep, folder)},
    }
    try:
        before = io.read_json(out / RECORD)
    except ValueError as error:
        raise SweepError(f"{out / RECORD} cannot be read ({error}); remove it, and the sweep looks anew") from None
    known = before.get("runs", {}) if before.get("made") == made else {}
    found = {}
    for one in sweep.runs:
        entry = known.get(one.name, {})
        same = entry.get("settings") == dict(one.settings) and (out / one.name / "index.html").exists()
        fresh = {"settings": dict(one.settings), "status": "waiting"}
        found[one.name] = entry if same and entry["status"] == "finished" else fresh
    return found, made


def _notebooks(sweep: Sweep, folder: str | Path) -> list[Path]:
    return [Path(folder) / f"{stem}.ipynb" for stem in sweep.notebooks]


def command_of(sweep: Sweep, one: Run, out: Path, command: Sequence[str] = COMMAND) -> list[str]:
    """The words that start a run."""
    words = [*command, "--data", sweep.data, "--out", str(out / one.name), "--profile", sweep.profile]
    for name, value in one.settings:
        words += ["-p", name, value]
    return [*words, "--", *sweep.notebooks]


def listing(sweep: Sweep, out: str | Path, folder: str | Path = config.ROOT / "notebooks") -> Iterator[str]:
    """The runs as lines: what is known of each, its name and its command."""
    target = config.resolve(str(out))
    kept, _ = entries(sweep, target, folder)
    for one in sweep.runs:
        shown = shlex.join(["python", *command_of(sweep, one, Path(out))[1:]])
        yield f"{kept[one.name]['status']:9} {one.name}\n          {shown}"


def end(jobs: Sequence[Job], asked: Sequence[int], say: Callable[[str], None]) -> None:
    """Have runs save and end; after GRACE seconds, or when asked again, end them at once."""
    if not jobs:
        return
    say(f"Ending {len(jobs)} run{'s' * (len(jobs) > 1)}; once more ends at once.")
    late, before = time.monotonic() + GRACE, len(asked)
    for job in jobs:
        job.end()
    while time.monotonic() < late and len(asked) == before and any(job.poll() is None for job in jobs):
        time.sleep(PAUSE)
    for job in jobs:
        if job.poll() is None:
            job.kill()
    while any(job.poll() is None for job in jobs):
        time.sleep(PAUSE)


def last_lines(log: Path) -> list[str]:
    """The end of a run's log, as text."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8000))
        text = NOT_TEXT.sub("", file.read().decode("utf-8", "replace").replace("\r", "\n"))
    return [line.rstrip() for line in text.splitlines() if line.strip()][-TAIL:]


def _count(kept: dict[str, dict]) -> str:
    done = sum(entry["status"] not in ("waiting", "running") for entry in kept.values())
    return f"[{done}/{len(kept)}]"


@contextlib.contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """The signals that have asked to end, SIGINT and SIGTERM: noted, so that no run is started and then forgotten."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {one: signal.signal(one, lambda number, frame: asked.append(number)) for one in STOPPING}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
