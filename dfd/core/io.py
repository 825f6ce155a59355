"""Files that are whole or not there: written under another name, put on disk, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parents[1] / "templates"
PART = ".part"  # what a file's name ends in while it is being written
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, quota used up, larger than the limit for a file
NO_SPACE = "disk full; free some space and run again, what is done is kept"
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def atomic_write(path: str | Path, sync: bool = True) -> Iterator[Path]:
    """Yield a name to write to, which becomes the path's if all goes well: a kill or a full disk leaves the old file.

    Args:
        path: the file.
        sync: wait until it is on disk; without, a power cut may leave it empty.

    Raises:
        OSError: the disk is full, or the folder is read-only or gone; the text says what to do.
    """
    path = Path(path)
    draft = path.with_name(path.name + PART)
    try:
        yield draft
        if sync:
            with open(draft, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        raise explained(error, path) from error
    finally:
        with contextlib.suppress(OSError):  # the folder is gone, or read-only; the error above says so
            draft.unlink(missing_ok=True)


def explained(error: OSError, path: Path) -> OSError:
    """The error with the file's name and a remedy, where it is a full disk or a folder that cannot be written."""
    if error.filename not in (None, str(path), str(path) + PART, str(path.parent)):
        return error  # of another file
    if error.errno in FULL:
        return OSError(errno.ENOSPC, NO_SPACE, str(path))
    if error.errno in CLOSED:
        text = "The folder cannot be written; make it writable or choose another, and run the command again"
        return OSError(error.errno, text, str(path))
    if error.errno == errno.ENOENT and not path.parent.is_dir():
        return OSError(errno.ENOENT, "The folder is gone; bring it back and run the same command again", str(path))
    return error


def remove_drafts(folder: Path) -> None:
    """Remove what killed runs left half-written in a folder; for the only one that writes there."""
    for draft in folder.glob(f"*{PART}"):
        draft.unlink()


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty when there is none."""
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def write_json(path: Path, content: Any) -> None:
    """Write plain values as JSON; see write_text."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> Path:
    """Write a text file whole or not at all; see atomic_write."""
    with atomic_write(path) as draft:
        draft.write_text(text, "utf-8")
    return path


@cache
def template(name: str) -> jinja2.Template:
    """One of the package's Jinja templates; what is filled into those for HTML is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name)


def digest(*values: Any) -> str:
    """Name values by their content, in 16 hexadecimal digits: the same in every process and on every machine.

    Args:
        values: what JSON knows, bytes, paths, arrays, tensors on any device, sets, and mappings of them, such as a
            state dict; the order of keys does not count, and lists are as tuples.
    """
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=_plain).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """What stands for a value that JSON does not know."""
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, set | frozenset):
        return sorted(map(digest, value))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "detach"):  # a tensor, of types also that numpy lacks
        import torch

        plain = value.detach().cpu().contiguous()
        return str(plain.dtype), tuple(plain.shape), _plain(plain.flatten().view(torch.uint8).numpy().tobytes())
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist() if value.dtype == object else (value.dtype.str, value.shape, _plain(value.tobytes()))
    return dict(value) if isinstance(value, Mapping) else list(value)
