"""Groups of images that belong together, and train/val/test splits that never cut through one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

SPLITS = ("train", "val", "test")
NEAR = 60  # differing bits of 256, up to which two images are near-duplicates; see `components`
TILE, WIDE = 1024, 8192  # hashes that are compared at a time: their products take 32 MB
MOST = 4_000_000  # pairs that are held before they are thinned out to what ties the same groups


def components(table: pd.DataFrame) -> np.ndarray:
    """Number the groups: images linked by equal bytes, near-equal looks, or the sidecar.

    Near means at most NEAR of the 256 bits of a 16 x 16 perceptual hash. Measured on 3,946 images (faces, ImageNet,
    three GANs): all 191 pairs up to 60 bits lie in one class, and those that we looked at are one picture or one
    latent walk; from 61 on, aligned faces of different people start to match. Recompression at quality 30, halving,
    blur and noise at 27 dB change at most 38 bits, a crop of 4 pixels a side 58 in 99 % of the cases. The usual 64-bit
    hash cannot part them: where it finds the latent walks (10 bits), it merges 16 groups of photos and fakes.

    Args:
        table: columns sha256, phash (hexadecimal or null), and, where there is a sidecar, tied (any value or null).

    Returns:
        (N,) component numbers, in no particular order.
    """
    sources, targets, size = [], [], len(table)
    for column in ("sha256", "tied", "phash"):
        if column not in table:
            continue
        codes, values = pd.factorize(table[column])  # every value is one more node of the graph; null is -1
        sources.append(np.flatnonzero(codes >= 0))
        targets.append(size + codes[codes >= 0])
        if column == "phash":
            near = _near(values)
            sources.append(size + near[0])
            targets.append(size + near[1])
        size += len(values)
    return _connected(np.stack([np.concatenate(sources), np.concatenate(targets)]), size)[: len(table)]


def separate(table: pd.DataFrame, given: pd.Series, fixed: pd.Series) -> tuple[pd.Series, dict[int, str]]:
    """Group the images so that no group holds two splits; what would bridge two is left out.

    Of a group with several fixed splits, images without one go first: with them gone, the rest usually falls apart. If
    it does not, test outranks val and val outranks train. A new image in a given train folder that looks like a given
    test image is left out too, rather than moved.

    Args:
        table: as in `components`, and path.
        given: split that the folders give, or None.
        fixed: split that must not change, or None.

    Returns:
        Group names for the images kept, and the reason for each index left out.
    """
    dropped: dict[int, str] = {}
    number = pd.Series(components(table), index=table.index)
    sides = fixed.groupby(number).nunique()
    for rows in _members(number, sides[sides > 1].index):
        one, other = (rows[fixed[rows] == split][0] for split in fixed[rows].dropna().unique()[:2])
        both = f"{fixed[one]} image {table.path[one]} and {fixed[other]} image {table.path[other]}"
        dropped |= dict.fromkeys(rows[fixed[rows].isna()], f"near-duplicate of both {both}")
        rest = rows[fixed[rows].notna()]
        parts = pd.Series(components(table.loc[rest]), index=rest)
        for part in _members(parts, parts.unique()):
            dropped |= _outranked(table, part, fixed[part], max(fixed[part], key=SPLITS.index))
        number[rest] = parts + number.max() + 1
    kept = number.drop(list(dropped))
    foreign = kept.index[given[kept.index].notna() & fixed[kept.index].isna()]
    side = fixed[kept.index].groupby(kept).first().reindex(kept[foreign]).set_axis(foreign)
    for row in foreign[side.isin(set(given.dropna()) - {"train"})]:
        rows = kept.index[kept == kept[row]]
        dropped |= _outranked(table, rows, fixed[rows].fillna("train"), side[row])
    kept = kept.drop([row for row in dropped if row in kept.index])
    return "g" + table.sha256[kept.index].groupby(kept).transform("min").str[:16], dropped


def assign(
    table: pd.DataFrame, given: pd.Series, fixed: pd.Series, seed: int, val_fraction: float, test_fraction: float
) -> pd.Series:
    """Draw splits for the groups that have none, stratified by label (scikit-learn's StratifiedGroupKFold).

    Groups with a fixed split keep it. The draw aims at the fractions of the whole table, so that what was added earlier
    is made up for. Afterwards, a class of at least three groups that is missing from a split gets one moved there,
    unless every one of its groups is fixed.

    Args:
        table: columns label and group.
        given: split that the folders give, or None; a split that is given is never drawn.
        fixed: split that must not change, or None.
        seed, val_fraction, test_fraction: of the draw.

    Returns:
        Splits, "train", "val" or "test", equal within a group.
    """
    split = fixed.groupby(table.group).transform("first")
    missing = [name for name in ("test", "val") if name not in set(given.dropna())]
    for name, fraction in (("test", test_fraction), ("val", val_fraction)):
        rows = table.index[split.isna()]
        if name in missing and len(rows):
            share = (fraction * len(table) - (split == name).sum()) / len(rows)
            split[_draw(table.loc[rows], min(max(share, 0), 1), seed)] = name
    movable = set(table.group) - set(table.group[fixed.notna()])
    return _fill_gaps(table, split.fillna("train"), [*missing, "train"], movable)


def gaps(table: pd.DataFrame) -> list[str]:
    """Name each class that is missing from a split, one plain line each."""
    counts = pd.crosstab(table.label, table.split).reindex(columns=list(SPLITS), fill_value=0)
    return [f"no {label} in {split}" for label, row in counts.iterrows() for split in SPLITS if not row[split]]


def _near(hashes: Sequence[str]) -> np.ndarray:
    """Link the hashes at most NEAR bits apart, (2, P): every such pair, or fewer that tie the same groups.

    Bits as -1 and 1 have the product: bits in common minus bits that differ. NumPy multiplies matrices of them on all
    cores, tile by tile above the diagonal, exactly, for whole numbers are small. Memory grows with the number of hashes
    alone, time with its square; docs/performance.md has both.
    """
    if len(hashes) == 0:
        return np.zeros((2, 0), dtype=int)
    packed = np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint8).reshape(len(hashes), -1)
    signs = np.unpackbits(packed, axis=1).astype(np.float32) * 2 - 1  # (N, bits)
    least = signs.shape[1] - 2 * NEAR
    found, held = [], 0
    for top in range(0, len(signs), TILE):
        for left in range(top, len(signs), WIDE):
            products = signs[top : top + TILE] @ signs[left : left + WIDE].T
            row, column = np.divmod(np.flatnonzero(products >= least), products.shape[1])
            found.append(np.stack([top + row, left + column]))
            held += len(row)
            if held > MOST + 2 * len(signs):  # many copies: what ties them suffices
                found = [_forest(np.concatenate(found, axis=1), len(signs))]
                held = found[0].shape[1]
    return np.concatenate(found, axis=1)


def _forest(pairs: np.ndarray, size: int) -> np.ndarray:
    """Tie the same groups with fewer pairs: each member and the first of its group, (2, P)."""
    number = _connected(pairs, size)
    first = np.unique(number, return_index=True)[1][number]
    rest = np.flatnonzero(first != np.arange(size))
    return np.stack([rest, first[rest]])


def _connected(pairs: np.ndarray, size: int) -> np.ndarray:
    graph = coo_array((np.ones(pairs.shape[1], dtype=bool), (pairs[0], pairs[1])), shape=(size, size))
    return connected_components(graph, directed=False)[1]


def _members(number: pd.Series, wanted: Iterable[int]) -> list[pd.Index]:
    """Give the rows of each wanted group, in order."""
    inside = number[number.isin(wanted)]
    return [rows.index for _, rows in inside.groupby(inside)]


def _outranked(table: pd.DataFrame, rows: pd.Index, split: pd.Series, kept: str) -> dict[int, str]:
    """Give a reason to each row outside the split that is kept."""
    first = table.path[rows[split == kept][0]]
    return dict.fromkeys(rows[split != kept], f"near-duplicate of {kept} image {first} (same group)")


def _draw(table: pd.DataFrame, share: float, seed: int) -> pd.Index:
    """Take about this share of the rows, as whole groups, stratified by label."""
    limit = min(20, table.group.nunique(), int(table.label.value_counts().max()))  # NumPy's integers would overflow
    folds = Fraction(float(share)).limit_denominator(limit)
    from dfd.data.splits import Folds  # here: it brings scikit-learn, for which a scan that draws nothing need not wait

    if folds.denominator == 1:
        return table.index[: len(table) * folds.numerator]
    splitter = Folds(folds.denominator, shuffle=True, random_state=seed)
    with warnings.catch_warnings(action="ignore"):  # classes smaller than the number of folds; `gaps` reports them
        parts = [part for _, part in splitter.split(table, table.label, table.group)]
    return table.index[np.concatenate(parts[: folds.numerator])]


def _fill_gaps(table: pd.DataFrame, split: pd.Series, wanted: list[str], movable: set[str]) -> pd.Series:
    """Move the smallest movable group to each split that lacks a class of at least three groups."""
    sizes = table.group.value_counts()
    for _, rows in table.groupby("label"):
        names = rows.group.unique()
        for name in wanted:
            sides = split[rows.index].groupby(rows.group).first()
            if len(names) < 3 or (sides == name).any():
                continue
            counts = sides.value_counts()
            spare = [g for g in names if g in movable and sides[g] in wanted and counts[sides[g]] > 1]
            if spare:
                chosen = min(spare, key=lambda g: (-counts[sides[g]], sizes[g], g))
                split = split.mask(table.group == chosen, name)
    return split


class Folds(StratifiedGroupKFold):
    """The same folds as StratifiedGroupKFold's.

    scikit-learn tries a group in each fold in turn, with NumPy calls for each; 10,000 groups took as long as decoding
    10,000 images. Here the folds are tried at once. A scikit-learn that chooses otherwise, and does not call this
    method, is merely slow again; a test compares the folds.
    """

    def _find_best_fold(self, y_counts_per_fold: np.ndarray, y_cnt: np.ndarray, group_y_counts: np.ndarray) -> int:
        """The fold that a group leaves most even; the smallest among equals.

        Args:
            y_counts_per_fold: (folds, labels), images so far.
            y_cnt: (labels,), of the whole table.
            group_y_counts: (labels,), of the group.
        """
        tried = y_counts_per_fold + np.eye(self.n_splits)[:, :, None] * group_y_counts  # (folds, folds, labels)
        uneven = np.std(tried / y_cnt, axis=1).mean(axis=1).tolist()
        sizes = y_counts_per_fold.sum(axis=1).tolist()
        best = 0
        for fold in range(1, self.n_splits):
            equal = math.isclose(uneven[fold], uneven[best], rel_tol=0, abs_tol=1e-8 + 1e-5 * abs(uneven[best]))
            if uneven[fold] < uneven[best] or equal and sizes[fold] < sizes[best]:
                best = fold
        return best
