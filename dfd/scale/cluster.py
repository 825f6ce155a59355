"""Ray: a cluster of this machine or one that runs already, whose workers get units of work through Ray Data."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from dfd.core.runs import cores
from dfd.scale.inputs import Inputs
from dfd.scale.parts import RECORD
from dfd.scale.places import ENVIRONMENT
from dfd.scale.scoring import SHARED, Job, Scorer

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
STORE = 256 << 20  # bytes of shared memory on this machine: checkpoints and lists of addresses, never an image
ATTEMPTS = 3  # to start Ray


@dataclass(frozen=True)
class Pool:
    """The workers of a run."""

    workers: int
    gpus: float  # of each


class Units(Datasource):
    """Gives the units one by one, as they are listed, so that the list of all images is never in memory.

    Args:
        inputs: where the images are.
        done: numbers of units to leave out.
        size: files in a unit.
    """

    def __init__(self, inputs: Inputs, done: set[int], size: int):
        super().__init__()
        self.listed = partial(_listed, inputs, done, size, _environment(), os.getcwd())

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *args: Any, **options: Any) -> list[ReadTask]:
        return [ReadTask(self.listed, BlockMetadata(None, None, None, None))]


def _listed(inputs: Inputs, done: set[int], size: int, environment: dict, cwd: str) -> Iterator[pa.Table]:
    os.environ.update(environment)
    with contextlib.suppress(OSError):  # another machine may not have the folder, and then no path in it either
        os.chdir(cwd)
    for number, unit in enumerate(inputs.units(size)):
        if number not in done:
            yield pa.table({"unit": [pickle.dumps((number, unit))]})


class Worker:
    """A Scorer in a process of its own."""

    def __init__(self, checkpoints: list[ray.ObjectRef], job: Job, gpu: bool, environment: dict[str, str]):
        os.environ.update(environment)
        self.scorer = Scorer(ray.get(checkpoints[0]), job, gpu)

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[int]]]:
        if not self.scorer.parts.has(RECORD):  # the run has put it there
            raise OSError(f"{socket.gethostname()} has a {self.scorer.parts.address} of its own, or none; {SHARED}")
        for packed in batch["unit"]:
            for images, refused in self.scorer(*pickle.loads(packed)):
                yield {"images": [images], "refused": [refused]}


@contextlib.contextmanager
def joined(address: str | None, workers: int | None, gpus: float | None, threads: int) -> Iterator[Pool]:
    """Join a Ray cluster, or start one on this machine and stop it afterwards.

    Args:
        address: of the cluster, auto for the one that this machine belongs to; none takes that of the variable
            RAY_ADDRESS, or starts one.
        workers: none takes one for each GPU, or as many as the CPUs have threads for.
        gpus: of each worker, a share below 1 too; none takes 1 where there are any.
        threads: of each worker.

    Raises:
        ConnectionError: no cluster at the address.
    """
    was_there = ray.is_initialized()
    if not was_there:
        with _quiet(), _own_sigterm():
            _start(address or os.environ.get("RAY_ADDRESS"), workers, threads)
    try:
        has = ray.cluster_resources()
        gpus = float(has.get("GPU", 0) >= 1) if gpus is None else gpus
        most = int(has.get("GPU", 0) // gpus) if gpus else int(has.get("CPU", 1) // threads)
        yield Pool(workers or max(1, most), gpus)
    finally:
        if not was_there:
            ray.shutdown()


def _start(address: str | None, workers: int | None, threads: int) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        try:
            ray.init(address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConnectionError(
                f"no Ray cluster at {address}: {_line(error)}; `ray start --head` starts one"
            ) from error
        return
    cpus = max(cores(), (workers or 1) * threads)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            ray.init("local", num_cpus=cpus, object_store_memory=STORE, include_dashboard=False, **quiet)
            return
        except (
            Exception
        ) as error:  # Ray gives its servers 15 s to start, which a busy machine may need for Python alone
            ray.shutdown()
            if attempt == ATTEMPTS:
                raise ConnectionError(f"Ray does not start here: {_line(error)}") from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray's servers from the terminal; what goes wrong is raised, and written to Ray's own logs."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Take back the handler of SIGTERM: Ray puts one in its place that ends with status 15 and without a word."""
    own = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, own)


def scored(
    pool: Pool, inputs: Inputs, done: set[int], checkpoints: dict[str, bytes], job: Job
) -> Iterator[tuple[int, int]]:
    """Have the workers score all units that are not done; gives images and refusals of each part that is written.

    A worker that dies is started anew and its unit with it, whose finished parts stay.

    Raises:
        ValueError, OSError: what a worker raised, without Ray's wrapping.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.raise_original_map_exception = True
    context.target_max_block_size = 1  # byte: every unit and every result goes on at once
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "The minimum number of concurrent actors")  # fewer units than workers
    reference = ray.put(checkpoints)
    results = ray.data.read_datasource(
        Units(inputs, done, job.part_size), override_num_blocks=1, num_cpus=0
    ).map_batches(
        Worker,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=pool.workers),
        fn_constructor_args=([reference], job, pool.gpus > 0, _environment()),
        num_cpus=job.threads,
        num_gpus=pool.gpus or None,
    )
    try:
        for row in results.iter_rows():
            yield row["images"], row["refused"]
    except ray.exceptions.RayError as error:
        raise _cause(error) from error


def _environment() -> dict[str, str]:
    """Variables that a process of another machine, or of a cluster that runs already, has to be told."""
    return {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT)}


def _cause(error: BaseException) -> BaseException:
    """What went wrong in a worker, as it was raised there; Ray has put a text of its own into it."""
    while inner := getattr(error, "cause", None) or error.__cause__:
        error = inner
    text = str(error).split("Failed to apply UDF")[0].rstrip(" :\n'\"")
    kind = next((one for one in (OSError, ValueError) if isinstance(error, one)), None)
    return kind(text) if kind else error
