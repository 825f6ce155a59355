"""The folder that `python -m dfd score` writes: Parquet parts, each there whole or not at all, and what made them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import parquet

from dfd.core import runs
from dfd.scale.places import absolute, is_remote, located, reaching

if TYPE_CHECKING:
    from dfd.inference.detector import Verdict

RECORD = "_score.json"  # readers of Parquet folders pass over what begins with _ or .
NAME = re.compile(r"part-(\d{6,})-([0-9a-f]{8})-(\d{4,})(-last)?\.parquet")
WHOLE = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "hf")  # stores where an object appears whole
READERS = 16  # footers that are read at a time


class Parts:
    """An output folder, here or on any file system that fsspec can write to."""

    def __init__(self, address: str):
        self.address = absolute(address)
        self.fs, self.path = located(self.address)

    def names(self) -> set[str]:
        """What lies in the folder.

        Raises:
            OSError: the address cannot be reached, or is no folder.
        """
        self.fs.invalidate_cache()
        with reaching(self.address):
            if not self.fs.exists(self.path):
                return set()
            if not self.fs.isdir(self.path):
                raise ValueError(f"{self.address} is a file; --out is a folder")
            return {entry.rstrip("/").rpartition("/")[2] for entry in self.fs.ls(self.path, detail=False)}

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other runs of this machine, or of those that share the folder, out of it; a store has no locks.

        Raises:
            InUse: another run works there; the text names it.
            FileExistsError: the folder holds something else.
            OSError: it cannot be reached, or written.
        """
        self._check_ours()
        with contextlib.nullcontext() if is_remote(self.address) else runs.run_lock(self.path):
            yield

    def _check_ours(self) -> None:
        names = self.names()
        if RECORD not in names and any(not name.startswith(".") for name in names):  # drafts of a killed run, its lock
            raise FileExistsError(f"{self.address} holds files that `score` did not write; take another --out")

    def begin(self, record: dict[str, Any], same: Iterable[str]) -> None:
        """Take the folder into use, or go on with what a run by the same networks began there.

        Args:
            record: what is to be known of this run.
            same: its entries that have to be as they were.

        Raises:
            FileExistsError: the folder holds something else.
            ValueError: an entry differs; the text says which.
        """
        before = self.record()
        if before is None:
            self._check_ours()
            self.put(RECORD, json.dumps(record, indent=1).encode())
        elif before.get("networks") != record["networks"]:
            raise ValueError(f"{self.address} was scored by other networks, {before.get('model')}; take another --out")
        elif others := [name for name in same if before.get(name) != record[name]]:
            differ = " and ".join(f"{name.replace('_', ' ')} {before.get(name)}, not {record[name]}" for name in others)
            raise ValueError(f"{self.address} was scored with {differ}; take another --out")

    def record(self) -> dict[str, Any] | None:
        """What is known of the run that began the folder, or None where there was none.

        Raises:
            OSError: the address cannot be reached.
            ValueError: the record is damaged.
        """
        with reaching(f"{self.address}/{RECORD}"):
            if (text := self.read(RECORD)) is None:
                return None
            try:
                return dict(json.loads(text))
            except (ValueError, TypeError):
                raise ValueError(f"{self.address}/{RECORD} is damaged; take another --out") from None

    def put(self, name: str, data: bytes, lasting: bool = True) -> None:
        """Write a file so that nobody ever sees half of it; one that is there is replaced.

        Args:
            lasting: it must survive the machine's sudden end too.
        """
        target = f"{self.path}/{name}"
        if not is_remote(self.address):
            os.makedirs(self.path, exist_ok=True)
            draft = f"{self.path}/.{name}.{uuid.uuid4().hex[:8]}"
            try:
                with open(draft, "wb") as file:
                    file.write(data)
                    if lasting:
                        file.flush()
                        os.fsync(file.fileno())
                os.replace(draft, target)
            except BaseException:
                if os.path.exists(draft):
                    os.unlink(draft)
                raise
            return
        with reaching(f"{self.address}/{name}"):
            if is_store(self.fs):
                self.fs.pipe_file(target, data)
                return
            self.fs.makedirs(self.path, exist_ok=True)
            draft = f"{self.path}/.{name}.{uuid.uuid4().hex[:8]}"
            self.fs.pipe_file(draft, data)
            self.fs.mv(draft, target)

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        self.fs.invalidate_cache()
        with reaching(self.address):
            return self.fs.exists(f"{self.path}/{name}")

    def read(self, name: str) -> bytes | None:
        """A file's content, or None where there is none."""
        try:
            return self.fs.cat_file(f"{self.path}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(f"{self.path}/{name}")

    def counts(self, names: Iterable[str]) -> Iterator[tuple[str, int, int]]:
        """Name, rows and refused rows of parts, from their footers.

        Raises:
            OSError: one cannot be read, or is no part.
        """
        with ThreadPoolExecutor(READERS) as pool:
            yield from pool.map(self._counted, sorted(names))

    def _counted(self, name: str) -> tuple[str, int, int]:
        with reaching(f"{self.address}/{name}"), self.fs.open(f"{self.path}/{name}", "rb") as file:
            footer = parquet.ParquetFile(file).metadata
            column = footer.schema.names.index("error")
            groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
            empty = sum(group.column(column).statistics.null_count for group in groups)
            return name, footer.num_rows, footer.num_rows - empty


def is_store(fs: Any) -> bool:
    """Whether a file system shows an object only when all of it is there."""
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return any(one in WHOLE for one in protocols)


def part_name(unit: int, key: str, part: int, last: bool) -> str:
    """The name of the file with a part of a unit; the last part says that it is."""
    return f"part-{unit:06}-{key}-{part:04}{'-last' if last else ''}.parquet"


def begun(names: Iterable[str]) -> dict[int, str]:
    """Number and key of the units that have parts."""
    return {int(found[1]): found[2] for name in names if (found := NAME.fullmatch(name))}


def finished(names: Iterable[str]) -> set[int]:
    """Numbers of the units that have all their parts."""
    parts, last = defaultdict(set), {}
    for name in names:
        if found := NAME.fullmatch(name):
            parts[int(found[1])].add(int(found[3]))
            if found[4]:
                last[int(found[1])] = max(int(found[3]), last.get(int(found[1]), 0))
    return {unit for unit, end in last.items() if parts[unit] == set(range(end + 1))}


def table(verdicts: list[Verdict], classes: list[str]) -> bytes:
    """A Parquet file with one row an image; the values of one that was refused are null, but for path and error."""
    schema = pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            ("is_fake", pa.bool_()),
            ("p_fake", pa.float64()),
            ("source", pa.string()),
            *((f"p_{name}", pa.float64()) for name in classes),
            ("candidates", pa.list_(pa.string())),
            ("crops", pa.int32()),
            ("crop_std", pa.float64()),
            ("error", pa.string()),
        ]
    )
    rows = [
        {name: getattr(one, name, None) for name in schema.names}
        | {f"p_{name}": (one.p_source or {}).get(name) for name in classes}
        for one in verdicts
    ]
    parquet.write_table(pa.Table.from_pylist(rows, schema), buffer := BytesIO(), compression="zstd")
    return buffer.getvalue()
