"""What each image is like, measured once by its content: brightness, texture, faces and what its file says."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage
from skimage.data import lbp_frontal_face_cascade_filename
from skimage.feature import Cascade

from dfd.core.images import load_rgb
from dfd.core.io import atomic_write
from dfd.core.runs import bar
from dfd.data import provenance
from dfd.data.layouts import ManifestError
from dfd.evaluate.metrics import interval

VERSION = 1  # raise it when what `describe` returns changes
FILE = "properties.parquet"
WINDOW = 1024  # side of the middle window that brightness, texture and the like are measured in, pixels
FACE_SIDE = 256  # an image is reduced to this longer side before faces are looked for, pixels
# Property -> what its axis says. The first six are `describe`'s.
NUMBERS = {
    "brightness": "mean luminance (0 to 1)",
    "contrast": "deviation of the luminance (0 to 0.5)",
    "saturation": "mean saturation (0 to 1)",
    "texture": "mean absolute Laplacian (luminance)",
    "sharpness": "Laplacian's deviation / contrast",
    "face": "largest face's width / shorter side",
    "size": "shorter side (pixels)",
    "jpeg_quality": "JPEG quality of the file (1 to 100)",
}
NAMES = ("label", "source", "format")
MEASURED = tuple(NUMBERS)[:6]


def describe(image: Image.Image) -> dict[str, float]:
    """Measure one image on its own pixels; of a large one the middle WINDOW x WINDOW, but for the face.

    Args:
        image: mode RGB.

    Returns:
        brightness and contrast: mean and deviation of the luminance, in [0, 1]; saturation: mean of HSV's, in [0, 1];
        texture: mean absolute Laplacian of the luminance, high where there is fine detail or noise; sharpness: the
        Laplacian's deviation over the luminance's, low where an image is blurred, whatever its contrast, and 0 where it
        is flat; face: see `face_share`.
    """
    left, top = (max((side - WINDOW) // 2, 0) for side in image.size)
    window = image.crop((left, top, min(left + WINDOW, image.width), min(top + WINDOW, image.height)))
    luminance = np.asarray(window.convert("L"), dtype=np.float32) / 255
    laplacian = ndimage.laplace(luminance, mode="reflect")
    contrast = float(luminance.std())
    return {
        "brightness": float(luminance.mean()),
        "contrast": contrast,
        "saturation": float(np.asarray(window.convert("HSV"))[..., 1].mean() / 255),
        "texture": float(np.abs(laplacian).mean()),
        "sharpness": float(laplacian.std() / contrast) if contrast > 1e-6 else 0.0,
        "face": face_share(image),
    }


def face_share(image: Image.Image) -> float:
    """Width of the largest upright, frontal face over the image's shorter side; 0 where none is found.

    scikit-image's LBP cascade. In a test split of ../shared/data/GANAttributes it found one in 94 % of 103 aligned
    photos of faces, in 73 % and 86 % of two generators' 168 aligned faces, in 1 % of 195 crops that cut a face, and in
    3 % of 233 images of ImageNet and BigGAN. Faces below a sixth of the shorter side are not looked for.
    """
    grey = image.convert("L")
    grey.thumbnail((FACE_SIDE, FACE_SIDE), Image.Resampling.BILINEAR)
    side = min(grey.size)
    if side < 24:  # the cascade's own window
        return 0.0
    smallest, largest = (max(24, side // 6),) * 2, (side, side)
    found = _cascade().detect_multi_scale(np.asarray(grey), 1.2, 1, smallest, largest)
    return max((one["width"] for one in found), default=0) / side


@cache
def _cascade() -> Cascade:
    return Cascade(lbp_frontal_face_cascade_filename())


def measure(table: pd.DataFrame, out: str | Path) -> pd.DataFrame:
    """Describe images, each content once: what properties.parquet in the run folder knows is not measured again.

    Args:
        table: rows of the manifest, with its root in attrs.
        out: the run folder; its properties.parquet grows by what is new.

    Returns:
        On the table's index: path, sha256, label, format, source, size (shorter side, pixels), jpeg_quality, and the
        numbers of `describe`. Without a column source in the manifest, the source is that of provenance.csv or, where
        there is none, the first word of the file name.

    Raises:
        ImageError: an image that the manifest lists can no longer be read.
    """
    path = Path(out) / FILE
    known = pd.read_parquet(path) if path.exists() else pd.DataFrame()
    if known.attrs.get("version") != VERSION:
        known = pd.DataFrame(columns=MEASURED, index=pd.Index([], name="sha256"), dtype=float)
    new = table[~table["sha256"].isin(known.index)].drop_duplicates("sha256")
    if len(new):
        root = Path(table.attrs["root"])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            looks = pool.map(lambda name: describe(load_rgb(root / name)), new["path"])
            rows = list(bar(looks, total=len(new), desc="properties", unit="image"))
        found = pd.DataFrame(rows, index=pd.Index(new["sha256"], name="sha256"))
        known = pd.concat([known, found]) if len(known) else found
        known.attrs = {"version": VERSION}
        with atomic_write(path) as draft:
            known.to_parquet(draft)
    rows = table[["path", "sha256", "label", "format", "jpeg_quality"]].assign(
        source=sources(table), size=table[["width", "height"]].min(axis=1)
    )
    return rows.join(known[list(MEASURED)], on="sha256")


def sources(table: pd.DataFrame) -> pd.Series:
    """Where each image comes from: the manifest's source, provenance.csv's, or the first word of the file name."""
    if "source" in table:
        return table["source"]
    name = table["path"].str.rsplit("/", n=1).str[-1]
    first = name.str.split("_").str[0].where(name.str.contains("_"), "unknown")
    try:
        return table["path"].map(provenance.read(Path(table.attrs["root"]), "source")).fillna(first)
    except ManifestError:
        return first


def join(rows: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """Rows of a score table with the properties of their images; same order, same columns first."""
    return rows.merge(measured.drop(columns=["label"]), on="path", how="left", validate="many_to_one")


def binned(measured: pd.DataFrame, properties: Sequence[str] = (*NAMES, *NUMBERS), bins: int = 3) -> pd.DataFrame:
    """Properties as a few words each: names as they are, numbers in `bins` bins of about equal size.

    Args:
        measured: columns as `measure` gives them; a property that it does not have is left out.
        properties: which.
        bins: of each number; one with no more different values than that keeps them. A face is "none" or in two bins,
            and a file without a JPEG quality is "no JPEG".

    Returns:
        Categorical columns on the same index, in the order of the values; a property that is the same everywhere is
        left out.
    """
    found = {}
    for name in properties:
        if name not in measured:
            continue
        if name not in NUMBERS:
            column = measured[name].astype("category")
        elif name == "face":
            column = _bin(measured[name].replace(0.0, np.nan), max(bins - 1, 1), "none")
        else:
            column = _bin(measured[name], bins, "no JPEG" if name == "jpeg_quality" else "unknown")
        if column.nunique() > 1:
            found[name] = column
    return pd.DataFrame(found, index=measured.index)


def _bin(values: pd.Series, bins: int, missing: str) -> pd.Series:
    """Quantile bins named by their limits, three significant digits; what is missing comes first."""
    known = values.dropna()
    if known.nunique() <= bins:
        place, words = values.map({v: k for k, v in enumerate(sorted(known.unique()))}), sorted(known.unique())
        words = [f"{value:.3g}" for value in words]
    else:
        cut = pd.qcut(known, bins, duplicates="drop")
        place = cut.cat.codes.reindex(values.index)
        limits = known.groupby(cut.cat.codes).agg(["min", "max"]).reindex(range(len(cut.cat.categories)))
        words = [f"{low:.3g} to {high:.3g}" for low, high in limits.to_numpy()]
    codes = place.fillna(-1).astype(int) + 1
    return pd.Series(pd.Categorical.from_codes(codes, _different([missing, *words]), ordered=True), values.index)


def _different(words: list[str]) -> list[str]:
    """Words that read alike get a number."""
    return [word if words.index(word) == i else f"{word} ({i})" for i, word in enumerate(words)]


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
