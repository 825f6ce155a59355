"""What earlier scans of a data folder found out, kept outside that folder in one SQLite file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

from dfd.atomic import NO_SPACE

VERSION = 1  # raise it when what `images.inspect` returns changes


class ScanCache:
    """Descriptions by file and splits by content. SQLite commits whole batches, so a killed scan leaves no half one.

    Each batch is written in one go and no transaction stays open, so that scans of one folder may run side by side.

    The file lies in $DFD_CACHE or ~/.cache/dfd and is named after the data folder's path. Deleting it costs a full
    scan, and the memory of which image was in which split. Use as a context manager.

    Raises:
        OSError: the disk is full.
    """

    def __init__(self, root: Path):
        name = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
        folder = Path(os.environ.get("DFD_CACHE") or Path.home() / ".cache" / "dfd")
        self.path = folder / f"scan-{name}-v{VERSION}.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._connect(self.path)
        except (OSError, sqlite3.Error) as error:
            _stop_if_full(error, self.path)
            print(f"cache {self.path} cannot be used ({error}); this scan is not remembered")
            self._connect(":memory:")

    def __enter__(self) -> ScanCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def files(self, stamps: dict[str, tuple[int, int]]) -> dict[str, dict[str, Any]]:
        """Give what was found out about files, by path; those that are new or have changed are left out.

        Args:
            stamps: size and time of each file, by path.
        """
        rows = self.connection.execute("SELECT path, size, mtime, found FROM files")
        return {path: json.loads(text) for path, *stamp, text in rows if stamps.get(path) == tuple(stamp)}

    def keep_files(self, found: dict[str, tuple[int, int, dict[str, Any]]]) -> None:
        """Put descriptions, or errors, on disk, by path: size and time of the file, and what was found."""
        rows = [(path, size, mtime, json.dumps(text)) for path, (size, mtime, text) in found.items()]
        self._write("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)

    def splits(self, key: str) -> dict[str, str]:
        """Give the splits drawn earlier under the same seed and fractions, by sha256."""
        return dict(self.connection.execute("SELECT sha256, split FROM splits WHERE key = ?", (key,)))

    def keep_splits(self, key: str, splits: dict[str, str]) -> None:
        """Put splits on disk, by sha256."""
        self._write("INSERT OR REPLACE INTO splits VALUES (?, ?, ?)", [(key, *item) for item in splits.items()])

    def _connect(self, path: str | Path) -> None:
        self.connection = sqlite3.connect(path, timeout=60)
        try:
            self.connection.execute("CREATE TABLE IF NOT EXISTS files (path PRIMARY KEY, size, mtime, found)")
            self.connection.execute("CREATE TABLE IF NOT EXISTS splits (key, sha256, split, PRIMARY KEY (key, sha256))")
            self.connection.execute(f"PRAGMA user_version = {VERSION}")  # fails here, not later, where none may write
        except sqlite3.Error:
            self.connection.close()
            raise

    def _write(self, command: str, rows: list[tuple]) -> None:
        try:
            with self.connection:
                self.connection.executemany(command, rows)
        except sqlite3.Error as error:
            _stop_if_full(error, self.path)
            raise


def _stop_if_full(error: Exception, path: Path) -> None:
    """Turn any library's words for a full disk into one clear error."""
    if getattr(error, "errno", None) == errno.ENOSPC or "full" in str(error):
        raise OSError(errno.ENOSPC, NO_SPACE, str(path)) from error
