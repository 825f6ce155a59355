"""One table of all images in a data folder: checked, grouped, split; everything downstream starts from it."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import sqlite3
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

from dfd.config import REAL
from dfd.core import images, runs
from dfd.core.io import NO_SPACE, atomic_write
from dfd.core.runs import bar
from dfd.data import layouts, provenance
from dfd.data import splits as splits_module
from dfd.data.layouts import Found, ManifestError

__all__ = ["ManifestError", "scan", "load", "summary", "digest", "REAL"]
COLUMNS = (
    "path label is_fake group split width height format jpeg_quality sha256".split()  # the contract, in its order
    + "subsampling bytes phash".split()  # for the format audit and the grouping
)
COMMIT_SECONDS = 5.0  # what a killed scan loses at most
PART = 16  # files that a thread takes at a time at most


def scan(
    folder: str | Path,
    out: str | Path | None = None,
    seed: int = 0,
    val_fraction: float = 0.2,
    test_fraction: float = 0.2,
    group_by: str = "",
    hold_out: Sequence[str] = (),
    workers: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """List, check, group and split the images of a folder, which is only ever read.

    Files that have not changed since the last scan (size and time) are not decoded again; images keep the split that
    an earlier scan with the same seed and fractions drew for them. See `dfd.data.layouts` for the layouts, `dfd.core.images` for
    the checks, `dfd.data.splits` for groups. A file groups.csv (columns path, group) in the folder ties images together.

    Args:
        folder: data folder, in any of the layouts.
        out: where to write manifest.parquet, manifest.csv and rejected.csv; nothing is written if None.
        seed: of the split.
        val_fraction, test_fraction: shares of the images, each in (0, 1), together below 1. Splits that the folder
            already has are kept, and only missing ones are drawn, from train.
        group_by: column of provenance.csv, source for instance; whole values of it then make the test split (see
            `dfd.data.provenance`), whatever an earlier scan drew. Off if empty.
        hold_out: the values that do; chosen to meet test_fraction if empty.
        workers: decoding threads (Pillow decodes outside Python's lock: on two cores threads were no slower than
            processes for images of 256 px); as many as there are cores if None.
        progress: show a bar.

    Returns:
        One row per image that passed, sorted by path, columns COLUMNS: path relative to the folder; is_fake bool; width
        and height in pixels, upright; jpeg_quality 1 to 100 or NaN; with group_by also source, the value of that
        column. `attrs`: root, layout, rejected (path, reason).

    Raises:
        ManifestError: no usable folder, a class without a readable image, or a provenance table that does not fit.
        InUse: a run is at work in out.
        OSError: the disk is full.
    """
    root = Path(os.path.realpath(Path(folder).expanduser()))
    if out is not None and Path(os.path.realpath(Path(out).expanduser())).is_relative_to(root):
        raise ManifestError(f"out ({out}) lies inside the data folder ({root}), which is never written to")
    if not (0 < val_fraction < 1 and 0 < test_fraction < 1 and val_fraction + test_fraction < 1):
        raise ManifestError(f"val_fraction {val_fraction} and test_fraction {test_fraction} must leave room to train")
    if hold_out and not group_by:
        raise ManifestError("hold_out needs group_by, the column of provenance.csv that its names come from")
    found = layouts.find(root)
    origins = provenance.read(root, group_by) if group_by else None
    print(f"layout: {found.layout}")
    key = f"seed {seed}, val {val_fraction}, test {test_fraction}"
    if group_by:
        key += f", group by {group_by}, hold out {sorted(hold_out)}"
    with ScanCache(root) as cache:
        described = pd.DataFrame(_describe(root, found, cache, workers, progress))
        _need_every_class(found, described)
        if origins is not None:
            described["source"] = provenance.match(described.path, origins)
            described["given"] = provenance.give(described, hold_out, seed, test_fraction)
        earlier = described.sha256.map(cache.splits(key)).astype(object)
        table = _split(_tie(root, described), earlier, found, seed, val_fraction, test_fraction)
        _need_every_class(found, table)
        cache.keep_splits(key, dict(zip(table.sha256, table.split, strict=True)))
    rejected = sorted(found.rejected, key=lambda row: row["path"])
    table.attrs = {"root": str(root), "layout": found.layout, "rejected": rejected}
    for line in _report(table):
        print(line)
    if out is not None:
        out = Path(out).expanduser()
        with runs.run_lock(out):
            write(table, out)
    return table


def load(out: str | Path, data: str | Path | None = None) -> pd.DataFrame:
    """Read the manifest of a run folder.

    Args:
        out: the run folder.
        data: the data folder that it should be about; none takes any.

    Raises:
        FileNotFoundError: there is none yet; the text says how to get it.
        ManifestError: it is about another folder.
    """
    path = Path(out).expanduser() / "manifest.parquet"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run notebook 00_eda or `python -m dfd run` first")
    table = pd.read_parquet(path)
    if data is not None and Path(data).resolve() != Path(table.attrs["root"]).resolve():
        raise ManifestError(f"{path} is about {table.attrs['root']}, not {data}: use another run folder, or run 00_eda")
    return table


def write(table: pd.DataFrame, out: Path) -> None:
    """Write manifest.parquet, manifest.csv and rejected.csv, each whole or not at all."""
    rejected = pd.DataFrame(table.attrs["rejected"], columns=["path", "reason"])
    out.mkdir(parents=True, exist_ok=True)
    for name, save in (
        ("manifest.parquet", lambda path: table.to_parquet(path, index=False)),
        ("manifest.csv", lambda path: table.to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC)),
        ("rejected.csv", lambda path: rejected.to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC)),
    ):
        with atomic_write(out / name) as draft:
            save(draft)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Count each class: images, groups, splits, formats, median size, and how rare it is beside the largest.

    Returns:
        One row per label, real photos first; imbalance is the largest class's number of images over this one's.
    """
    rows = {}
    for label, part in sorted(table.groupby("label"), key=lambda item: (item[0] != REAL, item[0])):
        counts = part.split.value_counts()
        rows[label] = {
            "images": len(part),
            "groups": part.group.nunique(),
            **{split: int(counts.get(split, 0)) for split in splits_module.SPLITS},
            "formats": ", ".join(f"{name} {count}" for name, count in part.format.value_counts().items()),
            "median size": f"{part.width.median():.0f} x {part.height.median():.0f}",
        }
    result = pd.DataFrame.from_dict(rows, orient="index").rename_axis("label")
    return result.assign(imbalance=(result.images.max() / result.images).round(2))


def digest(table: pd.DataFrame) -> str:
    """Name a manifest by its content, in any row order: 16 hexadecimal digits over path, label, split and sha256."""
    rows = table[["path", "label", "split", "sha256"]].sort_values("path")
    return hashlib.sha256(rows.to_json(orient="values").encode()).hexdigest()[:16]


def _describe(root: Path, found: Found, cache: ScanCache, workers: int | None, progress: bool) -> list[dict[str, Any]]:
    """Describe each good file, from the cache or by decoding; bad ones go to found.rejected."""

    def look(path: str) -> dict[str, Any]:
        try:
            return images.inspect(root / path)
        except images.ImageError as error:
            # what the system refused may be allowed tomorrow, without the file changing
            return {"error": str(error), "passing": bool(getattr(error.__cause__, "errno", None))}

    descriptions = cache.files(found.stamps)
    new = [path for path, *_ in found.files if path not in descriptions]
    ready: deque[tuple[str, dict[str, Any]]] = deque()  # filled by the threads, file by file
    fresh: dict[str, tuple[int, int, dict[str, Any]]] = {}  # not yet on disk
    last = time.monotonic()

    def look_at(part: list[str]) -> None:
        ready.extend((path, look(path)) for path in part)

    def keep() -> int:
        rows = [ready.popleft() for _ in range(len(ready))]
        descriptions.update(rows)
        fresh.update({path: (*found.stamps[path], seen) for path, seen in rows if not seen.get("passing")})
        return len(rows)

    threads = workers or os.cpu_count()
    step = max(1, min(PART, len(new) // (8 * threads)))
    pool = ThreadPoolExecutor(threads)
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # about odd metadata; what matters is raised
            bar(None, total=len(new), desc="images", disable=not (progress and new)) as shown,
        ):
            for _ in pool.map(look_at, [new[i : i + step] for i in range(0, len(new), step)]):
                shown.update(keep())
                if time.monotonic() - last > COMMIT_SECONDS:
                    cache.keep_files(fresh)
                    fresh.clear()
                    last = time.monotonic()
    finally:
        pool.shutdown(cancel_futures=True)
        keep()
        cache.keep_files(fresh)
    found.rejected += [
        {"path": path, "reason": descriptions[path]["error"]}
        for path, *_ in found.files
        if "error" in descriptions[path]
    ]
    return [
        {"path": path, "label": label, "given": split, **descriptions[path]}
        for path, label, split in found.files
        if "error" not in descriptions[path]
    ]


def _need_every_class(found: Found, table: pd.DataFrame) -> None:
    """Stop where a class has nothing to offer, with the first reasons."""
    if REAL not in found.labels:
        raise ManifestError(f"no {REAL}: the layout was read as {found.layout}, but it holds no real images")
    if len(found.labels) < 2:
        raise ManifestError(f"no generator: beside {REAL} there must be at least one folder of fakes")
    for label in found.labels:
        if len(table) == 0 or not (table.label == label).any():
            paths = {path for path, of, _ in found.files if of == label}
            rows = [row for row in found.rejected if row["path"] in paths or f"/{label}/" in f"/{row['path']}/"]
            reasons = "".join(f"\n  {row['path']}: {row['reason']}" for row in rows[:3]) or " (it is empty)"
            raise ManifestError(f"class {label} has no readable image{reasons}")


def _tie(root: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Add the column tied from groups.csv, where there is one."""
    path = root / "groups.csv"
    if not path.exists():
        return table
    try:
        sidecar = pd.read_csv(path, dtype=str, keep_default_na=False)
        ties = dict(zip(sidecar["path"], sidecar["group"], strict=True))
    except (KeyError, ValueError, OSError) as error:
        raise ManifestError(f"{path} must be a CSV file with the columns path and group ({error})") from error
    tied = table.path.map(ties)
    if ties and tied.isna().all():
        print("groups.csv names none of the images; its paths must be relative to the data folder")
    return table.assign(tied=tied)


def _split(
    table: pd.DataFrame, earlier: pd.Series, found: Found, seed: int, val_fraction: float, test_fraction: float
) -> pd.DataFrame:
    """Group and split the described images, and bring the columns into order."""
    given = table.given.astype(object).where(table.given.notna(), None)
    held = set(given) & {"val", "test"}  # splits that folders or sources give, into which nothing is drawn
    stays = given.isin(held) | (given == "train") & (len(held) == 2)
    fixed = given.where(stays, earlier.mask(earlier.isin(held) & given.notna()))
    fixed = fixed.where(fixed.notna(), None)
    group, dropped = splits_module.separate(table, given, fixed)
    found.rejected += [{"path": table.path[row], "reason": reason} for row, reason in dropped.items()]
    table = table.loc[group.index].assign(group=group, is_fake=lambda rows: rows.label != REAL)
    table["jpeg_quality"] = table.jpeg_quality.astype(float)
    given, fixed = given[group.index], fixed[group.index]
    by_source = "source" in table
    assign = provenance.assign if by_source else splits_module.assign
    table["split"] = assign(table, given, fixed, seed, val_fraction, test_fraction).astype(str)
    return table[[*COLUMNS, "source"] if by_source else COLUMNS].sort_values("path", ignore_index=True)


def _report(table: pd.DataFrame) -> Iterator[str]:
    """Say what was found, in a few plain lines."""
    rejected = table.attrs["rejected"]
    reasons = Counter(row["reason"].split(":")[0].split(" image ")[0] for row in rejected)
    details = f" ({', '.join(f'{count} {reason}' for reason, count in reasons.most_common())})" if rejected else ""
    groups = table.group.nunique()
    yield f"{len(table)} images in {groups} groups, {table.label.nunique()} classes; {len(rejected)} rejected{details}"
    counts = table.label.value_counts()
    ratio = counts.max() / counts.min()
    if ratio > 2:
        yield f"imbalance: {counts.index[0]} has {ratio:.1f} times the images of {counts.index[-1]}"
    doubles = (table.groupby("sha256").label.nunique() > 1).sum()
    if doubles:
        yield f"warning: {doubles} images lie byte for byte in more than one class; one of their labels is wrong"
    for line in splits_module.gaps(table):
        yield f"warning: {line}; it has too few groups, or the folders or sources leave it out"


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
