"""What `python -m dfd score` does: a run, and the worker that scores one unit after another and writes the parts."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dfd import __version__
from dfd.config import CHECKPOINTS
from dfd.inference.detector import Detector, Verdict
from dfd.scale.inputs import Inputs
from dfd.scale.parts import Parts, begun, finished, part_name, table
from dfd.scale.units import Item, Unit, load

MISSING = "scoring needs Ray, which is not installed: pip install 'ray[data]' s3fs, or pip install -e '.[scale]' here"
PART = 256  # images in a part
HELD = 64_000_000  # bytes of image files that a worker holds at a time, one image more at the utmost
SAME = ("threshold", "crops", "crop_mode", "part_size")  # of all the parts in a folder
MARK = "_tries-"  # what a worker leaves beside a part that it works on
SHARED = "all machines must share the file system of --out, as they do s3://"
STALE = 60.0  # seconds for which a network file system may show an old listing
DEATHS = 2  # of workers: at a part, before its images are taken singly; at one image, before it is given up


@dataclass(frozen=True)
class Job:
    """What a worker has to know, as plain values."""

    out: str
    part_size: int = PART
    threshold: float | None = None  # on p_fake
    crops: int | None = None  # as in `Stage.stream`
    crop_mode: str | None = None
    batch_size: int | None = None  # crops per forward pass
    threads: int = 1  # of torch, in each worker


@dataclass
class Outcome:
    """What came of a run."""

    images: int = 0
    refused: int = 0
    before: int = 0  # of the images: those that were there already


class Scorer:
    """A worker: loads the networks once, then scores unit after unit.

    Args:
        checkpoints: name and content of both files.
        job: what to do.
        gpu: whether one was set aside for it.
    """

    def __init__(self, checkpoints: dict[str, bytes], job: Job, gpu: bool = False):
        torch.set_num_threads(job.threads)
        device = torch.device("cuda" if gpu and torch.cuda.is_available() else "cpu")
        with tempfile.TemporaryDirectory() as folder:
            for name, content in checkpoints.items():
                (Path(folder) / name).write_bytes(content)
            found = Detector.load(folder, device)
        self.detector = Detector(found.stage1, found.stage2, threshold=job.threshold)
        self.job, self.parts = job, Parts(job.out)

    def __call__(self, number: int, unit: Unit) -> Iterator[tuple[int, int]]:
        """Write the parts of a unit that are not there yet; gives images and refusals of each that it wrote.

        A unit that now breaks off in a part that is there gets, as its next part, the row that says so.
        """
        key, part, items = unit.key(), 0, unit.items()
        following = next(items, None)
        while following is not None:
            some = islice(chain([following], items), self.job.part_size)
            names = [part_name(number, key, part, last) for last in (False, True)]
            is_there = any(map(self.parts.has, names))
            if is_there:
                passed = deque(some, maxlen=1).pop()
            else:
                verdicts = self._judged(MARK + names[0], some)
            following = next(items, None)
            if not is_there:
                self.parts.put(names[following is None], table(verdicts, self.detector.stage2.classes))
                self.parts.remove(MARK + names[0])
                yield len(verdicts), sum(one.error is not None for one in verdicts)
            elif following is None and not self.parts.has(names[True]):  # more was found here before
                is_reason = passed.name == unit.name  # why a shard or table breaks off, else an image
                following = passed if is_reason else Item(unit.name, reason="ends earlier than it did before")
            part += 1

    def _judged(self, mark: str, some: Iterator[Item]) -> list[Verdict]:
        """Verdicts of a part; an image that kills the process again and again becomes one with an error.

        A file beside the part counts the workers that have begun it. From the third on images are taken one by one, and
        the file says which is in hand.
        """
        known = {"begun": 0, "at": None, "deaths": {}} | json.loads(self.parts.read(mark) or "{}")
        known["begun"] += 1
        if known["begun"] <= DEATHS:
            self._note(mark, known)
            return list(judged(self.detector, some, self.job))
        deaths = Counter(known["deaths"])
        if known["at"] is not None:
            deaths[str(known["at"])] += 1
        verdicts = []
        for number, item in enumerate(some):
            if deaths[str(number)] >= DEATHS:
                verdicts.append(Verdict(item.name, error=f"{DEATHS} workers died while they had it in hand"))
                continue
            self._note(mark, known | {"at": number, "deaths": deaths})
            verdicts += judged(self.detector, iter([item]), self.job)
        return verdicts

    def _note(self, mark: str, known: dict[str, Any]) -> None:
        here = {"host": socket.gethostname(), "pid": os.getpid()}
        self.parts.put(mark, json.dumps(known | here).encode(), lasting=False)


def judged(detector: Detector, items: Iterator[Item], job: Job) -> Iterator[Verdict]:
    """One Verdict an item, in order, by the chain that `predict` uses."""
    held = 0

    def filling(item: Item) -> int:
        nonlocal held
        held += len(item.data or b"")
        return held // HELD

    options = {"report": lambda line: None, "read": load, "batch": job.batch_size}
    for _, some in groupby(items, filling):  # predict asks for many at a time
        yield from detector.predict(some, job.crops, job.crop_mode, **options)


def run(
    folder: Path,
    inputs: Inputs,
    job: Job,
    workers: int | None = None,
    gpus: float | None = None,
    address: str | None = None,
    threshold_fpr: float | None = None,
    retry: bool = False,
) -> Outcome:
    """Score all that the inputs hold and write it to a folder of Parquet parts; goes on where an earlier run stopped.

    Args:
        folder: the run folder with the networks.
        inputs: where the images are.
        job: what each worker does; without a threshold it gets the model's.
        workers, gpus, address: as in `dfd.scale.cluster.joined`.
        threshold_fpr: as in `predict`.
        retry: score again the parts in which an image was refused.

    Raises:
        ValueError: Ray is not installed, the folder was written by other networks, at another threshold or from other
            images; see `Inputs.checked` too.
        InUse: another run works in the folder.
        OSError: an address that cannot be read or written, or workers that wrote to other disks.
    """
    try:
        from dfd.scale import cluster
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ValueError(MISSING) from error
    detector = Detector.load(folder, torch.device("cpu"))
    detector = detector if threshold_fpr is None else detector.at_fpr(threshold_fpr)
    checkpoints = {name: (folder / name).read_bytes() for name in CHECKPOINTS.values()}
    inputs, parts = inputs.checked(), Parts(job.out)
    job = replace(job, out=parts.address, threshold=detector.threshold)  # workers have another working directory
    with parts.alone():
        parts.begin(_record(folder, checkpoints, inputs, job), SAME)
        outcome, names, is_done = _before(parts, inputs, job, retry)
        if is_done:
            return outcome
        told = 0
        with (
            cluster.joined(address, workers, gpus, job.threads) as pool,
            tqdm(unit="image", initial=outcome.before, leave=False, disable=None) as bar,
        ):
            refusals = outcome.refused
            for images, refused in cluster.scored(pool, inputs, finished(names), checkpoints, job):
                told, refusals = told + images, refusals + refused
                bar.update(images)
                bar.set_postfix(refused=refusals, refresh=False)
        for name in parts.names():
            if name.startswith(MARK):  # of a worker that died just after it had finished
                parts.remove(name)
        images, refused = _written(parts, names, told)
        return Outcome(outcome.before + images, outcome.refused + refused, outcome.before)


def _before(parts: Parts, inputs: Inputs, job: Job, retry: bool) -> tuple[Outcome, set[str], bool]:
    """What there is of an earlier run, the names of its files, and whether nothing is left to do."""
    names, outcome, is_done = parts.names(), Outcome(), False
    if known := begun(names):
        is_done = _same_images(inputs, known, finished(names), job)
        for name, images, refused in list(parts.counts(one for one in names if one.startswith("part-"))):
            if retry and refused:
                parts.remove(name)
                names.remove(name)
                is_done = False
            else:
                outcome.before, outcome.refused = outcome.before + images, outcome.refused + refused
        outcome.images = outcome.before
    return outcome, names, is_done


def _written(parts: Parts, before: set[str], told: int) -> tuple[int, int]:
    """Images and refusals in the new parts, those of workers too that died before they could tell of them.

    Raises:
        OSError: there are fewer than the workers told of.
    """
    late = time.monotonic() + STALE
    while True:
        counts = list(parts.counts(one for one in parts.names() - before if one.startswith("part-")))
        images, refused = (sum(one[column] for one in counts) for column in (1, 2))
        if images >= told:
            return images, refused
        if time.monotonic() > late:
            raise OSError(f"{parts.address} has {images} of the {told} images that were scored just now; {SHARED}")
        time.sleep(1)


def part_size_of(out: str) -> int:
    """Images in a part of a folder that was begun, or the usual number."""
    return (Parts(out).record() or {}).get("part_size", PART)


def _record(folder: Path, checkpoints: dict[str, bytes], inputs: Inputs, job: Job) -> dict[str, Any]:
    networks = [sha256(content).hexdigest()[:16] for content in checkpoints.values()]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    made = {"dfd": __version__, "begun": now, "model": os.path.abspath(folder), "networks": networks}
    return made | {name: getattr(job, name) for name in SAME} | {"inputs": list(inputs.addresses)}


def _same_images(inputs: Inputs, known: dict[int, str], done: set[int], job: Job) -> bool:
    """Whether all the units are done.

    Raises:
        ValueError: the parts that are there are of other images.
    """
    left, number = dict(known), -1
    for number, unit in enumerate(inputs.units(job.part_size)):
        if not left and number not in done:
            return False
        if left.pop(number, key := unit.key()) != key:
            break
    else:
        if not left:
            return done == set(range(number + 1))
    raise ValueError(f"{job.out} was begun with other images, or in another order; take another --out for these")
