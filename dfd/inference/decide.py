"""The one place that turns logits into decisions, and what the decisions are fitted with on validation images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import roc_curve

from dfd.config import REAL

UNKNOWN = "unknown"  # the source of a fake that is like none of the generators
OPERATING_POINTS = {"balanced": None, "fpr_5": 0.05, "fpr_1": 0.01}  # name -> false positive rate on validation


class Rule(Protocol):
    """What a stage decides by: a `Stage`, or anything with the same attributes."""

    stage: str
    classes: Sequence[str]
    temperature: float
    threshold: float  # stage 1: on p_fake
    ood_threshold: float | None  # stage 2: above it a fake's generator is unknown
    conformal_quantile: float  # stage 2: of the sets of possible names


class Decisions(NamedTuple):
    """What a stage says of N images."""

    prediction: np.ndarray  # (N,) real or fake, or a generator's name or unknown
    probabilities: np.ndarray  # (N, K), calibrated
    candidates: np.ndarray  # (N, K) bool: the classes that stay possible, a conformal set; stage 1 rules none out


def decide(
    logits: ArrayLike, rule: Rule, ood_score: ArrayLike | None = None, threshold: float | None = None
) -> Decisions:
    """Decide on images, for score tables and for the Detector alike.

    Args:
        logits: (N, K), in the order of the rule's classes.
        rule: the stage that gave them.
        ood_score: (N,), how far from the training images each lies; none knows no unknown generator.
        threshold: on p_fake, in place of the rule's own.
    """
    p = softmax(np.asarray(logits, dtype=float) / rule.temperature, axis=1)
    if rule.stage == "stage1":
        cut = rule.threshold if threshold is None else threshold
        return Decisions(np.where(p[:, 1] >= cut, "fake", "real"), p, np.ones(p.shape, dtype=bool))
    prediction = np.array(rule.classes, dtype=object)[p.argmax(1)]
    ood_threshold = getattr(rule, "ood_threshold", None)
    if ood_score is not None and ood_threshold is not None:
        prediction[np.asarray(ood_score, dtype=float) > ood_threshold] = UNKNOWN
    return Decisions(prediction, p, prediction_sets(p, getattr(rule, "conformal_quantile", 1.0)))


def logit_columns(scores: pd.DataFrame) -> list[str]:
    """The logit columns of a score table, in class order."""
    return [name for name in scores.columns if name.startswith("logit_")]


def class_names(scores: pd.DataFrame) -> list[str]:
    """The classes of a score table, in order."""
    return [name.removeprefix("logit_") for name in logit_columns(scores)]


def probabilities(scores: pd.DataFrame, temperature: float) -> np.ndarray:
    """Calibrated probabilities (N, K) of a score table's classes."""
    return softmax(scores[logit_columns(scores)].to_numpy(float) / temperature, axis=1)


def p_fake(scores: pd.DataFrame, temperature: float) -> np.ndarray:
    """Calibrated probability of fake, (N,), from stage 1's logits."""
    return probabilities(scores[["logit_real", "logit_fake"]], temperature)[:, 1]


def true_class(scores: pd.DataFrame) -> pd.Series:
    """The class each row should get: real or fake in stage 1's table, the generator in stage 2's."""
    if "logit_fake" in scores:
        return scores["label"].eq(REAL).map({True: "real", False: "fake"})
    return scores["label"]


def closed_set(scores: pd.DataFrame) -> pd.Series:
    """The prediction among the known classes: stage 1's own, stage 2's likeliest name, also where it says unknown."""
    if "logit_fake" in scores:
        return scores["prediction"]
    likeliest = scores[logit_columns(scores)].to_numpy(float).argmax(1)
    return pd.Series(np.array(class_names(scores), dtype=object)[likeliest], scores.index, name="prediction")


def confidences(scores: pd.DataFrame, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Probability of each row's likeliest class, (N,) in [0, 1], and whether that class is the true one, (N,)."""
    p = probabilities(scores, temperature)
    if "logit_fake" in scores:
        return p.max(1), (p[:, 1] >= 0.5) == true_class(scores).eq("fake").to_numpy()
    return p.max(1), closed_set(scores).eq(scores["label"]).to_numpy()


def fit(stage: Rule, rows: pd.DataFrame, coverage: float = 0.9, accept: float = 0.95) -> dict[str, Any]:
    """Fit what a stage decides by on clean validation rows of its score table.

    Args:
        coverage: promise of stage 2's conformal sets.
        accept: share of these rows that stage 2 does not call unknown.

    Returns:
        Attributes of a Stage, and entries of its checkpoint. temperature; of stage 1 threshold, operating_points, and
        validation, the p_fake of these photos and fakes, for thresholds at other rates; of stage 2 coverage,
        conformal_quantile, and ood_threshold where the rows have an ood_score.
    """
    temperature = fit_temperature(rows)
    fitted: dict[str, Any] = {"temperature": temperature}
    if stage.stage == "stage1":
        points, p = operating_points(rows, temperature), p_fake(rows, temperature)
        is_photo = rows["label"].eq(REAL).to_numpy()
        fitted |= {"operating_points": points, "threshold": points["balanced"]}
        return fitted | {
            "validation": {"photos": np.sort(p[is_photo]).tolist(), "fakes": np.sort(p[~is_photo]).tolist()}
        }
    true = rows["label"].map(list(stage.classes).index).to_numpy()
    quantile = fit_conformal(probabilities(rows, temperature), true, coverage, rows["group"].to_numpy())
    fitted |= {"coverage": coverage, "conformal_quantile": quantile}
    if "ood_score" in rows:
        fitted["ood_threshold"] = fit_ood_threshold(rows["ood_score"].to_numpy(float), accept)
    return fitted


def fit_temperature(scores: pd.DataFrame) -> float:
    """Temperature in [0.05, 20] that minimises the negative log-likelihood; Guo et al. 2017, arXiv:1706.04599.

    Classes weigh the same, whatever their number of images.
    """
    truth, names = true_class(scores), class_names(scores)
    logits, index = scores[logit_columns(scores)].to_numpy(), truth.map(names.index).to_numpy()
    weight = (1 / truth.map(truth.value_counts())).to_numpy()

    def loss(log_t: float) -> float:
        likelihood = log_softmax(logits / np.exp(log_t), axis=1)[np.arange(len(index)), index]
        return -float(np.average(likelihood, weights=weight))

    best: Any = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(best.x))


def fit_threshold(scores: pd.DataFrame, temperature: float, fpr: float | None = None) -> float:
    """The p_fake from which an image is called fake, midway between two scores of these rows.

    The best balanced accuracy; or with `fpr`, in [0, 1), the lowest cut that calls at most this share of the photos
    fake. On other photos the share may be higher: with few photos a share of 1 % is a guess. A ValueError where the
    rows hold one class alone.
    """
    is_fake, p = true_class(scores).eq("fake").to_numpy(), p_fake(scores, temperature)
    if is_fake.all() or not is_fake.any():
        raise ValueError("a threshold is fitted on photos and fakes, and these rows hold one of them only; see split")
    if fpr is not None:
        return threshold_at_fpr(fpr, p[~is_fake], p[is_fake])
    false, true, cuts = roc_curve(is_fake, p, drop_intermediate=False)
    gain = true - false
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    cut = cuts[best[len(best) // 2]]
    if not np.isfinite(cut):
        return 0.5
    return float((cut + max(p[p < cut], default=cut)) / 2)


def threshold_at_fpr(fpr: float, photos: ArrayLike, fakes: ArrayLike) -> float:
    """The lowest cut that calls at most the share `fpr`, in [0, 1), of these photos fake; p_fake of both kinds.

    Midway between two scores; just above 1 where no other is allowed, and then nothing is called fake.
    """
    if not 0 <= fpr < 1:
        raise ValueError(f"fpr is a share of photos in [0, 1), such as 0.05; got {fpr}")
    photos = np.sort(photos)[::-1]
    allowed = int(fpr * len(photos) + 1e-9)  # 0.07 * 100 is a little more than 7, 0.29 * 100 a little less than 29
    spared, p = photos[allowed], np.concatenate([photos, fakes])
    return float((spared + min(p[p > spared], default=1 + 1e-6)) / 2)


def operating_points(scores: pd.DataFrame, temperature: float) -> dict[str, float]:
    """Thresholds on p_fake by their names in OPERATING_POINTS, fitted on these rows; see fit_threshold."""
    return {name: fit_threshold(scores, temperature, fpr) for name, fpr in OPERATING_POINTS.items()}


def stored_threshold(fpr: float, validation: dict[str, list[float]], points: dict[str, float]) -> float:
    """The threshold at a false positive rate, from a checkpoint's `validation` or else its `operating_points`.

    A ValueError where nothing stored gives it; the text says what is.
    """
    if validation:
        return threshold_at_fpr(fpr, validation["photos"], validation["fakes"])
    stored = {rate: points[name] for name, rate in OPERATING_POINTS.items() if rate and name in points}
    for rate, threshold in stored.items():
        if abs(fpr - rate) < 1e-9:
            return threshold
    rest = f"it has {' and '.join(f'{rate:g}' for rate in sorted(stored))}" if stored else "nor for any other"
    remedy = "notebook 01 stores what every other rate needs when it is run again"
    raise ValueError(f"this checkpoint has no threshold for a false positive rate of {fpr:g}; {rest}; {remedy}")


def fit_ood_threshold(known_scores: np.ndarray, accept: float = 0.95) -> float:
    """The lowest threshold that at least the share `accept`, in (0, 1], of known generators' images do not exceed."""
    if not len(known_scores) or not np.isfinite(known_scores).all() or not 0 < accept <= 1:
        raise ValueError(f"a threshold needs finite scores and a share in (0, 1]; got {len(known_scores)} and {accept}")
    needed = int(np.ceil(accept * len(known_scores) - 1e-9))  # 0.07 * 100 is a little more than 7
    return float(np.sort(known_scores)[needed - 1])


def fit_conformal(
    probabilities: np.ndarray, true: np.ndarray, coverage: float = 0.9, groups: np.ndarray | None = None
) -> float:
    """How improbable the true class may be for a set of names to hold it at the promised rate.

    Split conformal prediction (Vovk et al. 2005) with 1 - p(true class) as its score (Sadinle, Lei and Wasserman 2019,
    arXiv:1609.00451). The promise is on average over images like these ones, and says nothing about one class, a
    degradation or an unknown generator.

    Args:
        probabilities: (N, K) of validation images that neither weights nor temperature were chosen on, strictly.
        true: (N,) class numbers.
        coverage: the promised rate, in (0, 1).
        groups: (N,); each weighs the same and the promise is for an image of a new group (Lee, Barber and Willett 2023,
            arXiv:2306.06342); none: every image is its own.

    Returns:
        The quantile, for `prediction_sets`; 1, and then the sets hold every class, where images or groups are too few:
        nine are needed for 0.9.
    """
    p, true = _checked(probabilities), np.asarray(true)
    if not len(p) or true.shape != (len(p),) or not np.isin(true, np.arange(p.shape[1])).all():
        raise ValueError(f"each image needs one class in 0..{p.shape[1] - 1}; got {len(p)} images, {true.size} classes")
    if not 0 < coverage < 1:
        raise ValueError(f"coverage is a share in (0, 1), such as 0.9; got {coverage}")
    _, group = np.unique(np.arange(len(p)) if groups is None else np.asarray(groups), return_inverse=True)
    sizes = np.bincount(group)
    misfit = 1 - p[np.arange(len(p)), true]
    order = np.argsort(misfit)
    weight = 1 / ((len(sizes) + 1) * sizes[group[order]])  # what is missing to 1 is the new group's
    enough = np.flatnonzero(np.cumsum(weight) >= coverage - 1e-9)
    return float(misfit[order][enough[0]]) if len(enough) else 1.0


def prediction_sets(probabilities: np.ndarray, quantile: float) -> np.ndarray:
    """The names that stay possible, (N, K) bool: those no less probable than 1 - quantile, and the top one."""
    p = _checked(probabilities)
    return (1 - p <= quantile) | (np.arange(p.shape[1]) == p.argmax(1)[:, None])


def _checked(p: np.ndarray) -> np.ndarray:
    p = np.asarray(p, dtype=float)
    if p.ndim != 2 or not (p >= 0).all() or not np.allclose(p.sum(1), 1, atol=1e-4):
        raise ValueError("probabilities are (N, K), not negative, and each row sums to 1")
    return p
