"""What a score is worth as evidence: likelihood ratios, and how often answers were wrong on images of the same kind.

A likelihood ratio says how many times likelier such a score is from a fake than from a photo, and nothing of how common
fakes are. Brümmer and du Preez 2006, doi:10.1016/j.csl.2005.08.001; ENFSI 2015, guideline for evaluative reporting.
"""

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import logit

from dfd.config import REAL

FOLDS = 10  # groups of sources, each of which the others calibrate
LEAST = 50  # images of photos, and of fakes, that a rate is stated for
SIDES = (0, 192, 384, 100_000)  # classes of the shorter side, pixels
LOSSLESS = 101  # stands for the JPEG quality of a file that is none
QUALITIES = (0, 50, 75, 90, LOSSLESS, LOSSLESS + 1)  # classes of libjpeg's quality
Curve = Callable[[np.ndarray], np.ndarray]  # logits (N,) to log10 of likelihood ratios (N,)


def units(scores: pd.DataFrame) -> pd.Series:
    """What counts as one, (N,): an image's source where these are known, else its group of near-duplicates."""
    return scores["source" if "source" in scores else "group"]


def cllr(weights: np.ndarray, lr: np.ndarray, is_fake: np.ndarray) -> np.ndarray:
    """Cost of log10 likelihood ratios (N,), bits, (R,) by weights (R, N): 0 where all is told, 1 where nothing is.

    Above 1 the ratios mislead. Photos and fakes weigh the same; NaN where there are none of one.
    """
    with np.errstate(invalid="ignore"):
        cost = np.logaddexp2(0, np.where(is_fake, -1, 1) * lr * np.log2(10))
        labels = (np.equal(is_fake, label) for label in (1, 0))
        fakes, photos = (weights[:, own] @ cost[own] / weights[:, own].sum(1) for own in labels)
        return (fakes + photos) / 2


def costs(lr: np.ndarray, is_fake: np.ndarray) -> tuple[float, float]:
    """The Cllr, and the least that images in this order could have: the rest is calibration."""
    ones, best = np.ones((1, len(lr))), isotonic(lr, is_fake)(lr)
    return float(cllr(ones, lr, is_fake)[0]), float(cllr(ones, best, is_fake)[0])


def cross_entropy(lr: np.ndarray, is_fake: np.ndarray, odds: np.ndarray) -> np.ndarray:
    """Empirical cross-entropy, bits, at log10 prior odds (P,) of a fake; at 0 it is the Cllr."""
    prior, posterior = 1 / (1 + 10.0**-odds), (lr + odds[:, None]) * np.log2(10)
    fakes, photos = -posterior[:, np.equal(is_fake, 1)], posterior[:, np.equal(is_fake, 0)]
    return prior * np.logaddexp2(0, fakes).mean(1) + (1 - prior) * np.logaddexp2(0, photos).mean(1)


def fit(logits: np.ndarray, is_fake: np.ndarray, groups: ArrayLike, images: ArrayLike) -> dict[str, Any]:
    """Calibrate logits (N,) as likelihood ratios: logistic or isotonic, whichever has the lower Cllr on unseen groups.

    `groups`, (N,), are the sources, or what else is independent; `images`, (N,), name the image of each row. The ratio
    is held within what so many groups carry: with n of photos none of which scores as high, at most 3 in n do (95 %).
    Gives x and log10_lr, the curve's corners; kind, cllr, cllr_min; photos and fakes, images; groups, of both; unit.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # here and below: it takes a second; judging needs none

    photos, fakes = (len(np.unique(np.asarray(images)[np.equal(is_fake, label)])) for label in (0, 1))
    limits = [len(np.unique(np.asarray(groups)[np.equal(is_fake, label)])) for label in (0, 1)]
    folds = min(FOLDS, *limits)
    splits = StratifiedGroupKFold(max(folds, 2), shuffle=True, random_state=0)
    chosen, best, parts = _logistic, (np.nan, np.nan), []
    for kind in (_logistic, isotonic) if folds > 1 else ():
        held = np.zeros(len(logits))
        for learns, tests in (parts := parts or [*splits.split(logits, is_fake, groups)]):
            if len(set(is_fake[learns])) < 2:
                continue  # all groups of a class lie in one part: of that nothing is said
            held[tests] = _limited(kind(logits[learns], is_fake[learns])(logits[tests]), *limits)
        if not best[0] <= (measured := costs(held, is_fake))[0]:
            chosen, best = kind, measured
    x = np.union1d(np.quantile(logits, np.linspace(0, 1, 200)), np.linspace(logits.min(), logits.max(), 200))
    y = _limited(chosen(logits, is_fake)(x), *limits)
    curve = {"kind": chosen.__name__.strip("_"), "x": x.round(4).tolist(), "log10_lr": y.round(4).tolist()}
    curve |= {"cllr": best[0], "cllr_min": best[1], "unit": getattr(groups, "name", None)}
    return curve | {"photos": photos, "fakes": fakes, "groups": limits}


def log10_lr(logits: ArrayLike, fitted: Mapping[str, Any]) -> np.ndarray:
    """The log10 of likelihood ratios by what `fit` gave, of any logits; beyond those it saw, as at the last of them."""
    return np.interp(np.asarray(logits, dtype=float), fitted["x"], fitted["log10_lr"])


def _limited(lr: np.ndarray, photos: int, fakes: int) -> np.ndarray:
    high, low = (np.log10(max(groups / 3, 1)) for groups in (photos, fakes))
    return np.clip(lr, -low, high)


def _logistic(logits: np.ndarray, is_fake: np.ndarray) -> Curve:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1e4, class_weight="balanced").fit(logits[:, None], is_fake)
    slope, bias = max(model.coef_[0, 0], 0), model.intercept_[0]  # a detector that is worse than chance says nothing
    return lambda z: (slope * z + bias * (slope > 0)) / np.log(10)


def isotonic(logits: np.ndarray, is_fake: np.ndarray) -> Curve:
    """The best ratios that images in this order can have, by isotonic regression on themselves."""
    from sklearn.isotonic import IsotonicRegression
    from sklearn.utils.class_weight import compute_sample_weight

    model = IsotonicRegression(y_min=1e-6, y_max=1 - 1e-6, out_of_bounds="clip")
    model.fit(logits, is_fake, compute_sample_weight("balanced", is_fake))
    return lambda z: logit(model.predict(z)) / np.log(10)


def rates(scores: pd.DataFrame, files: pd.DataFrame) -> list[dict[str, Any]]:
    """How often answers were wrong, by an image's shorter side and JPEG quality: bins, finest first, the last is all.

    Rows of a score table with their `answer` (fake, real, unsure), of images in the manifest `files`. Bins with fewer
    than LEAST photos or fakes are left to the coarser ones: of all sizes, and of all images. Each has its limits, side
    and quality; photos, fakes and sources, their numbers; false_alarms, photos called fake; misses, fakes called real;
    unsure, of both; and worst_photos and worst_fakes: a source, and its rate, where sources are known.
    """
    sides, qualities = (list(zip(ends, ends[1:], strict=False)) for ends in (SIDES, QUALITIES))
    any_side, any_quality = (SIDES[0], SIDES[-1]), (QUALITIES[0], QUALITIES[-1])
    kinds = [*product(qualities, sides), *product([*qualities, any_quality], [any_side])]
    by_path = files.set_index("path")
    own_quality = scores["path"].map(by_path["jpeg_quality"]).astype(float).fillna(LOSSLESS)
    judged = scores[["path", "answer"]].assign(source=units(scores), is_fake=scores["label"].ne(REAL))
    judged["side"] = scores["path"].map(by_path[["width", "height"]].min(axis=1))
    judged["quality"] = scores["level"].where(scores["degradation"].eq("jpeg"), own_quality)
    bins = []
    for quality, side in kinds:
        limits = (("side", side), ("quality", quality))
        part = judged[np.all([judged[name].between(*ends, inclusive="left") for name, ends in limits], axis=0)]
        counts = part.groupby("is_fake")["path"].nunique().reindex([False, True], fill_value=0)
        if counts.min() < LEAST and quality != any_quality:
            continue
        row: dict[str, Any] = {"side": side, "quality": quality, "sources": int(part["source"].nunique())}
        for name, wrong, rate in (("photos", "fake", "false_alarms"), ("fakes", "real", "misses")):
            own = part[part["is_fake"] == (is_fake := name == "fakes")]
            of_images = own["answer"].eq(wrong).groupby([own["source"], own["path"]]).mean()
            of_sources = of_images.groupby("source").agg(["mean", "size"])
            known = of_sources.loc[of_sources["size"].ge(LEAST // 5) & ("source" in scores), "mean"]
            row |= {name: int(counts[is_fake]), rate: float(of_images.mean())}
            row[f"worst_{name}"] = (str(known.idxmax()), float(known.max())) if len(known) else None
        of_images = part["answer"].eq("unsure").groupby([part["is_fake"], part["path"]]).mean()
        bins.append(row | {"unsure": float(of_images.mean())})
    return bins


def rate_of(bins: list[dict[str, Any]], side: int, quality: int | None) -> dict[str, Any] | None:
    """The finest bin that an image of this shorter side and JPEG quality, None for none, lies in; None without bins."""
    level = LOSSLESS if quality is None else quality
    within = (bin for bin in bins if bin["side"][0] <= side < bin["side"][1])
    return next((bin for bin in within if bin["quality"][0] <= level < bin["quality"][1]), None)
