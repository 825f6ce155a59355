"""One table of all images in a data folder: checked, grouped, split; everything downstream starts from it."""

import csv
import json
import os
import sqlite3
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from dfd.config import CHECKPOINTS, REAL
from dfd.core import images, io, runs
from dfd.data import layouts, provenance, splits
from dfd.data.layouts import Listing, ManifestError

COLUMNS = "path label is_fake source group split width height format jpeg_quality sha256".split()  # the contract
COLUMNS += ["subsampling", "bytes", "phash"]  # for the format audit and the grouping
BATCH = 250  # images, which a stopped scan loses at most


def scan(folder: str | Path, out: str | Path | None = None, seed: int = 0, val_fraction: float = 0.2,
         test_fraction: float = 0.2, group_by: str = "", hold_out: Sequence[str] = (),
         progress: bool = True) -> pd.DataFrame:  # fmt: skip
    """List, check, group and split the images of a folder, which is only ever read; manifest and CSVs go to `out`.

    Unchanged files are not decoded again, and images keep the split that an earlier scan with the same seed and
    fractions drew. The folder's groups.csv (path, group) ties images together; splits that it has are kept.
    One row per image that passed, sorted by path, columns COLUMNS: width and height in pixels, upright; jpeg_quality 1
    to 100 or NaN; source if known of all images. `attrs`: root, layout, rejected (path, reason). With `group_by`,
    the column that source is, those of `hold_out` are the test split. ManifestError: the folder; InUse; OSError: cache.
    """
    root = Path(os.path.realpath(Path(folder).expanduser()))
    if out is not None and Path(os.path.realpath(out := Path(out).expanduser())).is_relative_to(root):
        raise ManifestError(f"out ({out}) lies inside the data folder ({root}), which is never written to")
    if not (0 < val_fraction < 1 and 0 < test_fraction < 1 and val_fraction + test_fraction < 1):
        raise ManifestError(f"val_fraction {val_fraction} and test_fraction {test_fraction} must leave room to train")
    if hold_out and not group_by:
        raise ManifestError("hold_out needs group_by, the column of provenance.csv that its names come from")
    listing, origins = layouts.find(root), provenance.read(root, group_by) if group_by else None
    print(f"layout: {listing.layout}")
    draw = f"split seed {seed}, val {val_fraction}, test {test_fraction}"
    draw += f", group by {group_by}, hold out {sorted(hold_out)}" if group_by else ""
    with closing(ScanCache(root)) as cache:
        table = pd.DataFrame(_describe(root, listing, cache, progress))
        _need_every_class(listing, table)
        table["earlier"] = [cache.entries.get(f"{draw} {sha256}") for sha256 in table.sha256]
        if (ties := root / "groups.csv").exists():
            table["tied"], lost = provenance.match(provenance.sidecar(ties, "path", "group", root), table.path)
            if lost := [name for name in lost if name not in listing.stamps]:
                first = f"{len(lost)} files that are not in the data folder, the first is {lost[0]}"
                raise ManifestError(f"{ties} names {first}; write paths relative to the folder, or take out the lines")
            parts = table.groupby(splits.components(table))  # of lines that came since, near-copies too are drawn anew
            table.loc[(parts.tied.transform("count") > 0) & (parts.earlier.transform("nunique") > 1), "earlier"] = None
        if origins is not None:
            provenance.give(table, origins, hold_out)
        table = _split(table, listing, seed, val_fraction, test_fraction)
        _need_every_class(listing, table)
        whole = table[table.groupby("label").split.transform("nunique") == len(splits.SPLITS)]  # others are drawn anew
        cache.store(dict(zip(f"{draw} " + whole.sha256, whole.split, strict=True)))
    rows = sorted(listing.rejected, key=lambda row: row["path"])
    rejected = [row | {"bytes": listing.stamps.get(row["path"], (-1,))[0]} for row in rows]
    table.attrs = {"root": str(root), "layout": listing.layout, "rejected": rejected}
    if "source" not in table and (sources := provenance.of(table)).notna().all():
        table.insert(COLUMNS.index("source"), "source", sources)
    reasons = Counter(row["reason"].split(":")[0].split(" image ")[0] for row in rows)
    print(io.template("scan.txt.j2").render(table=table, reasons=reasons.most_common(), gaps=splits.gaps(table)))
    if out is not None:
        with runs.run_lock(out, shared=True):
            write(table, out)
    return table


def load(out: str | Path, data: str | Path | None = None) -> pd.DataFrame:
    """Read the manifest of a run folder; one about another folder than `data`, where given, is a ManifestError."""
    path = Path(out).expanduser() / "manifest.parquet"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run notebook 00_eda or `python -m dfd run` first")
    table = io.read_table(path)
    known, asked = Path(table.attrs["root"]), Path(data or table.attrs["root"]).expanduser().resolve()
    if known.resolve() != asked:
        sizes = [(asked / name, size) for name, size in zip(table.path, table.bytes, strict=True)]
        if known.exists() or not all(file.is_file() and file.stat().st_size == size for file, size in sizes):
            raise ManifestError(f"{path} is about {known}, not {data}: use another run folder, or run 00_eda")
        print(f"The data have moved from {known} to {asked}; names and sizes are those of the manifest.")
        table.attrs["root"] = str(asked)
    if "source" not in table and (sources := provenance.of(table)).notna().all():  # named since the scan
        table.insert(COLUMNS.index("source"), "source", sources)
    return table


def changed(table: pd.DataFrame) -> list[str]:
    """Files of the data folder that are new, gone or of another size since this manifest of it was made."""
    listing = layouts.find(Path(table.attrs["root"]))
    now = {path: listing.stamps[path][0] for path, *_ in listing.files}
    noted = {row["path"]: row.get("bytes") for row in table.attrs["rejected"] if row["path"] in now}
    noted |= dict(zip(table.path, table.bytes, strict=True))
    return sorted(path for path in {*noted, *now} if noted.get(path, -1) not in (None, now.get(path)))


def check(table: pd.DataFrame) -> None:
    """Stop before a run whose data later stages cannot use: a class that a split lacks is a ManifestError."""
    if gaps := splits.gaps(table):
        text = "training needs some of each class in each split, so images of three groups at least, near-duplicates"
        remedy = "add images, or leave the class out; `scan` counts them, and says which splits the folders give"
        raise ManifestError(f"{', '.join(gaps)}: {text} being one group; {remedy}")


def write(table: pd.DataFrame, out: Path) -> None:
    """Write manifest.parquet, manifest.csv and rejected.csv, each whole or not at all."""
    rejected = pd.DataFrame(table.attrs["rejected"], columns=["path", "reason"])
    out.mkdir(parents=True, exist_ok=True)
    with io.atomic_write(out / "manifest.parquet") as draft:
        table.to_parquet(draft, index=False)
    for name, rows in (("manifest.csv", table), ("rejected.csv", rejected)):
        io.write_text(out / name, rows.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC))


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Count each class, real photos first; imbalance is the largest class's number of images over this one's."""
    classes = table.groupby("label")
    counts = pd.crosstab(table.label, table.split).reindex(columns=list(splits.SPLITS), fill_value=0)
    result = pd.DataFrame({"images": classes.size(), "groups": classes.group.nunique(), **counts})
    result["formats"] = classes.format.agg(lambda part: ", ".join(f"{k} {n}" for k, n in part.value_counts().items()))
    result["median size"] = [f"{rows.width.median():.0f} x {rows.height.median():.0f}" for _, rows in classes]
    result["imbalance"] = (result.images.max() / result.images).round(2)
    return result.loc[sorted(result.index, key=lambda label: (label != REAL, label))].rename(index=io.printable)


def stages_of(table: pd.DataFrame) -> list[str]:
    """The stages that a manifest's images are enough for: without fakes of two generators, stage 1 alone."""
    return [*CHECKPOINTS][: table.loc[table["is_fake"], "label"].nunique()]


def digest(table: pd.DataFrame) -> str:
    """Name a manifest by its content, in any row order: 16 hexadecimal digits over path, label, split and sha256."""
    return io.digest(table[["path", "label", "split", "sha256"]].sort_values("path").to_json(orient="values"))


class ScanCache:
    """What earlier scans of a folder learnt, text by text, in an SQLite file in $DFD_CACHE or ~/.cache/dfd.

    Keys hold all that a value depends on; what is stored together is whole, whoever is killed; scans may run side by
    side. Deleting the file costs a full scan and the memory of splits. One that cannot be used is an OSError.
    """

    def __init__(self, root: Path):
        self.path = io.cache_folder() / f"scan-{io.digest(root)}.sqlite"
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(self.path, timeout=60)
            self.connection.execute("CREATE TABLE IF NOT EXISTS entries (key PRIMARY KEY, value)")
            self.entries: dict[str, str] = dict(self.connection.execute("SELECT key, value FROM entries"))
        self.close = self.connection.close

    def store(self, entries: dict[str, str]) -> None:
        """Put on disk, all or none, the entries that are not there."""
        new = [(key, value) for key, value in entries.items() if self.entries.get(key) != value]
        with self._explained(), self.connection:
            self.connection.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?)", new)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            remedy = "free some space, delete the file, or set DFD_CACHE to another folder"
            raise OSError(f"the cache {self.path} cannot be used ({error}); {remedy}") from error


def _describe(root: Path, listing: Listing, cache: ScanCache, progress: bool) -> list[dict]:
    """Describe each good file, from the cache or by decoding; bad ones go to listing.rejected."""

    def inspect(path: str) -> dict[str, Any]:
        try:
            return images.inspect(root / path)
        except images.ImageError as error:  # what the system refused may be allowed tomorrow, the file being the same
            is_passing = isinstance(error.__cause__, MemoryError) or bool(getattr(error.__cause__, "errno", None))
            return {"error": str(error), "passing": is_passing}

    keys = {path: f"file {images.DESCRIPTION} {listing.stamps[path]} {path}" for path, *_ in listing.files}
    known = {path: cache.entries[key] for path, key in keys.items() if key in cache.entries}
    known = dict(zip(known, json.loads(f"[{','.join(known.values())}]"), strict=True))
    new = [path for path in keys if path not in known]
    bar = runs.bar(total=len(new), desc="images", disable=not (progress and new))
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(runs.cores()) as pool, bar:
        for start in range(0, len(new), BATCH):  # threads: Pillow decodes outside Python's lock
            paths = new[start : start + BATCH]
            batch = dict(zip(paths, pool.map(inspect, paths), strict=True))
            cache.store({keys[path]: json.dumps(info) for path, info in batch.items() if not info.get("passing")})
            known |= batch
            bar.update(len(batch))
    listing.rejected += [{"path": path, "reason": known[path]["error"]} for path in keys if "error" in known[path]]
    good = (row for row in listing.files if "error" not in known[row[0]])
    return [{"path": path, "label": label, "given": split, **known[path]} for path, label, split in good]


def _need_every_class(listing: Listing, table: pd.DataFrame) -> None:
    """Stop where a class has nothing to offer, with the first reasons."""
    if not {REAL} < set(listing.labels):
        missing = "generator" if REAL in listing.labels else REAL
        raise ManifestError(f"no {missing}: the layout was read as {listing.layout}, which has both")
    for label in set(listing.labels) - set([] if table.empty else table.label):
        paths = {path for path, of, _ in listing.files if of == label}
        rows = [row for row in listing.rejected if row["path"] in paths or f"/{label}/" in f"/{row['path']}/"]
        reasons = "".join(f"\n  {row['path']}: {row['reason']}" for row in rows[:3]) or " (it is empty)"
        raise ManifestError(f"class {label} has no readable image{reasons}")


def _split(table: pd.DataFrame, listing: Listing, seed: int, val_fraction: float, test_fraction: float) -> pd.DataFrame:
    """Group and split the described images, and bring the columns into order."""
    given, earlier = (table[name].astype(object).where(table[name].notna(), None) for name in ("given", "earlier"))
    held = set(given) & {"val", "test"}  # given by folders or sources; of a label that none binds, sources hold nothing
    stays = given.isin(held) | (given == "train") & (len(held) == 2)
    fixed = given.where(stays, earlier.mask(earlier.isin(held) & (given.notna() | ("source" not in table))))
    table = table.assign(given=given, fixed=fixed.where(fixed.notna(), None))
    group, dropped = splits.separate(table)
    listing.rejected += [{"path": table.path[row], "reason": reason} for row, reason in dropped.items()]
    table = table.loc[group.index].astype({"jpeg_quality": float}).assign(group=group, is_fake=table.label != REAL)
    assign = provenance.assign if "source" in table else splits.assign
    table["split"] = assign(table, seed, val_fraction, test_fraction).astype(str)
    return table.filter(COLUMNS).sort_values("path", ignore_index=True)
