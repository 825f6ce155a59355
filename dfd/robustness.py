"""What the sweep says: metrics under each condition with 95 % intervals, and the tables that are read from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from dfd import grid, weighted
from dfd.calibration import confidences, true_class
from dfd.scores import predictions
from dfd.stage import Stage
from dfd.sweep import FIRST
from dfd.weighted import Draws

ACCURACY = {"stage1": "balanced_accuracy_at_threshold", "stage2": "balanced_accuracy"}  # chance: one over the classes
ALL = "all"  # the label of metrics over all images
Metrics = dict[tuple[str, str], dict[str, float]]


def measure(swept: Mapping[str, pd.DataFrame], stages: Mapping[str, Stage], seed: int = 0) -> pd.DataFrame:
    """Every metric of each stage under each condition, with its interval: the long table behind all others.

    Stage 1: auc; balanced_accuracy_at_threshold; false_positive_rate (photos called fake) and true_positive_rate, at
    the threshold. Stage 2: balanced_accuracy. Both: ece and ece_before (at temperature 1); recall of each label, photos
    among them; the accuracy and auc of the first crop alone (…_one_crop), and by how much all crops are better
    (…_gain), on the same resamples.

    Args:
        swept: stage -> score table of `dfd.sweep.run`, of one split.
        stages: stage -> what scored it; its temperature, threshold and classes are read.
        seed: of the bootstrap over groups.

    Returns:
        Columns stage, condition, degradation, level, label (all, or the one a recall is of), metric, value, low, high,
        images (that the metric is over); NaN where undefined.

    Raises:
        ValueError: a condition does not hold the same images as the others.
    """
    found = []
    for name, scores in swept.items():
        for number, (one, part) in enumerate(by_condition(scores)):
            if not number:
                draws = weighted.draws(part["group"], seed)
            metrics = (_stage1 if name == "stage1" else _stage2)(part, stages[name], draws)
            for (label, metric), three in metrics.items():
                row = {"stage": name, "condition": one, "degradation": part["degradation"].iloc[0]}
                row |= {"level": part["level"].iloc[0], "label": label, "metric": metric, **three}
                found.append(row | {"images": _count(part, label, metric)})
    return pd.DataFrame(found)


def by_condition(scores: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each condition's name and rows, in the table's order; the rows in the order of their paths, the same in each.

    Raises:
        ValueError: a condition does not hold the same images as the others.
    """
    first = None
    for (degradation, level), part in scores.groupby(["degradation", "level"], sort=False):
        name, part = grid.name(degradation, level), part.sort_values("path", ignore_index=True)
        first = part["path"] if first is None else first
        if not part["path"].equals(first):
            raise ValueError(f"{name!r} does not hold the same images as the other conditions; sweep again")
        yield name, part


def _stage1(part: pd.DataFrame, stage: Stage, draws: Draws) -> Metrics:
    fake, called = true_class(part).eq("fake").to_numpy(), part["prediction"].eq("fake").to_numpy()
    one = part[[f"{FIRST}real", f"{FIRST}fake"]].to_numpy()
    once, weights = predictions(stage, one) == "fake", draws.weights
    kinds = part["label"].where(fake, "RealPhotos").to_numpy()
    both = {
        "auc": [weighted.auc(weights, fake, x) for x in (part["logit_fake"].to_numpy(), one[:, 1])],
        ACCURACY["stage1"]: [weighted.recall(weights, fake, x == fake) for x in (called, once)],
    }
    return {
        (ALL, "false_positive_rate"): draws.share(called, ~fake),
        (ALL, "true_positive_rate"): draws.share(called, fake),
        **_crops(both, draws),
        **_calibration(part, stage, draws),
        **{(kind, "recall"): draws.share(called == fake, kinds == kind) for kind in np.unique(kinds)},
    }


def _stage2(part: pd.DataFrame, stage: Stage, draws: Draws) -> Metrics:
    labels, right = part["label"].to_numpy(), part["prediction"].eq(part["label"]).to_numpy()
    once = predictions(stage, part[[f"{FIRST}{name}" for name in stage.classes]].to_numpy()) == labels
    return {
        **_crops({ACCURACY["stage2"]: [weighted.recall(draws.weights, labels, x) for x in (right, once)]}, draws),
        **_calibration(part, stage, draws),
        **{(kind, "recall"): draws.share(right, labels == kind) for kind in np.unique(labels)},
    }


def _crops(both: dict[str, list[np.ndarray]], draws: Draws) -> Metrics:
    """Metrics of all crops, of the first alone, and the difference."""
    found = {}
    for name, (every, first) in both.items():
        found |= {(ALL, name): draws.interval(every), (ALL, f"{name}_one_crop"): draws.interval(first)}
        found[ALL, f"{name}_gain"] = draws.interval(every - first)
    return found


def _calibration(part: pd.DataFrame, stage: Stage, draws: Draws) -> Metrics:
    return {
        (ALL, name): draws.interval(weighted.calibration_error(draws.weights, *confidences(part, temperature)))
        for name, temperature in (("ece_before", 1.0), ("ece", stage.temperature))
    }


def _count(part: pd.DataFrame, label: str, metric: str) -> int:
    photos = part["label"].eq("RealPhotos")
    if metric == "false_positive_rate":
        return int(photos.sum())
    if metric == "true_positive_rate":
        return int((~photos).sum())
    return len(part) if label == ALL else int(part["label"].eq(label).sum())


def wide(found: pd.DataFrame, stage: str, metrics: Sequence[str]) -> pd.DataFrame:
    """Some metrics over all images: a row per condition, each metric beside its _low and _high."""
    rows = found[(found["stage"] == stage) & (found["label"] == ALL) & found["metric"].isin(metrics)]
    columns = {
        f"{metric}{suffix}": rows[rows["metric"] == metric].set_index("condition")[value]
        for metric in metrics
        for value, suffix in (("value", ""), ("low", "_low"), ("high", "_high"))
    }
    return pd.DataFrame(columns).reindex(rows["condition"].unique()).rename_axis("condition")


def recalls(found: pd.DataFrame, stage: str) -> pd.DataFrame:
    """The share of each label's images that are judged right: a row per label, a column per condition, in its order."""
    rows = found[(found["stage"] == stage) & (found["metric"] == "recall")]
    table = rows.pivot(index="label", columns="condition", values="value")
    labels = sorted(table.index, key=lambda label: (label != "RealPhotos", label))
    return table.loc[labels, rows["condition"].unique()]


def series(found: pd.DataFrame, stage: str, metric: str) -> dict[str, pd.DataFrame]:
    """A metric along each operator that has several levels: series -> rows from mild to severe; see `grid.family`."""
    rows = found[(found["stage"] == stage) & (found["metric"] == metric) & (found["degradation"] != "none")]
    named = [grid.family(*one) for one in rows[["degradation", "level"]].itertuples(index=False)]
    rows = rows.assign(series=[name for name, _ in named], severity=[severity for _, severity in named])
    parts = rows.groupby("series", sort=False)
    return {name: part.sort_values("severity", ignore_index=True) for name, part in parts if len(part) > 1}


def breaking_points(found: pd.DataFrame, accuracy: float) -> pd.DataFrame:
    """The mildest level of each operator at which a stage's balanced accuracy falls below a bar.

    Args:
        found: from measure.
        accuracy: the bar.

    Returns:
        One row per stage and series of levels: mildest and worst, the levels tried; falls_below, the mildest level
        whose value is below; surely_below, the mildest whose whole interval is; NaN where none is. Where the images as
        they are lie below already, both hold no level, and `as_it_is` is what to read.
    """
    rows = []
    for stage, metric in ACCURACY.items():
        if stage not in set(found["stage"]):
            continue
        clean = wide(found, stage, [metric]).loc[grid.AS_IT_IS, metric]
        for name, part in series(found, stage, metric).items():
            row = {"stage": stage, "operator": name, "as_it_is": clean}
            row |= {"mildest": part["level"].iloc[0], "worst": part["level"].iloc[-1]}
            for column, limit in (("falls_below", "value"), ("surely_below", "high")):
                below = part.loc[part[limit] < accuracy, "level"]
                row[column] = below.iloc[0] if len(below) and clean >= accuracy else np.nan
            rows.append(row)
    columns = "stage operator as_it_is mildest worst falls_below surely_below".split()
    return pd.DataFrame(rows, columns=columns)


def summary(found: pd.DataFrame) -> dict:
    """The numbers that matter most, for metrics.json: the images as they are, and the worst condition of each kind."""
    kinds = {"false_positive_rate": "stage1", **{metric: stage for stage, metric in ACCURACY.items()}}
    result: dict = {"conditions": int(found["condition"].nunique())}
    for metric, stage in kinds.items():
        rows = found[(found["stage"] == stage) & (found["metric"] == metric)].dropna(subset="value")
        if len(rows):
            order = rows["value"].to_numpy() * (1 if metric == "false_positive_rate" else -1)
            chosen = {"as_it_is": rows.iloc[0], "worst": rows.iloc[int(order.argmax())]}
            result |= {f"{stage}_{metric}": {key: _plain(row) for key, row in chosen.items()}}
    return result


def _plain(row: pd.Series) -> dict:
    numbers = {key: None if pd.isna(row[key]) else float(row[key]) for key in ("value", "low", "high")}
    return {"condition": row["condition"], **numbers}
