"""Units of work for `python -m dfd score`, and how a worker gets at the images in one."""

from __future__ import annotations

import hashlib
import tarfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from PIL import Image

from dfd.core.images import MAX_BYTES, ImageError, checked_bytes, load_rgb
from dfd.data.layouts import SUFFIXES, printable
from dfd.scale.places import is_remote, located, why

FETCHES = 8  # files of a remote system that are fetched at a time
LARGE = 16_000_000  # bytes; a larger file is fetched when its turn comes and not before
ROWS = 16  # of a table with images in it that are read at a time
HEADER = 1 << 20  # bytes that the long name of a file in an archive may take
SPECIAL = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME)
SPECIAL = (*SPECIAL, tarfile.GNUTYPE_LONGLINK)  # entries that tarfile reads whole


@dataclass
class Item:
    """One image: what it is called in the output, and how to get at it."""

    name: str
    address: str = ""
    size: int | None = None  # bytes, where a listing says so
    data: bytes | None = field(default=None, repr=False)
    reason: str | None = None  # why there is nothing to read
    place: tuple[Any, str] | None = field(default=None, repr=False)  # file system and path, in the process that reads

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Files:
    """Images that are files of their own."""

    files: tuple[Item, ...]

    def key(self) -> str:
        """A short name for just these images."""
        return _key(*(one.address or one.name for one in self.files))

    def items(self) -> Iterator[Item]:
        """The images; those of a remote file system are fetched ahead."""
        waiting = deque()
        with ThreadPoolExecutor(FETCHES) as pool:
            for one in self.files:
                waiting.append((one, pool.submit(_fetch, one) if _find(one) else None))
                if len(waiting) > FETCHES:
                    yield _arrived(*waiting.popleft())
            while waiting:
                yield _arrived(*waiting.popleft())


@dataclass(frozen=True)
class Shard:
    """The images in a tar archive, as WebDataset packs them."""

    name: str
    address: str

    def key(self) -> str:
        """A short name for this shard."""
        return _key(self.address)

    def items(self) -> Iterator[Item]:
        """The images, in one go through the archive; what has no image's name, a caption say, is passed over.

        An archive that is none, or damaged, or without images ends in an item with the reason.
        """
        found = 0
        try:
            fs, path = located(self.address)
            with fs.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=_Header) as archive:
                for member in archive:
                    if not member.isdir() and member.name.lower().endswith(tuple(SUFFIXES)):
                        yield self._member(archive, member)
                        found += 1
                    archive.members = []  # tarfile remembers them all
        except Exception as error:  # the file system's own, tarfile's, and those of three decompressors
            damaged = isinstance(error, tarfile.TarError | EOFError)
            what = "damaged" if found else "not a tar archive, or damaged"
            where = f"after {found} images" if found else "from the beginning"
            yield Item(self.name, reason=f"{what if damaged else 'cannot be read'} {where}: {why(error)}")
            return
        if not found:
            yield Item(self.name, reason=f"no images in this archive (none of {', '.join(sorted(SUFFIXES))})")

    def _member(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> Item:
        name = printable(f"{self.name}/{member.name.removeprefix('./')}")
        if not member.isfile():
            return Item(name, reason="not a regular file (a link or device in the archive)")
        try:
            checked_bytes(member.size)
        except ImageError as error:
            return Item(name, reason=str(error))
        return Item(name, size=member.size, data=archive.extractfile(member).read())


class _Header(tarfile.TarInfo):
    """Refuses a damaged header, which tarfile takes for the end of the archive, and one that would fill the memory."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.EmptyHeaderError:
            raise tarfile.ReadError("ends without its end mark, as a copy that was cut short does") from None
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None

    @classmethod
    def frombuf(cls, buffer: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        header = super().frombuf(buffer, encoding, errors)
        if header.type in SPECIAL and header.size > HEADER:
            raise tarfile.ReadError(f"a name of {header.size / 1e6:.0f} MB")
        return header


@dataclass(frozen=True)
class Rows:
    """The images whose bytes stand in a column of some row groups of a Parquet file."""

    name: str
    address: str
    column: str
    names: str | None  # column that says what the images are called; none takes the number of the row
    groups: tuple[int, ...]
    first: int  # number of the first row in the file

    def key(self) -> str:
        """A short name for these rows."""
        return _key(self.address, self.column, str(self.names), repr(self.groups))

    def items(self) -> Iterator[Item]:
        """The images, some rows at a time; a file that breaks off ends in an item with the reason."""
        row = self.first
        try:
            with parquet_file(self.address) as file:
                columns = [self.column, *([self.names] if self.names else [])]
                for batch in file.iter_batches(ROWS, row_groups=list(self.groups), columns=columns):
                    values = batch.column(self.column).to_pylist()
                    called = batch.column(self.names).to_pylist() if self.names else [None] * len(values)
                    for value, name in zip(values, called, strict=True):
                        yield self._row(f"{self.name}/{row}" if name is None else printable(str(name)), value)
                        row += 1
        except Exception as error:  # pyarrow's and the file system's own
            yield Item(self.name, reason=f"cannot be read from row {row} on: {why(error)}")

    def _row(self, name: str, value: Any) -> Item:
        value = value.get("bytes") if isinstance(value, dict) else value  # Hugging Face's image column
        return Item(name, reason="no bytes in this row") if value is None else Item(name, size=len(value), data=value)


Unit: TypeAlias = Files | Shard | Rows


@contextmanager
def parquet_file(address: str) -> Iterator[Any]:
    """Open a Parquet file so that no more than the rows that are asked for come into memory."""
    from pyarrow import parquet

    fs, path = located(address)
    with fs.open(path, "rb") as file:
        yield parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)


def load(item: Item) -> Image.Image:
    """Read an item as an upright RGB image; its bytes are let go of.

    Raises:
        ImageError: the reason, without a name.
    """
    if item.data is None and item.reason is None and _find(item):
        _fetch(item, its_turn=True)
    if item.reason:
        raise ImageError(item.reason)
    source, item.data = item.address if item.data is None else item.data, None
    try:
        return load_rgb(source)
    except ImageError as error:
        raise ImageError(str(error).removeprefix(f"{item.address}: ").removeprefix("the given bytes: ")) from error


def _find(item: Item) -> bool:
    """Whether an item has to be fetched; finds its file system, which fsspec makes anew for each thread that asks."""
    if is_remote(item.address) and item.place is None:
        try:
            item.place = located(item.address)
        except ValueError as error:
            item.reason = f"cannot be read: {why(error)}"
    return item.place is not None


def _fetch(item: Item, its_turn: bool = False) -> None:
    """Get the bytes of a remote file, or the reason why not; ahead of its turn only if they are known to be few."""
    fs, path = item.place
    try:
        if item.size is None:
            item.size = fs.info(path).get("size")
        if item.size is not None:
            checked_bytes(item.size)
            if its_turn or item.size <= LARGE:
                item.data = fs.cat_file(path) if item.size else b""
        elif its_turn:  # a server that does not say
            with fs.open(path, "rb") as file:
                item.data = file.read(MAX_BYTES + 1)
    except ImageError as error:
        item.reason = str(error)
    except Exception as error:  # each file system has its own
        item.reason = f"cannot be read: {why(error)}"


def _arrived(item: Item, future: Any) -> Item:
    if future is not None:
        future.result()
    return item


def _key(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
