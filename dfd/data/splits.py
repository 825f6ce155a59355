"""Groups of images that belong together, and train/val/test splits that never cut through one."""

import itertools
import warnings
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SPLITS = ("train", "val", "test")
NEAR, BITS = 60, 256  # differing bits of a hash, up to which two images are near-duplicates; see `components`
PAIRS = 12_800_000  # of hashes that are looked at together: were all alike, they would take 1 GB


def components(table: pd.DataFrame) -> np.ndarray:
    """Number the groups, (N,): images linked by sha256, phash (hexadecimal or null) or, where there is one, `tied`.

    Near means at most NEAR of the 256 bits of a 16 x 16 perceptual hash. Recompression at quality 30, halving, blur and
    noise at 27 dB change at most 26 bits of 99 images in 100; from 61 on, aligned faces of different people match.
    """
    sources, targets, size = [], [], len(table)
    for column in (name for name in ("sha256", "tied", "phash") if name in table):
        codes, values = pd.factorize(table[column])  # every value is one more node of the graph; null is -1
        sources.append(np.flatnonzero(codes >= 0))
        codes = codes[codes >= 0]
        targets.append(size + (_near(list(values))[codes] if column == "phash" else codes))
        size += len(values)
    return _connected(np.concatenate(sources), np.concatenate(targets), size)[: len(table)]


def separate(table: pd.DataFrame) -> tuple[pd.Series, dict[int, str]]:
    """Name the groups of the images so that none holds two splits; what would bridge two is left out, with a reason.

    The table has the columns of `components`, path, and two that hold splits or None: `given`, by the folders, and
    `fixed`, not to be changed. In a group with several, images without one go first: with them gone, the rest usually
    falls apart. If it does not, test outranks val and val outranks train.
    """
    dropped: dict[int, str] = {}
    number = pd.Series(components(table), index=table.index)
    for column in ("given", "fixed"):
        rest = table.drop(list(dropped))
        for _, rows in rest[rest[column].groupby(number).transform("nunique") > 1].groupby(number):
            sides = rows[column].dropna()
            both = " and ".join(f"{sides[row]} image {table.path[row]}" for row in sides.drop_duplicates().index[:2])
            dropped |= dict.fromkeys(rows.index.difference(sides.index), f"near-duplicates link it to: {both}")
            number[sides.index] = components(rows.loc[sides.index]) + number.max() + 1
            for _, part in sides.groupby(number):
                best = max(part, key=SPLITS.index)
                one = table.path[part.index[part == best][0]]
                dropped |= dict.fromkeys(part.index[part != best], f"near-duplicate of {best} image {one} (same group)")
    rest = table.drop(list(dropped))
    return "g" + rest.sha256.groupby(number).transform("min").str[:16], dropped


def assign(table: pd.DataFrame, seed: int, val_fraction: float, test_fraction: float) -> pd.Series:
    """Draw a split, "train", "val" or "test", for the groups that have none, stratified by label.

    The table has the columns label, group, and `given` and `fixed` as in `separate`; a split that is given is never
    drawn. It aims at the fractions of the table; a class of three groups that a split lacks gets its smallest there.
    """
    split = table.fixed.groupby(table.group).transform("first")
    fractions = {"test": test_fraction, "val": val_fraction}
    missing = [name for name in fractions if name not in set(table.given.dropna())]
    for name in missing:
        if len(rows := table[split.isna()]):
            share = (fractions[name] * len(table) - (split == name).sum()) / len(rows)
            split[_draw(rows, min(max(share, 0), 1), seed)] = name
    split, wanted, sizes = split.fillna("train"), [*missing, "train"], table.group.value_counts()
    movable = set(table.group) - set(table.group[table.fixed.notna()])
    for (_, rows), name in itertools.product(table.groupby("label"), wanted):
        sides = split[rows.index].groupby(rows.group, sort=False).first()  # in the order of the table
        if len(sides) < 3 or name in set(sides):
            continue
        only = table.group[table.groupby(["label", split]).group.transform("nunique") == 1]  # of a label in its split
        if len(spare := sides.index[sides.isin(wanted) & sides.index.isin(movable.difference(only))]):
            smallest = min(spare, key=lambda group: (-sides.eq(sides[group]).sum(), sizes[group]))
            split[table.group == smallest] = name
    return split


def gaps(table: pd.DataFrame) -> list[str]:
    """Name each class that is missing from a split, one plain line each."""
    counts = pd.crosstab(table.label, table.split).reindex(columns=list(SPLITS), fill_value=0)
    return [f"no {label} in {split}" for label, row in counts.iterrows() for split in SPLITS if not row[split]]


def _near(hashes: Sequence[str]) -> np.ndarray:
    """Number the groups of hashes, (N,), where those at most NEAR bits apart are linked, block by block."""
    group = every = np.arange(len(hashes))
    packed = np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint8).reshape(-1, BITS // 8)
    signs = np.unpackbits(packed, axis=1).astype(np.float32) * 2 - 1  # (N, bits): products are whole numbers, exact
    for start in range(0, len(signs), step := max(1, PAIRS // max(1, len(signs)))):
        block, rest = slice(start, start + step), slice(start, None)
        if (group[block] == group[start]).all():  # linked already, as frames of one film: what is linked to others?
            rest = start + np.flatnonzero(group[start:] != group[start])
        near = signs[block] @ signs[rest].T >= BITS - 2 * NEAR
        rows, columns = divmod(np.flatnonzero(near), near.shape[1])  # np.nonzero takes as long as the product
        ends = np.append(every, every[block][rows]), np.append(len(every) + group, every[rest][columns])
        group = _connected(*ends, 2 * len(every))[: len(every)]
    return group


def _connected(sources: np.ndarray, targets: np.ndarray, size: int) -> np.ndarray:
    graph = coo_array((np.ones(len(sources), dtype=bool), (sources, targets)), shape=(size, size))
    return connected_components(graph, directed=False)[1]


def _draw(table: pd.DataFrame, share: float, seed: int) -> pd.Index:
    """Take about this share of the rows, as whole groups, stratified by label."""
    limit = min(max(20, round(1 / max(share, 1e-3))), table.group.nunique(), int(table.label.value_counts().max()))
    folds = Fraction(float(share)).limit_denominator(limit)  # a Python int: products of NumPy's would overflow
    if folds.denominator == 1:
        return table.index[: len(table) * folds.numerator]
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(folds.denominator, shuffle=True, random_state=seed)
    with warnings.catch_warnings(action="ignore"):  # classes smaller than the number of folds; `gaps` reports them
        parts = [part for _, part in splitter.split(table, table.label, pd.factorize(table.group)[0])]
    parts.sort(key=lambda part: abs(len(part) * folds.denominator - len(table)))  # nearest to the share first
    return table.index[np.concatenate(parts[: folds.numerator])]
