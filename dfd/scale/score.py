"""Judge very many images with Ray Data and write Parquet, resumably: what `python -m dfd score` calls.

Ray's readers end at damaged bytes, and its writer leaves half a file when killed; so actors read, this process writes.
"""

import json
import logging
import os
import pickle
import re
import socket
import sys
import tarfile
import tempfile
import uuid
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import chdir, nullcontext, suppress
from dataclasses import asdict, dataclass
from glob import escape, has_magic
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data
import torch
from fsspec.core import url_to_fs
from PIL import Image
from pyarrow import dataset, parquet
from ray.exceptions import RayError

from dfd.core.images import MAX_BYTES, ImageError, begins_like_image, content_of, load_rgb, one_line
from dfd.core.io import TEMPLATES, atomic_write, code, damaged, digest
from dfd.core.runs import bar, cores, deferred, run_lock, waiting
from dfd.data.layouts import SUFFIXES, find_images, printable
from dfd.inference.detector import Detector, Verdict, files_of

IMAGES, LISTS = tuple(SUFFIXES), (".txt", ".lst", ".list")
SHARDS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
SIDE = re.compile(r"(^|/)(\._[^/]*|__MACOSX/.*)$")  # what macOS packs beside the files
UNREAD = "cannot be read"  # how the error begins of what may be there another time
ANSWER = 10.0  # seconds that a cluster has to answer
ENVIRONMENT = ("AWS_", "FSSPEC_", "GOOGLE_", "AZURE_", "HF_")  # variables that say how to reach a file system


@dataclass(frozen=True)
class Options:
    """How images are judged; None takes what the machine or the model has."""

    workers: int | None = None
    threads: int = 1  # of each worker, on the CPU
    batch_size: int | None = None  # crops per forward pass
    part_size: int = 256  # images in a task, and in a file
    address: str | None = None  # of a Ray cluster
    crops: int | None = None
    crop_mode: str | None = None
    threshold_fpr: float | None = None


class Item(str):
    """The name of an image on its way to the detector, with its bytes, or why it has none; None is still to be read."""

    data: Any = None


def score(inputs: Sequence[str], out: str, model: str | Path, options: Options = Options()) -> tuple[int, int, int]:
    """Judge images as `Detector.predict` does and write a row for each; those that have one are left out.

    Inputs are paths or URLs of images, folders, patterns, lists and tar shards; `out` is that of a folder, which
    belongs to one model, version and crops; the model, a run folder with stage 1 at least, is sent to the workers.
    Gives the rows in the folder, those of them with an error, and those that were there before.
    """
    detector = Detector.load(model, torch.device("cpu"))
    detector = detector if options.threshold_fpr is None else detector.at_fpr(options.threshold_fpr)
    files = {name: (Path(model) / name).read_bytes() for name in files_of(Path(model))}
    record = {"model": digest(files), "dfd": code(), "threshold": detector.threshold}
    record |= {"crops": options.crops, "crop_mode": options.crop_mode}
    names: dict[str, None] = {}  # each once, in order
    for given in inputs:
        try:
            names |= dict.fromkeys(listed(given))
        except Exception as error:  # each file system has its own
            raise OSError(f"{given}: {one_line(error)}") from error
    fs, folder = url_to_fs(out)
    with run_lock(folder) if "file" in fs.protocol else nullcontext():
        path = f"{folder}/_score.json"
        if not fs.exists(path):
            if fs.glob(f"{escape(folder)}/[!.]*"):
                raise ValueError(f"{out} holds files that `score` did not write; take another --out")
            fs.pipe_file(path, json.dumps(record).encode())
        try:
            known = json.loads(fs.cat_file(path))
        except ValueError as error:
            raise ValueError(damaged(path, error)) from error
        if known != record:
            raise ValueError(f"{out} was scored with {known}, not {record}; take another --out")
        if len(shown := {*map(printable, names)}) < len(names):
            raise ValueError("a name that is no UTF-8 and another one are written alike; rename one of them")
        before = known_rows(fs, folder, rows_in(fs, folder), shown)
        left = [name for name in names if name.lower().endswith(SHARDS) or printable(name) not in before]
        members = {row for row in before if any(f"{suffix}/" in row.lower() for suffix in SHARDS)}  # workers skip these
        with bar(unit="image", initial=len(before), disable=None) as progress:
            for table in judged(left, (files, detector.threshold, members, os.getcwd()), options) if left else ():
                write(fs, f"{folder}/part-{uuid.uuid4().hex}.parquet", table)
                progress.update(len(table))
        after = rows_in(fs, folder)
    return len(after), sum(error is not None for error in after.values()), len(before)


def write(fs: Any, path: str, table: pa.Table) -> None:
    """Write a Parquet file that is there whole or not at all, as is usual in stores."""
    if "file" in fs.protocol:
        hidden = Path(path).with_name(".draft")  # readers of Parquet folders pass over such a name
        with atomic_write(hidden) as draft:
            parquet.write_table(table, draft)
        os.replace(hidden, path)
    else:
        parquet.write_table(table, path, filesystem=fs)


def rows_in(fs: Any, folder: str) -> dict[str, str | None]:
    """Path and error of the rows in a folder."""
    schema = pa.schema([("path", pa.string()), ("error", pa.string())])
    rows = dataset.dataset(fs.glob(f"{escape(folder)}/*.parquet"), schema, "parquet", fs).to_table()
    return dict(zip(rows["path"].to_pylist(), rows["error"].to_pylist(), strict=True))


def known_rows(fs: Any, folder: str, rows: dict[str, str | None], asked: set[str]) -> dict[str, str | None]:
    """The rows but those, taken out, of images asked for that a store did not give and of shards that broke off."""
    kept = {p: e for p, e in rows.items() if p not in asked or not (e or "").startswith((UNREAD, "not a regular"))}
    for path in fs.glob(f"{escape(folder)}/*.parquet") if len(kept) < len(rows) else ():
        table = parquet.read_table(path, filesystem=fs)
        if not all(stays := [path in kept for path in table["path"].to_pylist()]):
            write(fs, path, table.filter(pa.array(stays)))
    return kept


def listed(given: str) -> Iterator[str]:
    """The images and shards that an input stands for."""
    fs, path = url_to_fs(given)
    names = [given]
    if "://" not in given:
        names = find_images([given], IMAGES + SHARDS, lambda line: print(line, file=sys.stderr))
    elif has_magic(given) and not fs.exists(path):
        matches = [m for m in fs.glob(path) if not SIDE.search(m) and ("**" not in path or not fs.isdir(m))]
        names = [name for match in matches for name in listed(fs.unstrip_protocol(match))]
    elif fs.isdir(path):
        files = [*map(fs.unstrip_protocol, fs.find(path))]
        names = [name for name in files if name.lower().endswith(IMAGES + SHARDS) and not SIDE.search(name)]
        if others := [*map(printable, sorted({*files} - {*names}))]:
            print(f"{given}: left out {len(others)} with names of no image: {others[0]!r} …", file=sys.stderr)
    if not names:
        raise FileNotFoundError("no images there, and no shards (.tar)")
    for name in names:
        if name.lower().endswith(LISTS):
            with fs.open(name, "rb") as file:
                yield from (os.fsdecode(line.rstrip(b"\r\n").removeprefix(BOM_UTF8)) for line in file if line.strip())
        elif name.lower().endswith(IMAGES) or fs.exists(name):  # an image that is missing gets a row that says so
            yield name
        else:
            raise FileNotFoundError("no such file or folder")


def items_of(name: str) -> Iterator[Item]:
    """An image, or those in a shard; where it breaks off, the last item says why."""
    if not name.lower().endswith(SHARDS) or ("://" not in name and not os.path.isfile(name)):  # a pipe never ends
        yield Item(name)
        return
    count, again = 0, Counter[str]()
    try:
        with url_to_fs(name)[0].open(name, "rb") as file:
            archive: Any = tarfile.TarFile.open(fileobj=file, mode="r|*")
            for member in archive:
                archive.members = []  # tarfile remembers them all
                data = archive.extractfile(member).read(MAX_BYTES + 1) if member.isfile() else b""
                is_named = member.name.lower().endswith(IMAGES) and not SIDE.search(member.name)
                if (is_named or begins_like_image(data)) and not member.isdir():
                    again[inside := member.name.removeprefix("./")] += 1
                    item = Item(f"{name}/{inside}" + f" ({again[inside]})" * (again[inside] > 1))  # by tar -r
                    item.data, count = data or ImageError("no bytes"), count + 1
                    yield item
            if archive.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:  # it ends in silence here
                raise tarfile.ReadError("damaged, or cut short")
            while rest := archive.fileobj.read(1 << 20):
                if rest.strip(tarfile.NUL):
                    raise tarfile.ReadError("another archive follows in the same file, which is not read")
        if not count:
            raise ValueError("no images in it")
    except Exception as error:  # tarfile's, three decompressors', and the file systems' own
        item = Item(name)
        item.data = ImageError(f"{UNREAD} after {count} images: {one_line(error)}")
        yield item


def decode(item: Item) -> Image.Image:
    """Read and decode an image; its bytes are let go of."""
    try:
        if isinstance(item.data, ImageError):
            raise item.data
        if item.data is None and "://" in item:
            item.data = url_to_fs(item)[0].cat_file(item, end=MAX_BYTES + 1)
        data, item.data = content_of(str(item) if item.data is None else item.data), None
        return load_rgb(data)
    except Exception as error:  # each file system has its own
        problem = "" if isinstance(error, ImageError) else f"{UNREAD}: "
        raise ImageError(printable(problem + one_line(error).removeprefix("the given bytes: "))) from error


class Judge:
    """An actor of Ray Data: loads the model once, then judges what each row names."""

    def __init__(self, shared: list[ray.ObjectRef], options: Options, device: torch.device | None):
        (files, threshold, self.done, folder), self.options = ray.get(shared[0]), options
        with suppress(OSError):  # a machine without the folder can still read URLs
            os.chdir(folder)
        torch.set_num_threads(options.threads)
        with tempfile.TemporaryDirectory() as run:
            for name, data in files.items():
                (Path(run) / name).write_bytes(data)
            self.detector = Detector.load(run, device)
        self.detector.threshold = threshold
        shares = dict.fromkeys(self.detector.stage2.classes, 0.0) if self.detector.stage2 else None
        every_type = asdict(Verdict("", True, "", 0.0, "", shares, ("",), 0, 0.0, "", "", 0.0, ""))  # none is None
        self.schema = pa.Table.from_pylist([{"path": "", "sha256": ""} | every_type]).schema

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[bytes]]]:
        items = (item for row in batch["names"] for name in pickle.loads(row) for item in items_of(name))
        items = (item for item in items if printable(item) not in self.done)
        settings = self.options.crops, self.options.crop_mode, lambda line: None, decode, self.options.batch_size
        rows = (asdict(v) | {"path": printable(str(v.path))} for v in self.detector.predict(items, *settings))
        while part := list(islice(rows, self.options.part_size)):
            yield {"part": [pickle.dumps(pa.Table.from_pylist(part, self.schema).flatten())]}  # Ray cuts between rows


def judged(names: list[str], shared: Any, options: Options) -> Iterator[pa.Table]:
    """Have the actors of a Ray cluster judge what is named; gives the rows of a part at a time, as they come."""
    images = [name for name in names if not name.lower().endswith(SHARDS)]
    blocks = [[name] for name in names if name.lower().endswith(SHARDS)]
    blocks += [images[at : at + options.part_size] for at in range(0, len(images), options.part_size)]
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what fails is raised, and in Ray's own logs
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    is_local, cpus = address == "local", max(cores(), (options.workers or 1) * options.threads)
    here = {"num_cpus": cpus, "num_gpus": torch.cuda.device_count(), "object_store_memory": 256 << 20}
    there = {"runtime_env": {"env_vars": {k: v for k, v in os.environ.items() if k.startswith(ENVIRONMENT)}}}
    settings: dict[str, Any] = here | {"include_dashboard": False} if is_local else there
    host, _, port = address.removeprefix("ray://").rpartition(":")
    remedy = "" if is_local else "; start it, or unset RAY_ADDRESS and leave --address out to work here alone"
    try:  # Ray puts the directory that it is started in on its workers' path; images may lie in this one
        if host and port.isdecimal():  # Ray would try for minutes where nothing listens
            socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
        with chdir(TEMPLATES.parents[1]), nullcontext() if is_local else waiting(f"Ray at {address}"):
            ray.init(address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR, **settings)
    except Exception as error:  # on a busy machine a bare one: Ray gives itself half a minute to start
        raise OSError(f"no Ray at {address}: {one_line(error)}{remedy}") from error
    gpus, cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = 6 * 3600  # where an image kills one worker after another
    context.target_max_block_size = 1  # bytes of rows, from which on a part is given at once
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    rows = [{"names": pickle.dumps(block)} for block in blocks]  # names need not be UTF-8
    tables = ray.data.from_items(rows, override_num_blocks=len(blocks)).map_batches(
        Judge, fn_constructor_args=([ray.put(shared)], options, None if gpus else torch.device("cpu")), batch_size=1,
        concurrency=min(len(blocks), options.workers or gpus or max(1, cpus // options.threads)),
        num_cpus=min(options.threads, max(1, cpus)), num_gpus=1 if gpus else None)  # fmt: skip
    try:
        with deferred("", pass_on=lambda: False):  # Ray has put its own handlers in our place
            for batch in tables.iter_batches(batch_size=None):
                yield from map(pickle.loads, batch["part"])
    except RayError as error:
        raise OSError(f"a worker failed: {one_line(getattr(error, 'cause', error))}") from error
