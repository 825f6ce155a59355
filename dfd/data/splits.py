"""Groups of images that belong together, and train/val/test splits that never cut through one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SPLITS = ("train", "val", "test")
NEAR = 60  # differing bits of 256, up to which two images are near-duplicates; see `components`
BLOCK = 512  # hashes that are looked up at a time: were all alike, 100,000 would take 1 GB


def components(table: pd.DataFrame) -> np.ndarray:
    """Number the groups, (N,): images linked by sha256, phash (hexadecimal or null) or, where there is one, `tied`.

    Near means at most NEAR of the 256 bits of a 16 x 16 perceptual hash. Of 3,946 images (faces, ImageNet, three GANs)
    all 191 pairs up to 60 bits lie in one class; from 61 on, aligned faces of different people start to match.
    Recompression at quality 30, halving, blur and noise at 27 dB change at most 38 bits.
    """
    sources, targets, size = [], [], len(table)
    for column in (name for name in ("sha256", "tied", "phash") if name in table):
        codes, values = pd.factorize(table[column])  # every value is one more node of the graph; null is -1
        sources.append(np.flatnonzero(codes >= 0))
        targets.append(size + codes[codes >= 0])
        if column == "phash":
            sources.append(size + np.arange(len(values)))
            targets.append(size + _near(list(values)))
        size += len(values)
    return _connected(np.concatenate(sources), np.concatenate(targets), size)[: len(table)]


def separate(table: pd.DataFrame) -> tuple[pd.Series, dict[int, str]]:
    """Name the groups of the images so that none holds two splits; what would bridge two is left out, with a reason.

    The table has the columns of `components`, path, and two that hold splits or None: `given`, by the folders, and
    `fixed`, not to be changed. Of a group with several fixed splits, images without one go first: with them gone, the
    rest usually falls apart. If it does not, test outranks val and val outranks train. A new image in a given train
    folder that looks like a given test image is left out too, rather than moved.
    """
    dropped: dict[int, str] = {}

    def drop(split: pd.Series, stays: str) -> None:
        first = table.path[split.index[split == stays][0]]
        reason = f"near-duplicate of {stays} image {first} (same group)"
        dropped.update(dict.fromkeys(split.index[split != stays], reason))

    number = pd.Series(components(table), index=table.index)
    for _, group in table[table.fixed.groupby(number).transform("nunique") > 1].groupby(number):
        sides = group.fixed.dropna()
        both = " and ".join(f"{sides[row]} image {table.path[row]}" for row in sides.drop_duplicates().index[:2])
        dropped |= dict.fromkeys(group.index.difference(sides.index), f"near-duplicate of both {both}")
        parts = pd.Series(components(table.loc[sides.index]), index=sides.index)
        for _, part in sides.groupby(parts):
            drop(part, max(part, key=SPLITS.index))
        number[sides.index] = parts + number.max() + 1
    rest = table.drop(list(dropped)).assign(number=number)
    sides = rest.fixed.groupby(rest.number).transform("first")
    stray = rest.given.notna() & rest.fixed.isna() & sides.isin(set(table.given.dropna()) - {"train"})
    for _, group in rest[stray.groupby(rest.number).transform("any")].groupby("number"):
        drop(group.fixed.fillna("train"), sides[group.index[0]])
    rest = rest.drop(list(dropped), errors="ignore")
    return "g" + rest.sha256.groupby(rest.number).transform("min").str[:16], dropped


def assign(table: pd.DataFrame, seed: int, val_fraction: float, test_fraction: float) -> pd.Series:
    """Draw a split, "train", "val" or "test", for the groups that have none, stratified by label.

    The table has the columns label, group, and `given` and `fixed` as in `separate`; a split that is given is never
    drawn. The draw aims at the fractions of the whole table, so that what was added earlier is made up for. Afterwards,
    a class of at least three groups that is missing from a split gets one moved there, unless all its groups are fixed.
    """
    split = table.fixed.groupby(table.group).transform("first")
    fractions = {"test": test_fraction, "val": val_fraction}
    missing = [name for name in fractions if name not in set(table.given.dropna())]
    for name in missing:
        rows = table[split.isna()]
        if len(rows):
            share = (fractions[name] * len(table) - (split == name).sum()) / len(rows)
            split[_draw(rows, min(max(share, 0), 1), seed)] = name
    movable = set(table.group) - set(table.group[table.fixed.notna()])
    return _fill_gaps(table, split.fillna("train"), [*missing, "train"], movable)


def gaps(table: pd.DataFrame) -> list[str]:
    """Name each class that is missing from a split, one plain line each."""
    counts = pd.crosstab(table.label, table.split).reindex(columns=list(SPLITS), fill_value=0)
    return [f"no {label} in {split}" for label, row in counts.iterrows() for split in SPLITS if not row[split]]


def _near(hashes: Sequence[str]) -> np.ndarray:
    """The first hash of each one's group, (N,), where those at most NEAR bits apart are linked.

    Each block is compared with all that follow; what ties a group is kept, not its pairs, of which copies have many.
    """
    first = np.arange(len(hashes))
    if len(hashes) == 0:
        return first
    from sklearn.neighbors import NearestNeighbors  # here: it takes a second to import

    packed = np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint8).reshape(len(hashes), -1)
    bits = np.unpackbits(packed, axis=1).astype(np.float32)  # (N, bits): squared distances are whole numbers, exact
    neighbours = NearestNeighbors(radius=NEAR + 0.5, metric="sqeuclidean", algorithm="brute")
    for start in range(0, len(bits), BLOCK):
        graph = neighbours.fit(bits[start:]).radius_neighbors_graph(bits[start : start + BLOCK])
        rows, columns = start + np.stack(graph.nonzero())
        number = _connected(np.append(rows, first), np.append(columns, np.arange(len(bits))), len(bits))
        first = np.unique(number, return_index=True)[1][number]
    return first


def _connected(sources: np.ndarray, targets: np.ndarray, size: int) -> np.ndarray:
    graph = coo_array((np.ones(len(sources), dtype=bool), (sources, targets)), shape=(size, size))
    return connected_components(graph, directed=False)[1]


def _draw(table: pd.DataFrame, share: float, seed: int) -> pd.Index:
    """Take about this share of the rows, as whole groups, stratified by label."""
    limit = min(20, table.group.nunique(), int(table.label.value_counts().max()))  # NumPy's integers would overflow
    folds = Fraction(float(share)).limit_denominator(limit)
    if folds.denominator == 1:
        return table.index[: len(table) * folds.numerator]
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(folds.denominator, shuffle=True, random_state=seed)
    with warnings.catch_warnings(action="ignore"):  # classes smaller than the number of folds; `gaps` reports them
        parts = [part for _, part in splitter.split(table, table.label, table.group)]
    return table.index[np.concatenate(parts[: folds.numerator])]


def _fill_gaps(table: pd.DataFrame, split: pd.Series, wanted: list[str], movable: set[str]) -> pd.Series:
    """Move the smallest movable group to each split that lacks a class of at least three groups."""
    sizes = table.group.value_counts()
    for _, rows in table.groupby("label"):
        for name in wanted:
            sides = split[rows.index].groupby(rows.group).first()
            if len(sides) < 3 or (sides == name).any():
                continue
            counts = sides.map(sides.value_counts())
            spare = sides.index[sides.isin(wanted) & (counts > 1) & sides.index.isin(movable)]
            if len(spare):
                chosen = min(spare, key=lambda group: (-counts[group], sizes[group], group))
                split = split.mask(table.group == chosen, name)
    return split
