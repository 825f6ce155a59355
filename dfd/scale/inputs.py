"""Where the images of `python -m dfd score` come from: folders, lists, tables and shards, cut into units of work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dfd.data.layouts import SUFFIXES, printable
from dfd.scale.places import absolute, below, is_remote, located, matching, reaching
from dfd.scale.units import Files, Item, Rows, Shard, Unit, parquet_file

IMAGES = tuple(sorted(SUFFIXES))
SHARDS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
KINDS = {"shard": SHARDS, "table": (".parquet", ".pq"), "list": (".txt", ".lst", ".list"), "image": IMAGES}
COLUMNS = ("path", "url", "image", "file", "file_name", "bytes")  # looked for in this order where none is named


@dataclass(frozen=True)
class Inputs:
    """All that is to be scored, not yet listed.

    Args:
        addresses: folders, patterns, images, lists (.txt), tables (.parquet) and shards (.tar), here or remote.
        column: of the tables: paths, or bytes; none looks for one of COLUMNS.
        names: column of the tables that says what the images are called, where the other one holds bytes.
        root: what relative paths of lists and tables are relative to; none is the working directory.
    """

    addresses: tuple[str, ...]
    column: str | None = None
    names: str | None = None
    root: str | None = None

    def checked(self) -> Inputs:
        """The same with patterns resolved, after a look at each address.

        Raises:
            FileNotFoundError: an address where nothing is, a pattern that matches nothing, a folder without images.
            ValueError: a table without a column that can be used, or a file system that is not known or installed.
            OSError: an address that cannot be reached.
        """
        found = []
        for given in self.addresses:
            with reaching(given):
                address = absolute(given) if given.startswith("file://") else given
                for one in matching(address) or [address]:
                    self._look_at(one)
                    found.append(one)
        return Inputs(tuple(found), self.column, self.names, self.root and absolute(self.root))

    def _look_at(self, address: str) -> None:
        kind, (fs, path) = kind_of(address), located(address)
        if kind == "folder":
            if next(_images_below(address), None) is None:
                hint = "lists and tables are read when they are named, as in 'folder/*.parquet'"
                raise FileNotFoundError(f"no images and no shards (.tar) below {address}; {hint}")
        elif not (address.lower().endswith(IMAGES) or fs.exists(path)):  # an image that is missing gets a row instead
            raise FileNotFoundError(f"no such file or folder: {address}")
        elif kind == "table":
            with parquet_file(address) as file:
                self._column(file.schema_arrow, address)

    def units(self, size: int) -> Iterator[Unit]:
        """Cut all that there is to score into units, in an order that is the same each time.

        Args:
            size: files in a unit. A shard is one, whatever it holds; row groups are taken until they have so many rows.

        Raises:
            OSError: a list or table that cannot be read.
            ValueError: a table without a column that can be used.
        """
        files: list[Item] = []
        for one in self._entries(size):
            if not isinstance(one, Item):
                yield one
                continue
            files.append(one)
            if len(files) == size:
                yield Files(tuple(files))
                files = []
        if files:
            yield Files(tuple(files))

    def _entries(self, size: int) -> Iterator[Item | Unit]:
        for address in self.addresses:
            with reaching(address):
                match kind_of(address):
                    case "folder":
                        yield from _images_below(address)
                    case "list":
                        yield from self._lines(address)
                    case "table":
                        yield from self._rows(address, size)
                    case _:
                        yield _image_or_shard(address)

    def _lines(self, address: str) -> Iterator[Item | Unit]:
        fs, path = located(address)
        with fs.open(path, "rt", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                if text := line.rstrip("\r\n"):
                    yield self._named(text)

    def _rows(self, address: str, size: int) -> Iterator[Item | Unit]:
        name = printable(address)
        with parquet_file(address) as file:
            column = self._column(file.schema_arrow, address)
            if _holds_paths(file.schema_arrow.field(column).type):
                texts = (text for part in file.iter_batches(4096, columns=[column]) for text in part[0].to_pylist())
                for row, text in enumerate(texts):
                    yield self._named(text) if text else Item(f"{name}/{row}", reason="no address in this row")
                return
            groups, first, rows = [], 0, 0
            for group in range(file.num_row_groups):
                groups.append(group)
                rows += file.metadata.row_group(group).num_rows
                if rows >= size or group == file.num_row_groups - 1:
                    yield Rows(name, absolute(address), column, self.names, tuple(groups), first)
                    groups, first, rows = [], first + rows, 0

    def _named(self, text: str) -> Item | Unit:
        is_full = is_remote(text) or os.path.isabs(text) or not self.root
        return _image_or_shard(text if is_full else f"{self.root.rstrip('/')}/{text}", name=text)

    def _column(self, schema: Any, address: str) -> str:
        has, hint = f"it has {', '.join(schema.names)}", "name one with --column"
        for name in filter(None, (self.column, self.names)):
            if name not in schema.names:
                raise ValueError(f"{address} has no column {name!r}; {has}")
        column = self.column or next((name for name in COLUMNS if name in schema.names), None)
        if column is None:
            raise ValueError(f"{address} has none of the columns {', '.join(COLUMNS)}; {has}: {hint}")
        kind = schema.field(column).type
        if not (_holds_paths(kind) or _holds_bytes(kind)):
            raise ValueError(f"column {column!r} of {address} holds {kind}, neither paths nor bytes of images; {hint}")
        return column


def kind_of(address: str) -> str:
    """folder, shard, table, list or image: by the name, and where that says nothing by a look."""
    if not is_remote(address) and os.path.isdir(address):
        return "folder"
    for kind, suffixes in KINDS.items():
        if address.lower().endswith(suffixes):
            return kind
    fs, path = located(address)
    return "folder" if is_remote(address) and fs.isdir(path) else "image"


def _images_below(folder: str) -> Iterator[Item | Unit]:
    for address, size, reason in below(folder):
        if reason:
            yield Item(printable(address), reason=reason)
        elif address.lower().endswith((*IMAGES, *SHARDS)):
            yield _image_or_shard(address, size=size)


def _image_or_shard(address: str, name: str | None = None, size: int | None = None) -> Item | Unit:
    name = printable(address if name is None else name)
    is_shard = address.lower().endswith(SHARDS)
    return Shard(name, absolute(address)) if is_shard else Item(name, absolute(address), size)


def _holds_paths(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
