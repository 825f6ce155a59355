"""Where is the error above average? Errors by property, and slices found by a search that pays for its size."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pandas as pd

from dfd.bootstrap import interval

DRAWS = 2000  # permutations behind the slices' p-values
SMALLEST = 10  # images in a slice that is tested
SPANS = 3  # groups that it has images of, at least
COVERED = 0.8  # share of a slice's images in one listed before it, from which the slice is not news
BLOCK = 250  # permutations held at a time


def by_property(rows: pd.DataFrame, bins: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """The error in each bin of each property, with 95 % intervals over groups.

    Args:
        rows: columns wrong (bool) and group.
        bins: what `properties.binned` gave, on the same index.
        seed: of the bootstrap.

    Returns:
        Columns property, bin, images, groups, errors, error, low, high. Where no image is wrong, or all are, the
        bootstrap knows no spread: the limit is then 1 - 0.025 ** (1 / groups) away, as if a group were one toss of a
        coin. One group alone has no interval.
    """
    found = []
    for name in bins:
        for word, part in rows.groupby(bins[name], observed=True):
            groups = part["group"].nunique()
            error = interval(part[["group", "wrong"]], lambda t: float(t.wrong.mean()), seed)
            if groups > 1 and error["value"] in (0.0, 1.0):
                reach = 1 - 0.025 ** (1 / groups)
                error |= {"high": reach} if error["value"] == 0 else {"low": 1 - reach}
            row = {"property": name, "bin": str(word), "images": len(part), "groups": groups}
            found.append(row | {"errors": int(part["wrong"].sum()), "error": error.pop("value"), **error})
    columns = "property bin images groups errors error low high".split()
    return pd.DataFrame(found, columns=columns).astype({"low": float, "high": float})


def candidates(bins: pd.DataFrame, smallest: int = SMALLEST) -> Iterator[tuple[str, np.ndarray]]:
    """Every bin of one property and every crossing of two, by name, with its members (N,) bool.

    A crossing that has the same images as a bin before it is left out, and so is what has fewer than `smallest` images
    or fewer than `smallest` outside.
    """
    seen = set()
    singles = {
        name: {f"{name} {word}": (bins[name] == word).to_numpy() for word in bins[name].cat.categories} for name in bins
    }
    pairs = ((f"{a}, {b}", x & y) for one, two in combinations(singles, 2) for a, x in singles[one].items()
             for b, y in singles[two].items())  # fmt: skip
    for name, members in (*((n, m) for each in singles.values() for n, m in each.items()), *pairs):
        if smallest <= members.sum() <= len(members) - smallest and (key := members.tobytes()) not in seen:
            seen.add(key)
            yield name, members


def find(
    rows: pd.DataFrame,
    bins: pd.DataFrame,
    alpha: float = 0.01,
    seed: int = 0,
    draws: int = DRAWS,
    smallest: int = SMALLEST,
) -> pd.DataFrame:
    """Slices whose error is above average by more than chance explains, after all that were looked at.

    Each draw hands every group the errors of another group of about its size (within a factor of two), in random order:
    Winkler et al. 2015, NeuroImage 123, 253-268, permute whole blocks and within blocks in this way. Images of one
    group stay together, so ten near-duplicates that fail together are one failure. A slice's excess of errors is
    divided by its deviation over the draws; the p-value is the share of draws whose largest such number, over all
    slices, is as large (max-T, Westfall and Young 1993). So the chance that anything is reported where errors have
    nothing to do with the properties is about alpha, however many slices were tried.

    Args:
        rows: columns wrong (bool) and group.
        bins: what `properties.binned` gave, on the same index.
        alpha: the chance above, in (0, 1).
        seed: of the draws.
        draws: how many; no p-value is below 1 / (draws + 1).
        smallest: images in a slice at least; it also spans SPANS groups at least.

    Returns:
        Columns slice, images, groups, errors, error, average, z, p, within; the surest first. `within` names the
        slice above that holds at least COVERED of its images, empty where there is none. `attrs`: tried, the number of
        slices; groups.

    Raises:
        ValueError: alpha outside (0, 1), or too few draws to reach it.
    """
    if not 1 / (draws + 1) <= alpha < 1:
        raise ValueError(f"alpha must be below 1 and at least 1 / (draws + 1) = {1 / (draws + 1):.2g}, got {alpha}")
    number = pd.factorize(rows["group"])[0]
    found = [one for one in candidates(bins, smallest) if len(np.unique(number[one[1]])) >= SPANS]
    columns = "slice images groups errors error average z p within".split()
    attrs = {"tried": len(found), "groups": int(rows["group"].nunique())}
    wrong = rows["wrong"].to_numpy(np.float32)
    if not found or wrong.min() == wrong.max():
        result = pd.DataFrame(columns=columns)
        result.attrs = attrs
        return result
    members = np.stack([one for _, one in found], axis=1).astype(np.float32)  # (N, slices)
    sizes = members.sum(0, dtype=np.float64)
    blocks = [wrong[None], *_permuted(wrong, number, draws, seed)]  # what was observed is one of the draws
    counts = [(one @ members, one.sum(1, keepdims=True)) for one in blocks]  # whole numbers, which float32 has exactly
    excess = np.concatenate([inside - total / len(wrong) * sizes for inside, total in counts])
    spread = excess.std(0)  # (slices,)
    spread[spread < 1e-6] = np.inf  # a slice made of whole groups that have no like cannot be tested
    excess = (excess - excess.mean(0)) / spread  # (1 + draws, slices)
    z, p = excess[0], (excess.max(1)[:, None] >= excess[0] - 1e-6).mean(0)

    listed, result = [], []
    for k in sorted(np.flatnonzero(p <= alpha), key=lambda k: -z[k]):
        inside = members[:, k] > 0
        within = next((name for name, other in listed if other[inside].mean() >= COVERED), "")
        listed.append((found[k][0], inside))
        errors = int(wrong[inside].sum())
        sized = {"images": int(inside.sum()), "groups": len(np.unique(number[inside])), "errors": errors}
        rates = {"error": errors / inside.sum(), "average": float(wrong.mean()), "z": z[k], "p": p[k]}
        result.append({"slice": found[k][0], **sized, **rates, "within": within})
    result = pd.DataFrame(result, columns=columns)
    result.attrs = attrs
    return result


def _permuted(wrong: np.ndarray, number: np.ndarray, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks of permuted errors, (at most BLOCK, N) float32, in the order of the rows; number is each row's group."""
    order = np.argsort(number, kind="stable")  # rows of a group side by side
    sizes = np.bincount(number)
    starts = np.cumsum(sizes) - sizes
    owner = number[order]
    place = np.arange(len(order)) - starts[owner]
    about = np.floor(np.log2(sizes)).astype(int)  # groups of 1, of 2 or 3, of 4 to 7 …
    classes = [np.flatnonzero(about == one) for one in np.unique(about)]
    random = np.random.default_rng(seed)
    donor = np.arange(len(sizes))
    for start in range(0, draws, BLOCK):
        block = np.empty((min(BLOCK, draws - start), len(wrong)), np.float32)
        for row in block:
            for one in classes:
                donor[one] = random.permutation(one)
            shuffled = wrong[order[np.lexsort((random.random(len(order)), owner))]]
            chosen = donor[owner]
            row[order] = shuffled[starts[chosen] + place % sizes[chosen]]
        yield block
