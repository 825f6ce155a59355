"""95 % intervals and bands from a bootstrap over groups: images of one group are drawn together or not at all."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pandas as pd

REPLICATES = 400  # bootstrap draws behind each interval


def resample(
    table: pd.DataFrame, statistic: Callable[..., np.ndarray], seed: int = 0, replicates: int = REPLICATES
) -> tuple[np.ndarray, np.ndarray]:
    """A statistic of the table and of its resamples: as many groups as there are, drawn with replacement.

    Args:
        table: rows with a `group` column and whatever the statistic reads.
        statistic: takes the columns as arrays, `t.label` for instance, and gives (K,) numbers.

    Returns:
        (K,) of the table, and (replicates, K) of the draws; (0, K) where there is one group alone.
    """
    columns = {name: table[name].to_numpy() for name in table}
    members = list(table.groupby("group", sort=True).indices.values())
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(replicates if len(members) > 1 else 0):
        picks = np.concatenate([members[i] for i in random.integers(len(members), size=len(members))])
        drawn.append(statistic(SimpleNamespace(**{name: column[picks] for name, column in columns.items()})))
    whole = np.asarray(statistic(SimpleNamespace(**columns)), dtype=float)
    return whole, np.array(drawn, dtype=float).reshape(-1, *whole.shape)


def band(
    table: pd.DataFrame, curve: Callable[..., np.ndarray], seed: int = 0, replicates: int = REPLICATES
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A curve with its pointwise 95 % percentile band.

    Args:
        table: rows with a `group` column and whatever the curve reads.
        curve: takes the columns as arrays and gives (K,) heights over a fixed grid; draws where a point is not finite
            are left out there.

    Returns:
        The curve, its lower and its upper limit, (K,) each; the limits are NaN where the spread is unknown: one group
        alone says nothing of it.
    """
    whole, drawn = resample(table, curve, seed, replicates)
    points = [one[np.isfinite(one)] for one in drawn.T]
    limits = [np.percentile(one, [2.5, 97.5]) if len(one) else (np.nan, np.nan) for one in points]
    low, high = np.array(limits, dtype=float).T
    return whole, low, high


def intervals(
    table: pd.DataFrame, metrics: dict[str, Callable[..., float]], seed: int = 0, replicates: int = REPLICATES
) -> dict[str, dict[str, float | None]]:
    """Metrics with their 95 % percentile intervals.

    Args:
        table: rows with a `group` column and whatever the metrics read.
        metrics: name -> a function that takes the columns as arrays, `t.label` for instance, and gives a number;
            draws where it is undefined are left out.

    Returns:
        name -> value, low, high; None where undefined: one group alone, for instance, says nothing of the spread.
    """
    found = band(table, lambda rows: [metric(rows) for metric in metrics.values()], seed, replicates)
    keys = ("value", "low", "high")
    return {
        name: {key: float(one) if np.isfinite(one) else None for key, one in zip(keys, three, strict=True)}
        for name, *three in zip(metrics, *found, strict=True)
    }


def interval(table: pd.DataFrame, metric: Callable[..., float], seed: int = 0) -> dict[str, float | None]:
    """One metric with its interval; see intervals."""
    return intervals(table, {"": metric}, seed)[""]


def flat(found: dict[str, dict]) -> dict[str, float | None]:
    """Intervals as the columns of one row: each metric beside its _low and _high."""
    suffix = {"value": "", "low": "_low", "high": "_high"}
    return {name + suffix[key]: one for name, three in found.items() for key, one in three.items()}
