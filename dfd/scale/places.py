"""Addresses on any file system that fsspec knows: a path here, s3://bucket/key, https://…; and what lies below one."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fsspec.core import url_to_fs

from dfd.data.layouts import printable

ENVIRONMENT = ("AWS_", "FSSPEC_", "GOOGLE_", "AZURE_", "HF_")  # variables that say how to reach a file system


def is_remote(address: str) -> bool:
    """Whether an address names a file system; all others are paths here, whatever is in them."""
    return re.match(r"[a-z][a-z0-9+.-]*(://|::)", address) is not None


def absolute(address: str) -> str:
    """The address as a process in another working directory can use it."""
    if address.startswith("file://"):
        return located(address)[1]
    return address if is_remote(address) else os.path.abspath(address)


def located(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path there.

    Raises:
        ValueError: the address has a protocol that is not known, or whose package is missing.
    """
    try:
        return url_to_fs(address if is_remote(address) else os.path.abspath(address))
    except (ImportError, ValueError) as error:
        raise ValueError(f"{address}: {error}") from error


def matching(pattern: str) -> list[str]:
    """The addresses that a pattern stands for, by name; none where it is the name of something, or no pattern.

    Raises:
        FileNotFoundError: nothing matches.
    """
    if not glob.has_magic(pattern):
        return []
    if not is_remote(pattern):
        if os.path.lexists(pattern):
            return []
        found = [one for one in glob.glob(pattern, recursive=True) if not (os.path.isdir(one) and "**" in pattern)]
    else:
        fs, path = located(pattern)
        found = [_respelled(pattern, one) for one in fs.glob(path)]
    if not found:
        raise FileNotFoundError(f"no file matches {pattern}")
    return sorted(found)


def below(folder: str) -> Iterator[tuple[str, int | None, str | None]]:
    """All files below a folder, by name, with the names of one folder at a time in memory.

    Yields:
        Address, spelled like the folder's; bytes where the listing says so; and None, or the reason for which a folder
        cannot be listed.
    """
    if is_remote(folder):
        fs, path = located(folder)
        yield from _below_there(fs, path, folder)
    else:
        yield from _below_here(folder, ())


def _below_here(folder: str, above: tuple) -> Iterator[tuple[str, int | None, str | None]]:
    try:
        status = os.stat(folder)
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        yield folder, None, f"unreadable folder: {error.strerror}"
        return
    identity = status.st_dev, status.st_ino
    if identity in above:  # a link back up
        return
    for entry in entries:
        if os.path.isdir(entry.path):  # a link in a circle is none, where the entry's own is_dir raises
            yield from _below_here(entry.path, (*above, identity))
        else:
            yield entry.path, None, None


def _below_there(fs: Any, folder: str, address: str) -> Iterator[tuple[str, int | None, str | None]]:
    try:
        entries = sorted(fs.ls(folder, detail=True), key=lambda entry: entry["name"])
    except Exception as error:  # each file system has its own
        yield _respelled(address, folder), None, f"unreadable folder: {why(error)}"
        return
    for entry in entries:
        name = entry["name"].rstrip("/")
        if not name.startswith(folder.rstrip("/") + "/"):
            continue  # the mark that some stores keep for the folder itself
        if entry["type"] == "directory":
            yield from _below_there(fs, name, address)
        else:
            yield _respelled(address, name), entry.get("size"), None


def _respelled(address: str, path: str) -> str:
    """A path on the file system of an address, as an address of its own."""
    first, *rest = address.split("::")  # zip://inner::s3://bucket/outer.zip
    protocol = first.split("://")[0]
    return "::".join([path if "://" in path else f"{protocol}://{path}", *rest])


@contextmanager
def reaching(address: str) -> Iterator[None]:
    """Turn whatever a file system raises into one line with the address: FileNotFoundError, or OSError."""
    try:
        yield
    except FileNotFoundError as error:
        if str(error).startswith("no "):  # said already
            raise
        raise FileNotFoundError(f"no such file or folder: {address}") from error
    except Exception as error:
        if type(error) is ValueError:
            raise
        raise OSError(f"{address} cannot be used: {why(error)}") from error


def why(error: BaseException) -> str:
    """The reason that an error gives, in one line."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.strerror:
        return printable(" ".join(error.strerror.split()))
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
