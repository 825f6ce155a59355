"""Metrics and curves from score tables, with 95 % intervals from a bootstrap over groups."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import logit, softmax
from sklearn import metrics as skm

from dfd.bootstrap import band, interval, intervals
from dfd.calibration import confidences, expected_calibration_error, logit_columns, p_fake, true_class
from dfd.record import read_json, write_json

FPR_GRID = np.geomspace(1e-4, 1, 161)  # where a ROC curve's band is taken
RECALL_GRID = np.linspace(0.01, 1, 100)  # where a precision-recall curve's band is taken


def auc(is_fake: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve; not a number where only one class is present."""
    return float(skm.roc_auc_score(is_fake, score)) if len(np.unique(is_fake)) == 2 else float("nan")


def balanced_accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
    """Mean of the per-class recalls, over the classes that are present."""
    return float(np.mean([np.mean(predicted[true == one] == one) for one in np.unique(true)]))


def tpr_at_fpr(is_fake: np.ndarray, score: np.ndarray, fpr: float) -> float:
    """Share of fakes found when at most `fpr` of the photos are called fake."""
    return float(_tpr(is_fake, score, fpr))


def _tpr(is_fake: np.ndarray, score: np.ndarray, fpr: float | np.ndarray) -> np.ndarray:
    """tpr_at_fpr at several rates at once."""
    if len(np.unique(is_fake)) < 2:
        return np.full(np.shape(fpr), np.nan)
    false, true, _ = skm.roc_curve(is_fake, score, drop_intermediate=False)
    return true[np.searchsorted(false, fpr, side="right") - 1]


def _precision(is_fake: np.ndarray, score: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """Share of fakes among the images called fake, at the highest cut that finds the share `recall` of the fakes."""
    if len(np.unique(is_fake)) < 2:
        return np.full(np.shape(recall), np.nan)
    precision, found, _ = skm.precision_recall_curve(is_fake, score)
    return precision[::-1][np.searchsorted(found[::-1], recall - 1e-12, side="left")]


def roc(scores: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Stage 1's ROC curve with its pointwise 95 % band: columns fpr, tpr, low, high; NaN where undefined."""
    heights = band(_ranked(scores), lambda t: _tpr(t.is_fake, t.logit_fake, FPR_GRID), seed)
    return pd.DataFrame(dict(zip(("fpr", "tpr", "low", "high"), (FPR_GRID, *heights), strict=True)))


def precision_recall(scores: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Stage 1's precision-recall curve with its pointwise 95 % band: columns recall, precision, low, high.

    The mean of the precision column is the average precision, but for the grid's step; NaN where undefined.
    """
    heights = band(_ranked(scores), lambda t: _precision(t.is_fake, t.logit_fake, RECALL_GRID), seed)
    return pd.DataFrame(dict(zip(("recall", "precision", "low", "high"), (RECALL_GRID, *heights), strict=True)))


def _ranked(scores: pd.DataFrame) -> pd.DataFrame:
    return scores[["group", "logit_fake"]].assign(is_fake=true_class(scores).eq("fake"))


def _share(which: np.ndarray) -> float:
    return float(which.mean()) if len(which) else float("nan")


def stage1_metrics(scores: pd.DataFrame, temperature: float, seed: int = 0, only: Sequence[str] | None = None) -> dict:
    """Every stage 1 metric with its interval, over all rows; `prediction` holds the verdict at the threshold.

    Args:
        only: names of some of them; the bootstrap takes its time for each.

    Returns:
        name -> {value, low, high}: auc, ap, accuracy (at 0.5), accuracy_at_threshold, balanced_accuracy (at 0.5),
        real_accuracy and fake_accuracy (at the threshold), tpr_at_fpr_1, tpr_at_fpr_5, ece_before (at temperature 1)
        and ece.
    """
    rows = scores.assign(is_fake=true_class(scores).eq("fake"), verdict=scores["prediction"].eq("fake"))
    rows["called"] = p_fake(scores, temperature) >= 0.5  # whatever the temperature
    rows["before"], rows["right"] = confidences(scores, 1.0)
    rows["after"], _ = confidences(scores, temperature)
    named = {
        "auc": lambda t: auc(t.is_fake, t.logit_fake),
        "ap": lambda t: float(skm.average_precision_score(t.is_fake, t.logit_fake)) if t.is_fake.any() else np.nan,
        "accuracy": lambda t: float((t.called == t.is_fake).mean()),
        "accuracy_at_threshold": lambda t: float((t.verdict == t.is_fake).mean()),
        "balanced_accuracy": lambda t: balanced_accuracy(t.is_fake, t.called),
        "real_accuracy": lambda t: _share(~t.verdict[~t.is_fake]),
        "fake_accuracy": lambda t: _share(t.verdict[t.is_fake]),
        "tpr_at_fpr_1": lambda t: tpr_at_fpr(t.is_fake, t.logit_fake, 0.01),
        "tpr_at_fpr_5": lambda t: tpr_at_fpr(t.is_fake, t.logit_fake, 0.05),
        "ece_before": lambda t: expected_calibration_error(t.before, t.right),
        "ece": lambda t: expected_calibration_error(t.after, t.right),
    }
    return intervals(rows, {name: named[name] for name in only or named}, seed)


def stage1_by_generator(scores: pd.DataFrame, seed: int = 0) -> dict:
    """What each generator's images are against all photos, with intervals.

    Returns:
        generator -> name -> {value, low, high}: auc; at the threshold, accuracy (balanced: the mean over
        photos and fakes, whatever their numbers) and fake_accuracy (the share of its images called fake).
    """
    rows = scores.assign(is_fake=true_class(scores).eq("fake"), verdict=scores["prediction"].eq("fake"))
    result = {}
    for name in sorted(rows.loc[rows.is_fake, "label"].unique()):
        pair = rows[rows["label"].isin([name, "RealPhotos"])]
        both = {
            "auc": lambda t: auc(t.is_fake, t.logit_fake),
            "accuracy": lambda t: balanced_accuracy(t.is_fake, t.verdict),
        }
        result[name] = {
            **intervals(pair, both, seed),
            "fake_accuracy": interval(pair[pair.is_fake], lambda t: float(t.verdict.mean()), seed),
        }
    return result


def stage2_metrics(scores: pd.DataFrame, temperature: float, seed: int = 0, only: Sequence[str] | None = None) -> dict:
    """Every stage 2 metric with its interval, or `only` some: accuracy, balanced_accuracy, macro_f1, ece."""
    confidence, right = confidences(scores, temperature)
    rows = scores.assign(confidence=confidence, right=right)
    named = {
        "accuracy": lambda t: float(t.right.mean()),
        "balanced_accuracy": lambda t: balanced_accuracy(t.label, t.prediction),
        "macro_f1": lambda t: float(skm.f1_score(t.label, t.prediction, average="macro", zero_division=0.0)),
        "ece": lambda t: expected_calibration_error(t.confidence, t.right),
    }
    return intervals(rows, {name: named[name] for name in only or named}, seed)


def stage2_by_generator(scores: pd.DataFrame, seed: int = 0) -> dict:
    """Per generator: the share of its images that are given its name."""
    rows = scores.assign(right=scores["prediction"].eq(scores["label"]))
    return {
        name: {"recall": interval(rows[rows["label"] == name], lambda t: float(t.right.mean()), seed)}
        for name in sorted(rows["label"].unique())
    }


def save_metrics(out: str | Path, section: str, values: dict | list) -> None:
    """Merge one section into the run folder's metrics.json, keeping the other sections."""
    path = Path(out) / "metrics.json"
    write_json(path, {**read_json(path), section: values})


def as_table(values: dict) -> pd.DataFrame:
    """Metrics as rows for a report: name, value and 95 % interval."""
    rows = [{"metric": name, **value} for name, value in values.items() if isinstance(value, dict) and "value" in value]
    return pd.DataFrame(rows).set_index("metric").astype(float).round(3)


def measure(scores: pd.DataFrame, temperature: float, seed: int = 0) -> dict:
    """A stage's metrics on the clean images of each split: split -> name -> {value, low, high}, and by_generator."""
    stage1 = "logit_fake" in scores
    overall, each = (stage1_metrics, stage1_by_generator) if stage1 else (stage2_metrics, stage2_by_generator)
    result = {}
    for split in ("val", "test"):
        rows = clean(scores, split)
        result[split] = {**overall(rows, temperature, seed), "by_generator": each(rows, seed)}
    return result


def sweep(scores: pd.DataFrame, temperature: float, seed: int = 0) -> pd.DataFrame:
    """One row per JPEG quality (none: the image as it is), with images, and each metric beside its _low and _high."""
    overall = stage1_metrics if "logit_fake" in scores else stage2_metrics
    rows = []
    for (degradation, level), part in scores.groupby(["degradation", "level"], sort=False):
        row = {"quality": np.nan if degradation == "none" else level, "images": len(part)}
        for name, found in overall(part, temperature, seed).items():
            row |= {name: found["value"], f"{name}_low": found["low"], f"{name}_high": found["high"]}
        rows.append(row)
    return pd.DataFrame(rows).astype(dict.fromkeys(set(rows[0]) - {"images"}, float))


def readable(table: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """A table for reading: one column per metric, each "value [low, high]"; a sweep's rows are named by their quality.

    Args:
        table: a sweep, or any table with each metric beside its _low and _high.
        metrics: which ones.
    """
    index = table.index
    if "quality" in table:
        index = pd.Index(["as it is" if np.isnan(q) else f"JPEG {q:g}" for q in table["quality"]], name="quality")
    cells = {
        name: [_cell(*three) for three in table[[name, f"{name}_low", f"{name}_high"]].to_numpy(float)]
        for name in metrics
    }
    return pd.DataFrame(cells, index=index)


def _cell(value: float | None, low: float | None, high: float | None) -> str:
    """A number with its interval as text; a dash where it is undefined."""
    if value is None or np.isnan(value):
        return "–"
    return f"{value:.3f}" if low is None or np.isnan(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def mistakes(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows whose prediction is wrong, the surest first; `margin` is the predicted logit minus the true class's."""
    wrong = scores[scores["prediction"] != true_class(scores)]
    value = {name.removeprefix("logit_"): wrong[name].to_numpy() for name in logit_columns(scores)}
    true = true_class(wrong)
    margin = [value[p][i] - value[t][i] for i, (p, t) in enumerate(zip(wrong["prediction"], true, strict=True))]
    return wrong.assign(margin=np.array(margin, dtype=float)).sort_values("margin", ascending=False, ignore_index=True)


def certainty(scores: pd.DataFrame, temperature: float, threshold: float = 0.5) -> pd.DataFrame:
    """How sure each row's prediction is, and how far it lies from the decision.

    Args:
        scores: rows of a score table.
        temperature: of the calibration.
        threshold: stage 1's, on the calibrated probability.

    Returns:
        On the rows' index: confidence, the calibrated probability of what the image was called, in [0, 1]; distance,
        in logits: stage 1's from its threshold, stage 2's between the two likeliest classes.
    """
    logits = scores[logit_columns(scores)].to_numpy(float) / temperature
    if "logit_fake" in scores:
        p = p_fake(scores, temperature)
        confidence = np.where(scores["prediction"] == "fake", p, 1 - p)
        distance = np.abs(logits[:, 1] - logits[:, 0] - logit(threshold))
    else:
        confidence = softmax(logits, axis=1).max(1)
        distance = np.diff(np.sort(logits, axis=1)[:, -2:], axis=1)[:, 0]
    return pd.DataFrame({"confidence": confidence, "distance": distance}, index=scores.index)


def by_source(scores: pd.DataFrame, table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Accuracy with its interval for each label, format and origin, the worst first.

    Args:
        scores: rows of a score table, each image once.
        table: the manifest; an image's origin is its source where there is such a column (the split was made with
            group_by), else its file name up to the first underscore.
    """
    name = table["path"].str.rsplit("/", n=1).str[-1]
    origin = table["source"] if "source" in table else name.str.split("_").str[0].where(name.str.contains("_"), "")
    rows = scores.merge(table[["path", "format"]].assign(origin=origin), on="path")
    rows["right"] = rows["prediction"] == true_class(rows)
    found = []
    for keys, part in rows.groupby(["label", "format", "origin"]):
        accuracy = interval(part, lambda t: float(t.right.mean()), seed)
        sizes = {"images": len(part), "groups": part["group"].nunique()}
        found.append({**dict(zip(("label", "format", "origin"), keys, strict=True)), **sizes, **accuracy})
    return pd.DataFrame(found).sort_values("value", ignore_index=True).rename(columns={"value": "accuracy"}).round(3)


def classification_text(tables: dict[str, pd.DataFrame], split: str) -> str:
    """The classification report of each stage on one split's clean images, as text for val_report.txt and the like."""
    parts = [f"Split: {split}. Images as they are (no degradation). Stage 1 at the threshold chosen on validation."]
    for stage, scores in tables.items():
        rows = clean(scores, split)
        text = skm.classification_report(true_class(rows), rows["prediction"], digits=3, zero_division=0.0)
        parts.append(f"{stage}, {len(rows)} images of {rows['group'].nunique()} groups\n\n{text}")
    return "\n\n".join(parts) + "\n"


def clean(scores: pd.DataFrame, split: str) -> pd.DataFrame:
    """The rows of one split without degradation."""
    return scores[(scores["split"] == split) & (scores["degradation"] == "none")]
