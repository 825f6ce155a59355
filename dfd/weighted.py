"""Metrics of many resamples at once: a resample is a row of weights, how often it holds each image.

The same intervals as `dfd.bootstrap.intervals` gives, for metrics that can be written with weights; some hundred times
faster, which a grid of conditions needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import beta
from scipy.stats import t as student

from dfd.bootstrap import REPLICATES, limits, parts
from dfd.calibration import BINS


@dataclass(frozen=True)
class Draws:
    """Resamples of one table of N images."""

    weights: np.ndarray  # (1 + replicates + parts, N): the table itself, the draws, the table without each part
    replicates: int
    group: np.ndarray  # (N,) numbers of the groups

    def interval(self, values: np.ndarray) -> dict[str, float]:
        """What a metric of each row of the weights, (1 + replicates + parts,), says: value, low, high; maybe NaN."""
        value, drawn, without = values[0], values[1 : 1 + self.replicates], values[1 + self.replicates :]
        groups = len(np.unique(self.group))
        low, high = limits(value, drawn, without, groups) if groups > 1 else (np.nan, np.nan)
        return {"value": float(value), "low": float(low), "high": float(high)}

    def share(self, right: np.ndarray, among: np.ndarray | None = None) -> dict[str, float]:
        """The share of images that are `right`, both (N,) bool, with the interval of Korn and Graubard 1998.

        Clopper and Pearson's for as many independent images as have the bootstrap's variance (Survey Methodology 24,
        193-201), fewer where there are few groups: no mistake among 60 photos does not mean that there are none, which
        is what resampling them would say. Where none or all are right, images count as independent of each other.
        """
        among = np.ones(len(right), bool) if among is None else among
        values = share(self.weights, right, among)
        count, groups = int(among.sum()), len(np.unique(self.group[among]))
        found = {"value": float(values[0]), "low": np.nan, "high": np.nan}
        if groups < 2:
            return found
        p, variance = values[0], np.nanvar(values[1 : 1 + self.replicates])
        alike = min(p * (1 - p) / variance, count) if variance > 0 else count
        alike *= (student.ppf(0.975, count - 1) / student.ppf(0.975, groups - 1)) ** 2
        hits = p * alike
        low = beta.ppf(0.025, hits, alike - hits + 1) if p > 0 else 0.0
        high = beta.ppf(0.975, hits + 1, alike - hits) if p < 1 else 1.0
        return found | {"low": float(low), "high": float(high)}


def draws(groups: pd.Series, seed: int = 0, replicates: int = REPLICATES) -> Draws:
    """Draw groups with replacement, the same ones as `dfd.bootstrap.resample` draws.

    Args:
        groups: of each image, (N,).
        seed: of the draws.
        replicates: how many.
    """
    codes, names = pd.factorize(groups, sort=True)
    random, count = np.random.default_rng(seed), len(names)
    drawn = [np.bincount(random.integers(count, size=count), minlength=count)[codes] for _ in range(replicates)]
    part = parts(groups, seed)
    without = np.arange(part.max() + 1)[:, None] != part
    return Draws(np.concatenate([np.ones((1, len(codes))), drawn, without]), replicates, codes)


def share(weights: np.ndarray, right: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
    """Share of the images, or of those `among` them, that are right: (R,) from weights (R, N); NaN where none is."""
    among = np.ones(len(right)) if among is None else np.asarray(among, float)
    with np.errstate(invalid="ignore"):
        return weights @ (among * right) / (weights @ among)


def recall(weights: np.ndarray, labels: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Mean over the classes of the share of their images that are right (R,), over the classes that a draw holds."""
    each = np.stack([share(weights, right, labels == name) for name in np.unique(labels)])
    return np.nansum(each, 0) / (~np.isnan(each)).sum(0)


def auc(weights: np.ndarray, positive: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Area under the ROC curve (R,); ties count half; NaN where a draw holds one class alone.

    Args:
        weights: (R, N).
        positive: (N,) bool.
        score: (N,); higher means positive.
    """
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])
    sorted_weights = weights[:, order]
    ups = np.add.reduceat(sorted_weights * positive[order], starts, axis=1)
    downs = np.add.reduceat(sorted_weights * ~positive[order], starts, axis=1)
    below = np.cumsum(downs, axis=1) - downs / 2
    with np.errstate(invalid="ignore"):
        return (ups * below).sum(1) / (ups.sum(1) * downs.sum(1))


def calibration_error(weights: np.ndarray, confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Expected calibration error (R,), as `dfd.calibration.expected_calibration_error`."""
    one_hot = np.minimum((confidence * BINS).astype(int), BINS - 1)[:, None] == np.arange(BINS)
    gaps = weights @ (one_hot * (right - confidence)[:, None])
    return np.abs(gaps).sum(1) / weights.sum(1)
