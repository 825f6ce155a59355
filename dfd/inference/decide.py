"""The one place that turns logits into decisions, and what the decisions are fitted with on validation images."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy  # loads `optimize`, a third of a second, where something is fitted
from numpy.typing import ArrayLike
from scipy.special import log_softmax, softmax

from dfd.config import REAL
from dfd.degrade import registry
from dfd.inference import likelihood
from dfd.inference.stage import Stage

UNKNOWN = "unknown"  # the source of a fake that is like none of the generators
ERRORS = 0.05  # share of photos that are called fake, and of fakes that are called real; between them: unsure
PER_SOURCE = 200  # rows of each source, drawn with replacement, that all but rates is fitted on
OPERATING_POINTS = {"balanced": None, "fpr_5": 0.05, "fpr_1": 0.01}  # name -> false positive rate on validation


class Decisions(NamedTuple):
    """What a stage says of N images."""

    prediction: np.ndarray  # (N,) real or fake, or a generator's name or unknown
    probabilities: np.ndarray  # (N, K), calibrated
    candidates: np.ndarray  # (N, K) bool: the classes that stay possible, a conformal set; stage 1 rules none out


def decide(logits: ArrayLike, stage: Stage, ood_score: Any = None, threshold: float | None = None) -> Decisions:
    """Decide on images by a stage's logits (N, K), for score tables and for the Detector alike.

    Without `ood_score`, (N,), no generator is unknown. `threshold` on p_fake stands in for stage 1's own.
    """
    p = softmax(np.asarray(logits, dtype=float) / stage.temperature, axis=1)
    if stage.stage == "stage1":
        cut = stage.threshold if threshold is None else threshold
        return Decisions(np.where(p[:, 1] >= cut, "fake", "real"), p, np.ones(p.shape, dtype=bool))
    prediction = np.array(stage.classes, dtype=object)[p.argmax(1)]
    if ood_score is not None and stage.ood_threshold is not None:
        unknown = UNKNOWN
        while unknown in stage.classes:  # a folder may be called so
            unknown += "?"
        prediction[np.asarray(ood_score, dtype=float) > stage.ood_threshold] = unknown
    return Decisions(prediction, p, prediction_sets(p, stage.conformal_quantile))


def limits(stage: Any, threshold: float | None = None) -> tuple[float, float]:
    """Stage 1's band, of which `threshold` stands in for the upper end: below it is real, from its end on fake."""
    low, high = stage.band or (stage.threshold, stage.threshold)
    return (low, high) if threshold in (None, stage.threshold) else (min(low, threshold), threshold)


def answer(p_fake: float, stage: Any, threshold: float | None = None) -> str:
    """Say fake, real or, within these `limits`, unsure."""
    low, high = limits(stage, threshold)
    return "fake" if p_fake >= high else "real" if p_fake < low else "unsure"


def prediction_sets(probabilities: np.ndarray, quantile: float) -> np.ndarray:
    """The names that stay possible, (N, K) bool: those no less probable than 1 - quantile, and the top one."""
    p = np.asarray(probabilities)
    return (1 - p <= quantile) | (np.arange(p.shape[1]) == p.argmax(1)[:, None])


def logit_columns(scores: pd.DataFrame) -> list[str]:
    """The logit columns of a score table, in class order."""
    return [name for name in scores.columns if name.startswith("logit_")]


def class_names(scores: pd.DataFrame) -> list[str]:
    """The classes of a score table, in order."""
    return [name.removeprefix("logit_") for name in logit_columns(scores)]


def probabilities(scores: pd.DataFrame, temperature: float) -> np.ndarray:
    """Calibrated probabilities (N, K) of a score table's classes; in stage 1's column 1 is fake."""
    return softmax(scores[logit_columns(scores)].to_numpy(float) / temperature, axis=1)


def stage_of(scores: pd.DataFrame) -> str:
    """The stage that a score table is of: the classes of stage 1 are in an order that no generators', sorted, have."""
    return "stage1" if class_names(scores) == ["real", "fake"] else "stage2"


def true_class(scores: pd.DataFrame) -> pd.Series:
    """The class each row should get: real or fake in stage 1's table, the generator in stage 2's."""
    if stage_of(scores) == "stage1":
        return scores["label"].eq(REAL).map({True: "real", False: "fake"})
    return scores["label"]


def closed_set(scores: pd.DataFrame) -> pd.Series:
    """The prediction among the known classes: stage 1's own, stage 2's likeliest name, also where it says unknown."""
    if stage_of(scores) == "stage1":
        return scores["prediction"]
    likeliest = scores[logit_columns(scores)].to_numpy(float).argmax(1)
    return pd.Series(np.array(class_names(scores), dtype=object)[likeliest], scores.index, name="prediction")


def confidences(scores: pd.DataFrame, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Probability of each row's likeliest class, (N,) in [0, 1], and whether that class is the true one, (N,)."""
    p, names = probabilities(scores, temperature), np.array(class_names(scores), dtype=object)
    return p.max(1), names[p.argmax(1)] == true_class(scores).to_numpy()


def by_draw(judged: pd.DataFrame) -> pd.DataFrame:
    """One row per draw of hold-outs and condition: sources left out, and `auc` (stage 1) or `accuracy` (stage 2).

    Sources weigh the same, whatever their number of images; accuracy is the mean over the generators.
    """
    from sklearn.metrics import roc_auc_score  # here and below: it takes a second, and judging needs none

    rows = []
    groups: Any = judged.groupby(["draw", "degradation", "level"], sort=False)
    for (draw, degradation, level), part in groups:
        sources = part.groupby("label")["source"].unique().map(", ".join).to_dict()
        row = {**sources, "draw": draw, "condition": registry.name(degradation, level)}
        if stage_of(part) == "stage1":
            weights, is_fake = 1 / part.groupby(["label", "source"])["path"].transform("size"), part["label"].ne(REAL)
            both = is_fake.nunique() > 1
            row["auc"] = roc_auc_score(is_fake, part["logit_fake"], sample_weight=weights) if both else np.nan
        else:
            right = part["prediction"].eq(part["label"]).groupby([part["label"], part["source"]]).mean()
            row["accuracy"] = right.groupby("label").mean().mean()
        rows.append(row)
    return pd.DataFrame(rows)


def summary(judged: pd.DataFrame) -> pd.DataFrame:
    """Mean, deviation, worst and number of the draws, one row a condition; the mean of a draw's sources in between."""
    draws = by_draw(judged)
    metric = "auc" if "auc" in draws else "accuracy"
    table = draws.groupby("condition", sort=False)[metric].agg(["mean", "std", "min", "count"])
    return table.set_axis([metric, "deviation", "worst draw", "draws"], axis=1)


def fit(stage: Stage, rows: pd.DataFrame, files: pd.DataFrame | None = None, coverage: float = 0.9,
        accept: float = 0.95) -> dict[str, Any]:  # fmt: skip
    """Fit what a stage decides by on validation rows, or hold-outs, whose sources weigh alike: entries of checkpoints.

    temperature; of stage 1 threshold, operating_points, band, the p_fake between which the answer is unsure,
    validation, the p_fake of these photos and fakes, likelihood and, with the manifest `files`, rates; of stage 2
    coverage, conformal_quantile, and ood_threshold: the share `accept` is not called unknown.
    """
    every = rows
    if "draw" in rows:
        rows = rows.groupby(["label", "source"]).sample(PER_SOURCE, replace=True, random_state=0)
    temperature = fit_temperature(rows)
    p = probabilities(rows, temperature)
    if stage.stage == "stage1":
        is_photo = rows["label"].eq(REAL).to_numpy()
        photos, fakes = np.sort(p[is_photo, 1]), np.sort(p[~is_photo, 1])
        points = {name: fit_threshold(photos, fakes, fpr) for name, fpr in OPERATING_POINTS.items()}
        validation = {"photos": photos.tolist(), "fakes": fakes.tolist()}
        low, threshold = 1 - fit_threshold(1 - fakes, 1 - photos, ERRORS), points["balanced"]
        band = [min(low, threshold), max(points["fpr_5"], threshold)]
        fitted = {"threshold": threshold, "operating_points": points, "band": band, "validation": validation}
        logits = rows["logit_fake"].to_numpy(float) - rows["logit_real"].to_numpy(float)
        fitted["likelihood"] = likelihood.fit(logits, ~is_photo, likelihood.units(rows), rows["path"])
        if files is not None:
            rule = SimpleNamespace(**fitted)
            answers = [answer(p_fake, rule) for p_fake in probabilities(every, temperature)[:, 1]]
            fitted["rates"] = likelihood.rates(every.assign(answer=answers), files)
        return {"temperature": temperature, **fitted}
    quantile = fit_conformal(p, rows["label"].map(stage.classes.index).to_numpy(), coverage, rows["group"].to_numpy())
    unlike = float(np.quantile(rows["ood_score"].to_numpy(), accept - 1e-9, method="inverted_cdf"))
    return {"temperature": temperature, "coverage": coverage, "conformal_quantile": quantile, "ood_threshold": unlike}


def fit_temperature(scores: pd.DataFrame) -> float:
    """Temperature in [0.05, 1e5] of the least log-loss over balanced classes; Guo et al. 2017, arXiv:1706.04599."""
    truth, names = true_class(scores), class_names(scores)
    logits, index = scores[logit_columns(scores)].to_numpy(), truth.map(names.index).to_numpy()
    weight = (1 / truth.map(truth.value_counts())).to_numpy()

    def loss(log_t: float) -> float:
        likelihood = log_softmax(logits / np.exp(log_t), axis=1)[np.arange(len(index)), index]
        return -float(np.average(likelihood, weights=weight))

    best: Any = scipy.optimize.minimize_scalar(loss, bounds=(np.log(0.05), np.log(1e5)), method="bounded")
    return float(np.exp(best.x))


def fit_threshold(photos: ArrayLike, fakes: ArrayLike, fpr: float | None = None) -> float:
    """The p_fake from which an image is called fake, midway between two p_fake of these photos and fakes.

    The best balanced accuracy, above all where chance is as good; or with `fpr`, in [0, 1), the lowest cut that calls
    at most this share of photos fake, just above 1 where no other may; of few, 1 % is a guess. ValueError: one lacks.
    """
    photos, fakes = np.sort(photos)[::-1], np.asarray(fakes)
    if not len(photos) or not len(fakes):
        raise ValueError("a threshold is fitted on photos and fakes of validation, by notebook 01: one is missing")
    p = np.concatenate([photos, fakes])
    if fpr is None:
        from sklearn.metrics import roc_curve

        false, true, cuts = roc_curve(np.arange(len(p)) >= len(photos), p, drop_intermediate=False)
        gain = true - false
        if gain.max() < 1e-12:  # then nobody is accused
            return float(min(np.nextafter(p.max(), 2), 1 - 1e-9))
        best = np.flatnonzero(gain >= gain.max() - 1e-12)
        cut = cuts[best[len(best) // 2]]
        return float((cut + max(p[p < cut], default=cut)) / 2)
    if not 0 <= fpr < 1:
        raise ValueError(f"fpr is a share of photos in [0, 1), such as 0.05; got {fpr}")
    spared = photos[int(fpr * len(photos) + 1e-9)]  # 0.07 * 100 is a little more than 7, 0.29 * 100 a little less
    return float(max((spared + min(p[p > spared], default=1 + 1e-6)) / 2, np.nextafter(spared, 2)))


def fit_conformal(probabilities: np.ndarray, true: np.ndarray, coverage: float, groups: ArrayLike) -> float:
    """How improbable the true class may be for a set of names to hold it at the promised rate, for `prediction_sets`.

    Split conformal prediction (Vovk et al. 2005) with 1 - p(true class) as its score (Sadinle, Lei and Wasserman 2019,
    arXiv:1609.00451). It holds on average over images like these, not for one class, a degradation or a new generator,
    and is 1, with every class in each set, where images or groups are too few: 0.9 needs nine.
    `probabilities` (N, K) are of images that no weight was fitted on, though temperature and epoch were chosen on them;
    `true` (N,) numbers classes. Each of the `groups` (N,) weighs the same, and the promise is for an image of a new one
    (Lee, Barber and Willett 2023, arXiv:2306.06342).
    """
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    misfit = 1 - probabilities[np.arange(len(true)), true]
    misfits, weights = np.append(misfit, 1.0), np.append(1 / sizes[group], 1.0)  # the last is of the new group
    return float(np.quantile(misfits, coverage - 1e-9, weights=weights, method="inverted_cdf"))
