"""Split conformal prediction: how many names it takes to be sure of a fake's source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


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


def coverage_table(scores: pd.DataFrame, quantile: float, temperature: float, seed: int = 0) -> pd.DataFrame:
    """What the sets of names hold under each degradation, with 95 % intervals from a bootstrap over groups.

    Args:
        scores: stage 2's rows of one split, other than the one that the quantile was fitted on; known generators only.
        quantile: of `fit_conformal`, on probabilities at the same temperature.
        temperature: divides the logits.

    Returns:
        One row per degradation and level, in the table's order: images; coverage, the share whose set holds the true
        name; names, the mean size of a set; single, the share of sets with one name; each beside its _low and _high.

    Raises:
        ValueError: a label that is not among the classes.
    """
    import pandas as pd  # here: `predict` needs this module's sets, and none of these
    from scipy.special import softmax

    from dfd.bootstrap import flat, intervals
    from dfd.calibration import logit_columns

    classes = [name.removeprefix("logit_") for name in logit_columns(scores)]
    if strange := sorted(set(scores["label"]) - set(classes)):
        raise ValueError(f"no set can hold these labels, for the classifier has no such class: {', '.join(strange)}")
    sets = prediction_sets(softmax(scores[logit_columns(scores)].to_numpy(float) / temperature, axis=1), quantile)
    held = sets[np.arange(len(scores)), [classes.index(label) for label in scores["label"]]]
    each = scores[["group", "degradation", "level"]].assign(held=held, names=sets.sum(1))
    named = {
        "coverage": lambda t: float(t.held.mean()),
        "names": lambda t: float(t.names.mean()),
        "single": lambda t: float((t.names == 1).mean()),
    }
    rows = [
        {"degradation": degradation, "level": level, "images": len(part), **flat(intervals(part, named, seed))}
        for (degradation, level), part in each.groupby(["degradation", "level"], sort=False)
    ]
    return pd.DataFrame(rows).astype(dict.fromkeys(set(rows[0]) - {"degradation", "images"}, float))
