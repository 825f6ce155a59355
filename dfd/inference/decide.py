"""From logits to decisions: temperature, thresholds, and how far confidence is from accuracy."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn import metrics as skm

BINS = 15  # equal-width bins of confidence, behind the calibration error and the reliability diagram


def logit_columns(scores: pd.DataFrame) -> list[str]:
    """The logit columns of a score table, in class order."""
    return [name for name in scores.columns if name.startswith("logit_")]


def true_class(scores: pd.DataFrame) -> pd.Series:
    """The class each row should get: real or fake in stage 1's table, the generator in stage 2's."""
    if "logit_fake" in scores:
        return scores["label"].eq("RealPhotos").map({True: "real", False: "fake"})
    return scores["label"]


def p_fake(scores: pd.DataFrame, temperature: float) -> np.ndarray:
    """Calibrated probability of fake, (N,), from stage 1's logits."""
    return softmax(scores[["logit_real", "logit_fake"]].to_numpy(float) / temperature, axis=1)[:, 1]


def confidences(scores: pd.DataFrame, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Probability of each row's likeliest class, (N,) in [0, 1], and whether that class is the true one, (N,)."""
    if "logit_fake" in scores:
        p = p_fake(scores, temperature)
        return np.maximum(p, 1 - p), (p >= 0.5) == true_class(scores).eq("fake").to_numpy()
    p = softmax(scores[logit_columns(scores)].to_numpy(float) / temperature, axis=1)
    return p.max(1), scores["prediction"].eq(scores["label"]).to_numpy()


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> pd.DataFrame:
    """Mean confidence and accuracy in equal-width bins of confidence; empty bins have no row.

    Args:
        confidence: (N,) probability of the predicted class, in [0, 1].
        correct: (N,) whether the prediction is right.
        bins: number of bins over [0, 1].

    Returns:
        Columns confidence, accuracy, images; one row per bin that holds an image, in order.
    """
    rows = pd.DataFrame({"confidence": confidence, "accuracy": np.asarray(correct, float), "images": 1})
    each = rows.groupby(_bin(confidence, bins))
    return each.agg({"confidence": "mean", "accuracy": "mean", "images": "sum"}).reset_index(drop=True)


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by their size.

    Guo et al. 2017, arXiv:1706.04599.

    Args:
        confidence: (N,) probability of the predicted class, in [0, 1].
        correct: (N,) whether the prediction is right.
        bins: number of bins over [0, 1].
    """
    gap = np.bincount(_bin(confidence, bins), weights=np.asarray(correct, float) - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def _bin(confidence: np.ndarray, bins: int) -> np.ndarray:
    return np.minimum((confidence * bins).astype(int), bins - 1)


def fit_temperature(scores: pd.DataFrame) -> float:
    """Temperature that minimises the negative log-likelihood (Guo et al. 2017, arXiv:1706.04599).

    Args:
        scores: rows of one split; classes weigh the same, whatever their number of images.

    Returns:
        A temperature between 0.05 and 20.
    """
    names = [name.removeprefix("logit_") for name in logit_columns(scores)]
    truth = true_class(scores)
    logits, index = scores[logit_columns(scores)].to_numpy(), np.array([names.index(one) for one in truth])
    weight = (1 / truth.map(truth.value_counts())).to_numpy()

    def loss(log_t: float) -> float:
        likelihood = log_softmax(logits / np.exp(log_t), axis=1)[np.arange(len(index)), index]
        return -float(np.average(likelihood, weights=weight))

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def fit_threshold(scores: pd.DataFrame, temperature: float, fpr: float | None = None) -> float:
    """The p_fake from which an image is called fake, midway between two scores.

    Args:
        scores: stage 1's rows of one split, photos and fakes.
        temperature: divides the logits.
        fpr: the lowest cut that calls at most this share of these photos fake; none takes the best balanced accuracy
            on these rows. On other photos the share may be higher: with few photos a share of 1 % is a guess.

    Returns:
        A cut; just above 1 where `fpr` allows no other, and then nothing is called fake.

    Raises:
        ValueError: the rows hold one class alone, or fpr is not in [0, 1).
    """
    is_fake, p = true_class(scores).eq("fake").to_numpy(), p_fake(scores, temperature)
    if len(np.unique(is_fake)) < 2:
        raise ValueError("a threshold is fitted on photos and fakes, and these rows hold one of them only; see split")
    if fpr is not None:
        return lowest_cut(p, p[~is_fake], fpr)
    false, true, cuts = skm.roc_curve(is_fake, p, drop_intermediate=False)
    gain = true - false
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    cut = cuts[best[len(best) // 2]]
    if not np.isfinite(cut):
        return 0.5
    below = p[p < cut]
    return float((cut + (below.max() if len(below) else cut)) / 2)


def lowest_cut(p: np.ndarray, photos: np.ndarray, fpr: float) -> float:
    """Midway between the highest score that must not be called fake and the next one in p.

    Args:
        p: (N,) p_fake of photos and fakes.
        photos: (M,) those of the photos.
        fpr: share of the photos that may be called fake, in [0, 1).
    """
    if not 0 <= fpr < 1:
        raise ValueError(f"fpr is a share of photos in [0, 1), such as 0.05; got {fpr}")
    allowed = int(fpr * len(photos) + 1e-9)  # 0.07 * 100 is a little more than 7, 0.29 * 100 a little less than 29
    spared = np.sort(photos)[::-1][allowed]
    higher = np.append(p[p > spared], 1 + 1e-6)
    return float((spared + higher.min()) / 2)


def operating_points(scores: pd.DataFrame, temperature: float) -> dict[str, float]:
    """Thresholds on p_fake, fitted on these rows, the validation split's: name -> cut; see fit_threshold.

    Returns:
        balanced: the best balanced accuracy; fpr_5, fpr_1: at most 5 % or 1 % of the photos called fake.
    """
    shares = {"balanced": None, "fpr_5": 0.05, "fpr_1": 0.01}
    return {name: fit_threshold(scores, temperature, share) for name, share in shares.items()}


def threshold_at(fpr: float, validation: dict[str, list[float]], points: dict[str, float]) -> float:
    """The p_fake from which at most this share of the validation photos is called fake, from a checkpoint's values.

    Args:
        fpr: a share in [0, 1); below one photo's share the threshold lies above every photo.
        validation: photos and fakes, their p_fake; empty in older checkpoints.
        points: what `operating_points` gave; these are used where `validation` is empty.

    Raises:
        ValueError: fpr outside [0, 1), or nothing stored that gives its threshold; the text says what is.
    """
    if validation:
        photos, fakes = (np.array(validation[name]) for name in ("photos", "fakes"))
        return lowest_cut(np.concatenate([photos, fakes]), photos, fpr)
    known = {0.01: "fpr_1", 0.05: "fpr_5"}
    for share, name in known.items():
        if abs(fpr - share) < 1e-9 and name in points:
            return points[name]
    has = [f"{share:g}" for share, name in known.items() if name in points]
    rest = f"it has {' and '.join(has)}" if has else "nor for any other"
    remedy = "notebook 01 stores what every other rate needs when it is run again"
    raise ValueError(f"this checkpoint has no threshold for a false positive rate of {fpr:g}; {rest}; {remedy}")


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
        groups: (N,); images of one group resemble each other, and are not exchangeable one by one. With groups, each
            weighs the same and the promise is for an image of a new group (Lee, Barber and Willett 2023,
            arXiv:2306.06342); without, every image is its own.

    Returns:
        The quantile, for `prediction_sets`; 1, and then the sets hold every class, where images or groups are too few:
        nine are needed for 0.9.

    Raises:
        ValueError: no images, rows that are not probabilities, classes that do not exist, or coverage outside (0, 1).
    """
    p, true = _probabilities(probabilities), np.asarray(true)
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
    """The names that stay possible, (N, K) bool from (N, K): those no less probable than 1 - quantile, and the top one.

    Raises:
        ValueError: rows that are not probabilities.
    """
    p = _probabilities(probabilities)
    return (1 - p <= quantile) | (np.arange(p.shape[1]) == p.argmax(1)[:, None])


def _probabilities(p: np.ndarray) -> np.ndarray:
    p = np.asarray(p, dtype=float)
    if p.ndim != 2 or not (p >= 0).all() or not np.allclose(p.sum(1), 1, atol=1e-4):
        raise ValueError("probabilities are (N, K), not negative, and each row sums to 1")
    return p
