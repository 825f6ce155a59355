"""What misjudged images have in common: properties of each image, errors by property, and the search for slices."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, combinations, product

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage

from dfd.core import TEMPLATES, load_rgb, runs
from dfd.data import provenance
from dfd.evaluate.metrics import bootstrap_all, flatten, share

WINDOW = 1024  # side of the middle window that brightness, texture and the like are measured in, pixels
NUMBERS = dict(pd.read_csv(TEMPLATES / "properties.csv").to_numpy().tolist())  # property -> what its axis says
NAMES = ("label", "source", "format")
MEASURED = tuple(NUMBERS)[:5]  # by `describe`
LEAST = 10  # images in a slice that is tested
SPANS = 3  # groups that it has images of, at least
COVERED = 0.8  # share of a slice's images in one listed before it, from which the slice is not news


def describe(image: Image.Image) -> dict[str, float]:
    """Measure the first five NUMBERS of an RGB image, of a large one in the middle WINDOW x WINDOW."""
    left, top = (max((side - WINDOW) // 2, 0) for side in image.size)
    window = image.crop((left, top, min(left + WINDOW, image.width), min(top + WINDOW, image.height)))
    luminance = np.asarray(window.convert("L"), dtype=np.float32) / 255
    laplacian = ndimage.laplace(luminance, mode="reflect")
    contrast, saturation = float(luminance.std()), np.asarray(window.convert("HSV"))[..., 1].mean() / 255
    sharpness = laplacian.std() / contrast if contrast > 1e-6 else 0.0
    values = luminance.mean(), contrast, saturation, np.abs(laplacian).mean(), sharpness
    return dict(zip(MEASURED, map(float, values), strict=True))


def measure(table: pd.DataFrame) -> pd.DataFrame:
    """Of images path, sha256, label, format, jpeg_quality, source, size and what `describe` gives, on their index."""
    with ThreadPoolExecutor() as pool:
        measured = pool.map(lambda path: describe(load_rgb(f"{table.attrs['root']}/{path}")), table["path"])
        numbers = list(runs.bar(measured, total=len(table), desc="properties", unit="image"))
    rows = table[["path", "sha256", "label", "format", "jpeg_quality"]]
    rows = rows.assign(source=sources(table), size=table[["width", "height"]].min(axis=1))
    return rows.join(pd.DataFrame(numbers, rows.index, columns=MEASURED))


def sources(table: pd.DataFrame) -> pd.Series:
    """Each image's source by manifest or provenance.csv, else the first word of its name, where LEAST share that."""
    first = table["path"].str.extract(r"([^/_]*)_[^/]*$", expand=False).fillna("unknown")
    first = first.mask(first.groupby(first).transform("size") < LEAST, "other")
    return provenance.of(table).fillna(first)


def binned(measured: pd.DataFrame, bins: int = 3) -> pd.DataFrame:
    """Properties as a few words each, in categorical columns: names as they are, numbers in bins of about equal size.

    A number with no more different values than bins keeps them. What is missing, or the same everywhere, is left out.
    """
    names, numbers = ([name for name in kind if name in measured] for kind in (NAMES, NUMBERS))
    table = measured[names].astype("category").join(measured[numbers].apply(_bin, bins=bins))
    return table.loc[:, table.nunique() > 1]


def _bin(values: pd.Series, bins: int) -> pd.Series:
    """Quantile bins named by their limits, three digits or whole numbers; what is missing comes first."""
    codes = values.rank(method="dense") - 1
    if values.nunique() > bins:
        codes = pd.qcut(values, bins, labels=False, duplicates="drop")
        if codes.nunique() < 2:  # most have the smallest value, or the largest
            codes = (values > values.mean()).astype(float).where(values.notna())
    limits = values.groupby(codes).agg(["min", "max"]).map(lambda value: f"{value:{'.0f' if value >= 1000 else '.3g'}}")
    words = [low if low == high else f"{low} to {high}" for low, high in limits.to_numpy()]
    words = [word if words.index(word) == i else f"{word} ({i})" for i, word in enumerate(words)]  # that read alike
    places = codes.rank(method="dense").fillna(0).astype(int)
    names = pd.Index(["no JPEG" if values.name == "jpeg_quality" else "unknown", *words])
    return pd.Series(pd.Categorical.from_codes(places, names, ordered=True), values.index)


def by_property(rows: pd.DataFrame, bins: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """The error in each bin of each property, with 95 % intervals over groups; attrs["average"], over all images.

    Takes the columns wrong (bool) and group, and `binned` on the same index.
    """
    result = []
    for name in bins:
        for word, part in rows.groupby(bins[name], observed=True):
            wrong, groups = part["wrong"].to_numpy(), part["group"].nunique()
            error = bootstrap_all(part["group"], {"error": partial(share, right=wrong)}, seed)["error"]
            row = {"property": name, "bin": str(word), "images": len(part), "groups": groups}
            result.append(row | {"errors": int(wrong.sum())} | flatten({"error": error}))
    columns = "property bin images groups errors error error_low error_high".split()
    table = pd.DataFrame(result, columns=columns).astype({"error_low": float, "error_high": float})
    table.attrs["average"] = float(rows["wrong"].mean())
    return table


def candidates(bins: pd.DataFrame, least: int = LEAST) -> Iterator[tuple[str, np.ndarray]]:
    """Name and members, (N,) bool, of each bin and crossing of two bins, once, with `least` images in and outside."""
    words = {name: bins[name].cat.categories for name in bins}
    single = [[(f"{name} {word}", (bins[name] == word).to_numpy()) for word in words[name]] for name in bins]
    pairs, seen = chain.from_iterable(product(*lists) for lists in combinations(single, 2)), set()
    for name, members in chain(*single, ((f"{a}, {b}", x & y) for (a, x), (b, y) in pairs)):
        if least <= members.sum() <= len(members) - least and members.tobytes() not in seen:
            seen.add(members.tobytes())
            yield name, members


def find(rows: pd.DataFrame, bins: pd.DataFrame, alpha: float = 0.01, seed: int = 0, draws: int = 2000) -> pd.DataFrame:
    """Slices whose error is above average by more than chance explains, after all that were looked at; surest first.

    Each draw hands every group the errors of another group of about its size (within a factor of two), in random order:
    block permutation, Winkler et al. 2015, NeuroImage 123, 253-268. A slice's excess of errors is divided by its
    deviation over the draws; p is the share of draws whose largest such number, over all slices, is as large (max-T,
    Westfall and Young 1993). `within`: the slice above that holds COVERED of its images; attrs: tried (slices), groups.
    """
    if not 1 / (draws + 1) <= alpha < 1:
        raise ValueError(f"alpha must be below 1 and at least 1 / (draws + 1) = {1 / (draws + 1):.2g}, got {alpha}")
    group, wrong = pd.factorize(rows["group"])[0], rows["wrong"].to_numpy(np.float32)
    tried = [(name, inside) for name, inside in candidates(bins) if len(np.unique(group[inside])) >= SPANS]
    result, listed, average = [], {}, float(wrong.mean())
    if tried and 0 < average < 1:
        z, p = _max_t(wrong, group, np.stack([inside for _, inside in tried], axis=1), draws, seed)
        for k in sorted(np.flatnonzero(p <= alpha), key=lambda k: -z[k]):
            name, inside = tried[k]
            within = next((above for above, other in listed.items() if other[inside].mean() >= COVERED), "")
            listed[name] = inside
            count, groups, errors = int(inside.sum()), len(np.unique(group[inside])), int(wrong[inside].sum())
            result.append((name, count, groups, errors, errors / count, average, z[k], p[k], within))
    table = pd.DataFrame(result, columns="slice images groups errors error average z p within".split())
    table.attrs = {"tried": len(tried), "groups": int(rows["group"].nunique())}
    return table


def _max_t(wrong: np.ndarray, group: np.ndarray, members: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Standardised excess of errors in each slice, and its p-value over all: (2, slices) from members (N, slices)."""
    rows = np.stack([wrong, *_permuted(wrong, group, draws, seed)])  # what was observed is one of the draws
    inside = rows @ members.astype(np.float32)  # (1 + draws, slices); whole numbers, which float32 has exactly
    excess = inside - rows.mean(1, dtype=np.float64, keepdims=True) * members.sum(0)
    spread = excess.std(0)
    spread[spread < 1e-6] = np.inf  # a slice made of whole groups that have no like cannot be tested
    excess = (excess - excess.mean(0)) / spread
    return np.stack([excess[0], (excess.max(1)[:, None] >= excess[0] - 1e-6).mean(0)])


def _permuted(wrong: np.ndarray, group: np.ndarray, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Permuted errors, (N,) float32 in the order of the rows; `group` is the number of each row's group."""
    order, sizes = np.argsort(group, kind="stable"), np.bincount(group)  # rows of a group side by side
    starts, owner = np.cumsum(sizes) - sizes, group[order]
    place = np.arange(len(order)) - starts[owner]
    power = np.floor(np.log2(sizes)).astype(int)  # groups of 1, of 2 or 3, of 4 to 7 …
    random, donor = np.random.default_rng(seed), np.arange(len(sizes))
    for _ in range(draws):
        for size in np.unique(power):
            donor[power == size] = random.permutation(np.flatnonzero(power == size))
        shuffled = wrong[order[np.argsort(owner + random.random(len(order)))]]
        permuted = np.empty_like(wrong)
        permuted[order] = shuffled[starts[donor[owner]] + place % sizes[donor[owner]]]
        yield permuted
