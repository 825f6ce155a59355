"""The runs of a sweep on Ray: one task each, on whichever machine has room; all share one file system."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dfd.parameter_grid import SweepError
from dfd.parameter_sweep import GRACE, PAUSE, Launch, Process


class Task:
    """A run that Ray was asked for; it waits there until its cores are free, which is none of its seconds."""

    def __init__(self, command: Sequence[str], log: Path, threads: int, gpus: float):
        import ray

        log.unlink(missing_ok=True)
        remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(execute)
        self.log, self.seconds = log, None
        self.reference = remote.remote(list(command), str(log), threads, os.getcwd())

    def poll(self) -> int | None:
        import ray

        if not ray.wait([self.reference], timeout=0)[0]:
            return None
        try:
            code, self.seconds = ray.get(self.reference)
            return code
        except ray.exceptions.TaskCancelledError:
            return 130
        except ray.exceptions.RayError as error:
            with self.log.open("a") as file:
                file.write(f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}\n")
            return 1

    def end(self) -> None:
        import ray

        ray.cancel(self.reference)  # a KeyboardInterrupt in the task

    def kill(self) -> None:
        import ray

        ray.cancel(self.reference, force=True)


def execute(command: Sequence[str], log: str, threads: int, folder: str) -> tuple[int, float]:
    """Run a command in a folder and give its exit status and seconds; however the task ends, so does the command."""
    os.chdir(folder)
    job = Process(command, Path(log), threads)
    try:
        while (code := job.poll()) is None:
            time.sleep(PAUSE)
        return code, job.seconds
    finally:
        late = time.monotonic() + GRACE
        if job.poll() is None:
            job.end()
        while job.poll() is None and time.monotonic() < late:
            time.sleep(PAUSE)
        if job.poll() is None:
            job.kill()


@contextlib.contextmanager
def on_ray(address: str | None, threads: int) -> Iterator[Launch]:
    """Join a cluster, or start one on this machine and stop it afterwards; gives what starts a run there.

    Args:
        address: of the cluster, auto for the one that this machine belongs to; none starts one.
        threads: of each run, which asks for as many cores, and for a GPU where there is one.

    Raises:
        SweepError: Ray is not installed.
        ConnectionError: no cluster at the address.
    """
    try:
        from dfd import cluster
    except ImportError as error:
        raise SweepError(f"--ray needs the package {error.name}: pip install -e '.[scale]'") from None

    with cluster.joined(address, None, None, threads) as pool:
        yield lambda command, log, threads: Task(command, log, threads, pool.gpus)
