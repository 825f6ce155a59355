"""Files that are whole or not there: written under another name, put on disk, then renamed."""

import base64
import contextlib
import errno
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

TEMPLATES = Path(__file__).parents[1] / "templates"
tell_once = cache(print)  # a line that several parts of a process have to say
PART = ".part"  # what a file's name ends in while it is being written
GONE = "The folder is gone; bring it back and run the same command again"
NO_SPACE = "disk full; free some space and run again, what is done is kept"
CLOSED = "File or folder cannot be written, or is held by another program; mend that, or choose another, and run again"
REMEDIES = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), NO_SPACE)  # the last: above the limit for a file
REMEDIES |= dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), CLOSED)
SHOWS = {"app", "plots", "reports", "cli.py"}  # parts of the package that no number follows from


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a name to write to, which becomes the path's if all goes well; else the old file stays. See `explained`."""
    path = Path(path)
    draft = path.with_name(path.name + PART)
    if (path.exists() and not path.is_file()) or draft.is_symlink():
        raise OSError(f"{path} is no regular file, which it would take the place of; take another name")
    try:
        yield draft
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
    remedy = GONE if error.errno == errno.ENOENT and not path.parent.is_dir() else REMEDIES.get(error.errno or 0)
    is_of_path = error.filename in (None, str(path), str(path) + PART, str(path.parent))
    return OSError(error.errno, remedy, str(path)) if remedy and is_of_path else error


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file, an object; empty when there is none. A damaged one is a ValueError that names it."""
    try:
        content = json.loads(path.read_text("utf-8")) if path.exists() else {}
        if not isinstance(content, dict):
            raise ValueError("no object")
    except ValueError as error:
        raise ValueError(damaged(path, error)) from error
    return content


def read_table(path: str | Path, **options: Any) -> Any:
    """A Parquet or CSV file, as pandas reads it; a damaged one is a ValueError that names it."""
    import pandas as pd  # here: most commands that read JSON need no tables

    try:
        return (pd.read_csv if Path(path).suffix == ".csv" else pd.read_parquet)(path, **options)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # pyarrow's own are both
        raise ValueError(damaged(path, error)) from error


def damaged(path: str | Path, error: Exception) -> str:
    """The line about a file of ours that was cut short or written by something else."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    reason = reason.replace(f"Could not open Parquet input source '{path}': ", "")
    return f"{path} is damaged ({reason.partition('. ')[0]}); take a copy, or delete it, and run again what makes it"


def cache_folder() -> Path:
    """Where things are kept that can be made again: $DFD_CACHE, or ~/.cache/dfd."""
    need_home()
    return Path(os.environ.get("DFD_CACHE") or "~/.cache/dfd").expanduser()


def need_home() -> None:
    """Give a user whose home is missing or cannot be written one in the temporary folder; libraries ask for it too."""
    with contextlib.suppress(RuntimeError):  # neither HOME nor an entry in passwd
        if os.access(Path.home(), os.W_OK):
            return
    user = os.getuid() if os.name == "posix" else 0  # Windows has a temporary folder for each user
    folder = Path(tempfile.gettempdir()) / f"dfd-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != user:  # another user's, and what lies in it too
        raise OSError(f"{folder} is another user's; set HOME to a folder of your own")
    print(f"There is no home that can be written to: {folder} is used.", file=sys.stderr)
    os.environ["HOME"] = str(folder)


def printable(value: Any, but: str = "") -> str:
    """Text with its line breaks and control characters `but` these written out, which does nothing to a terminal."""
    return "".join(char if char.isprintable() or char in but else ascii(char)[1:-1] for char in str(value))


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def code(but: frozenset[str] = frozenset(SHOWS)) -> str:
    """A digest of dfd's code `but` for some parts: what it made is its own, and a version stands for many commits."""
    root, but = TEMPLATES.parent, but | {"__pycache__", ".ipynb_checkpoints"}
    files = (path for path in sorted(root.rglob("*.py*")) if but.isdisjoint(path.relative_to(root).parts))
    return digest(*map(sha256_of, files))


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> Path:
    """Write a text file whole or not at all; see atomic_write."""
    with atomic_write(path) as draft:
        draft.write_text(text, "utf-8", "backslashreplace", newline="")  # pandas has put in the system's line ends
    return path


@cache
def template(name: str) -> Any:
    """One of the package's Jinja templates; what is filled into those for HTML is escaped. `hash` is for scripts."""
    import jinja2  # here: most of what writes files fills no template

    loader, escape = jinja2.FileSystemLoader(TEMPLATES), jinja2.select_autoescape(["html.j2"])
    pages = jinja2.Environment(loader=loader, autoescape=escape, trim_blocks=True, undefined=jinja2.StrictUndefined)
    pages.filters["printable"] = printable
    pages.filters["hash"] = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return pages.get_template(name)


def digest(*values: Any) -> str:
    """Name JSON's values, bytes, paths, arrays and tensors by content, in 16 hex digits, whatever the order of keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=_plain).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if hasattr(value, "detach"):  # a tensor, of types also that numpy lacks
        return str(value.dtype), value.detach().cpu().double().numpy()
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist() if value.dtype == object else (value.dtype.str, value.shape, value.tobytes())
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else os.fspath(value)
