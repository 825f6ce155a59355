"""Where the images come from: a provenance table, and test splits that hold out whole sources."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from dfd.core.runs import PROVENANCE
from dfd.data import splits
from dfd.data.layouts import ManifestError


def read(root: Path, column: str) -> pd.Series:
    """Read one column of provenance.csv, in the data folder or above it: values by path, empty ones left out.

    The table also has a column file or path, relative to the data folder. Without table or column, or with two values
    for one file, it is a ManifestError, which names the file and the remedy.
    """
    path = next((folder / PROVENANCE for folder in (root, root.parent) if (folder / PROVENANCE).exists()), None)
    if path is None:
        raise ManifestError(
            f"group_by {column} needs {PROVENANCE} in {root} or {root.parent}: a table with the columns file "
            f"(relative to the data folder) and {column}; write one, or leave group_by empty"
        )
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:
        raise ManifestError(f"{path} must be a CSV file with the columns file and {column} ({error})") from error
    key = next((name for name in ("file", "path") if name in table), None)
    if key is None or column not in table:
        what = f"no column {column}" if key else "neither a column file nor a column path"
        raise ManifestError(f"{path} has {what}; its columns are {', '.join(map(str, table))}")
    values = table[[key, column]].drop_duplicates().set_index(key)[column]
    twice = values.index[values.index.duplicated()]
    if len(twice):
        raise ManifestError(f"{path} gives {twice[0]} more than one {column}; keep one row for each file")
    return values[values != ""].rename_axis(str(path))


def give(table: pd.DataFrame, values: pd.Series, hold_out: Sequence[str], seed: int, test_fraction: float) -> None:
    """Add the column source, from what `read` gave, and to `given` which images must be test because of it, or not.

    "test" for the images of the sources `hold_out`, or of those that `choose` takes; "train" (not in test) for the
    others of their labels; None for labels of which nothing is held out: their test images are drawn by group. Each
    label's choice is printed. Images without a source, splits that the folders give, unknown sources and a label that
    keeps none to train on are a ManifestError.
    """
    table["source"] = table.path.map(values)
    lost = table.path[table.source.isna()]
    if len(lost):
        raise ManifestError(
            f"{values.index.name} has no {values.name} for {len(lost)} of {len(table)} images, the first is "
            f"{lost.iloc[0]}; add a row for each, with its path relative to the data folder"
        )
    if table.given.notna().any():
        raise ManifestError("the folders already give splits, so group_by has nothing to choose; leave group_by empty")
    known = sorted(table.source.unique())
    for name in sorted(set(hold_out).difference(known), key=list(hold_out).index):
        nearest = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0))
        raise ManifestError(f"hold_out names {name!r}, from which no image comes; the nearest sources: {nearest}")
    held = table.source.isin(hold_out or choose(table, seed, test_fraction))
    table["given"] = pd.Series(None, table.index, dtype=object)
    for label, out in held.groupby(table.label):
        names = sorted(table.source[out.index].unique())
        if out.all():
            raise ManifestError(f"hold_out takes every image of {label} ({', '.join(names)}); leave it one source")
        if out.any():
            table.loc[out.index, "given"] = out.map({True: "test", False: "train"})
            taken = ", ".join(sorted(table.source[out.index[out]].unique()))
            print(f"{label}: {taken} held out for test, {out.sum()} of {len(out)} images")
        else:
            why = f"has only the source {names[0]}" if len(names) == 1 else "has no held-out source"
            print(f"{label}: {why}, so its test images are drawn by group, from sources it is trained on")


def choose(table: pd.DataFrame, seed: int, test_fraction: float) -> list[str]:
    """Choose sources for test, so that of each label about test_fraction is held out.

    The largest source of every label stays in training; of the others the sum nearest to the fraction is taken, at
    least one. Of equally good choices the seed takes one. A label without another source is left out.
    """
    counts = _counts(table)
    order = counts.drop(index=list(counts.idxmax().unique())).sample(frac=1, random_state=seed)
    chosen: list[str] = []
    for label in order:
        sizes = order[label][order[label] > 0]
        before = sizes.index.intersection(chosen)  # a source may have images of several labels
        target = test_fraction * counts[label].sum() - sizes[before].sum()
        chosen += _nearest(sizes.drop(before), target, may_be_none=len(before) > 0)
    return chosen


def assign(table: pd.DataFrame, seed: int, val_fraction: float, test_fraction: float) -> pd.Series:
    """Draw the splits that `give` leaves open, as `splits.assign` does; validation images come from training sources.

    Groups without an image from `give` are drawn as always. Of the rest what is not held out is divided into train
    and val, in the proportion that the fractions ask for.
    """
    bound = table.group.isin(table.group[table.given.notna()])
    in_test = table.group.isin(table.group[table.given == "test"])
    val_of_bound = (1 - in_test[bound].mean()) * val_fraction / (1 - test_fraction)
    shares = ((table[~bound], val_fraction), (table[bound], val_of_bound))
    parts = [splits.assign(rows, seed, val, test_fraction) for rows, val in shares if len(rows)]
    return pd.concat(parts).reindex(table.index)


def sources(table: pd.DataFrame) -> pd.DataFrame:
    """Count the images of each label and source, in all and in each split, of a manifest made with group_by."""
    _counts(table)  # stops without the column
    counts = pd.crosstab([table.label, table.source], table.split).reindex(columns=list(splits.SPLITS), fill_value=0)
    counts.insert(0, "images", counts.sum(axis=1))
    return counts.rename_axis(columns=None)


def leave_one_source_out(table: pd.DataFrame) -> Iterator[tuple[str]]:
    """Yield one hold_out for each source of a manifest that can be held out: every label keeps another source."""
    counts = _counts(table) > 0
    yield from ((str(name),) for name, has in counts.iterrows() if (counts.sum()[has] > 1).all())


def _counts(table: pd.DataFrame) -> pd.DataFrame:
    """Count images, one row per source and one column per label."""
    if "source" not in table:
        raise ManifestError("the manifest has no column source; scan with group_by")
    return pd.crosstab(table.source, table.label)


def _nearest(sizes: pd.Series, target: float, may_be_none: bool) -> list[str]:
    """Take the names whose sizes add up nearest to the target; of equal sums the one reached first."""
    reached: dict[int, list[str]] = {0: []}  # sum -> names that make it
    for name, size in sizes.items():
        for total, names in list(reached.items()):
            if total < target:
                reached.setdefault(total + size, [*names, str(name)])
    sums = [total for total in reached if total or may_be_none]
    return reached[min(sums, key=lambda total: abs(total - target), default=0)]
