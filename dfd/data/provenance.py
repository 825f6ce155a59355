"""Where the images come from: a provenance table, and test splits that hold out whole sources."""

import codecs
import csv
import io
import os
import posixpath
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dfd.core.io import printable, tell_once
from dfd.core.runs import PROVENANCE
from dfd.data import splits
from dfd.data.layouts import ManifestError


def read(root: Path, column: str) -> pd.Series:
    """Read one column of provenance.csv, in the data folder or above it, by file; see `sidecar`."""
    path = next((folder / PROVENANCE for folder in (root, root.parent) if (folder / PROVENANCE).exists()), None)
    if path is None:
        raise ManifestError(f"group_by needs {PROVENANCE} in {root} or {root.parent}: a table of file and {column}")
    return sidecar(path, "file", column, root).rename_axis(str(path))


def of(table: pd.DataFrame) -> pd.Series:
    """The source of each image of a manifest, by its own column or by provenance.csv; NaN where neither tells it."""
    root = Path(table.attrs.get("root", ""))
    try:
        sources = table["source"] if "source" in table else match(read(root, "source"), table["path"])[0]
        if len(lost := table["path"][sources.isna()]):
            tell = f"{len(lost)} of {len(table)} images have no source, such as {lost.iloc[0]}"
            tell_once(f"{tell}: none counts, and none is left out, until {PROVENANCE} names all.")
        return sources
    except ManifestError as error:
        if any((folder / PROVENANCE).exists() for folder in (root, root.parent)):
            tell_once(f"{error}. Until then no image has a source.")
    return pd.Series(None, table.index, dtype=object)


def sidecar(path: Path, key: str, column: str, root: Path) -> pd.Series:
    """One column of a CSV file by its files, which are written as below `root`; what does not fit is a ManifestError.

    As other people's tools write them: UTF-8 or UTF-16, with commas, semicolons or tabs, any line ends, and names with
    backslashes, ./ in front, or absolute. A line without a value, and a file with two, are refused by line and name.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-16" if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")
        head = text.splitlines()[0] if text.strip() else ""
        separator = max(",;\t", key=head.count)
        spaced = f"{separator} " in head  # else a space belongs to a name
        lines = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=spaced)
        lines.fieldnames = [name.strip() for name in lines.fieldnames or []]
        if not {key, column} <= set(lines.fieldnames):
            raise ValueError(f"it has {', '.join(lines.fieldnames) or 'none'}")
        rows = [(lines.line_num, row[key] or "", (row[column] or "").strip()) for row in lines]
    except (ValueError, OSError, csv.Error) as error:
        raise ManifestError(f"{path} must be a CSV file with the columns {key} and {column} ({error})") from error
    values: dict[str, str] = {}
    for number, given, value in rows:
        name = posixpath.normpath(given.replace(os.sep, "/"))  # on Windows a name with backslashes is there as well
        if os.path.isabs(name) or not os.path.lexists(root / name):  # else it is as it stands, backslashes too
            name = Path(os.path.relpath(root / given.strip().replace("\\", "/"), root)).as_posix()
        line = f"{path}, line {number}"
        if not value or not given:
            raise ManifestError(f"{line}: {given or 'a line without a file'} has no {column if given else key}")
        if values.setdefault(name, value) != value:
            raise ManifestError(f"{line}, gives {given} more than one {column}; keep one row for each file")
    return pd.Series(values, dtype=object).rename(column)


def match(values: pd.Series, paths: pd.Series) -> tuple[pd.Series, list[str]]:
    """The value of each path, also where case or Unicode form differ and it is the only one, and names of no path."""
    forms, alike = (names.str.normalize("NFC").str.lower() for names in (paths, values.index.astype(str)))
    alone, known = {name: p[0] for name, p in paths.groupby(forms).agg(tuple).items() if len(p) == 1}, set(paths)
    names = {n: n if n in known else alone.get(folded) for n, folded in zip(values.index, alike, strict=True)}
    given = {path: values[name] for name, path in sorted(names.items(), key=lambda x: x[0] == x[1]) if path is not None}
    return paths.map(given), [name for name, path in names.items() if path is None]


def give(table: pd.DataFrame, values: pd.Series, hold_out: Sequence[str]) -> None:
    """Add the column source, from what `read` gave, and to `given` what follows; what does not fit is a ManifestError.

    "test" for the sources `hold_out`; "train" (not in test) for the others of their labels; None for other labels.
    """
    table["source"], _ = match(values, table.path)
    if len(lost := table.path[table.source.isna()]):
        text = f"has no {values.name} for {len(lost)} of {len(table)} images, the first is {lost.iloc[0]}"
        raise ManifestError(f"{values.index.name} {text}; add a row for each, its path relative to the data folder")
    if table.given.isin(splits.SPLITS[1:]).any():  # CNNDetection has objects called train
        raise ManifestError("the folders already give splits, so group_by has nothing to choose; leave group_by empty")
    known = sorted(table.source.unique())
    if not hold_out or not set(hold_out) <= set(known):
        wrong = f"has no {', '.join(sorted(set(hold_out).difference(known)))}" if hold_out else "needs hold_out"
        raise ManifestError(f"group_by {values.name} {wrong}; the test split can hold out: {', '.join(known)}")
    table["given"] = pd.Series(None, table.index, dtype=object)
    for label, out in table.source.isin(hold_out).groupby(table.label):
        if out.all():
            raise ManifestError(f"hold_out takes every image of {label}; leave it one source")
        if out.any():
            table.loc[out.index, "given"] = out.map({True: "test", False: "train"})
        else:
            print(f"{printable(label)}: no source is held out, so its test images come from sources it is trained on")


def assign(table: pd.DataFrame, seed: int, val_fraction: float, test_fraction: float) -> pd.Series:
    """As `splits.assign`; what `give` bound, but not to test, becomes train and val, in the fractions' proportion."""
    bound = table.group.isin(table.group[table.given.notna()])
    in_test = table.group.isin(table.group[table.given == "test"])
    table = table.assign(fixed=table.fixed.where(~bound | in_test | table.fixed.ne("test"), None))  # once unbound
    of_bound = (1 - in_test[bound].mean()) * val_fraction / (1 - test_fraction)
    shares = ((table[~bound], val_fraction), (table[bound], of_bound))
    parts = [splits.assign(rows, seed, val, test_fraction) for rows, val in shares if len(rows)]
    return pd.concat(parts).reindex(table.index)


def sources(table: pd.DataFrame) -> pd.DataFrame:
    """Count the images of each label and source, in all and in each split, of a manifest that has sources."""
    counts = pd.crosstab([table.label, table.source], table.split).rename_axis(columns=None)
    counts = counts.reindex(columns=list(splits.SPLITS), fill_value=0)
    return pd.concat([counts.sum(axis=1).rename("images"), counts], axis=1).rename(index=printable)
