"""Metrics from score tables: numbers with 95 % intervals from a bootstrap over groups, thresholds, calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn import metrics as skm

from dfd.record import read_json, write_json

REPLICATES = 400  # bootstrap draws behind each interval


def auc(is_fake: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve; not a number where only one class is present."""
    return float(skm.roc_auc_score(is_fake, score)) if len(np.unique(is_fake)) == 2 else float("nan")


def balanced_accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
    """Mean of the per-class recalls, over the classes that are present."""
    return float(np.mean([np.mean(predicted[true == one] == one) for one in np.unique(true)]))


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by their size.

    Guo et al. 2017, arXiv:1706.04599.

    Args:
        confidence: (N,) probability of the predicted class, in [0, 1].
        correct: (N,) whether the prediction is right.
        bins: number of bins over [0, 1].
    """
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(which, weights=np.asarray(correct, float) - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def tpr_at_fpr(is_fake: np.ndarray, score: np.ndarray, fpr: float) -> float:
    """Share of fakes found when at most `fpr` of the photos are called fake."""
    if len(np.unique(is_fake)) < 2:
        return float("nan")
    false, true, _ = skm.roc_curve(is_fake, score)
    return float(true[false <= fpr].max())


def intervals(
    table: pd.DataFrame, metrics: dict[str, Callable[..., float]], seed: int = 0, replicates: int = REPLICATES
) -> dict[str, dict[str, float | None]]:
    """Metrics with their 95 % percentile intervals, resampling whole groups with replacement.

    Args:
        table: rows with a `group` column and whatever the metrics read.
        metrics: name -> a function that takes the columns as arrays, `t.label` for instance, and gives a number;
            draws where it is undefined are left out.

    Returns:
        name -> value, low, high; None where undefined: one group alone, for instance, says nothing of the spread.
    """
    columns = {name: table[name].to_numpy() for name in table}
    members = list(table.groupby("group", sort=True).indices.values())
    random = np.random.default_rng(seed)
    drawn = {name: [] for name in metrics}
    for _ in range(replicates if len(members) > 1 else 0):
        picks = np.concatenate([members[i] for i in random.integers(len(members), size=len(members))])
        rows = SimpleNamespace(**{name: column[picks] for name, column in columns.items()})
        for name, metric in metrics.items():
            drawn[name].append(metric(rows))
    found = {}
    for name, metric in metrics.items():
        defined = [one for one in drawn[name] if np.isfinite(one)]
        low, high = np.percentile(defined, [2.5, 97.5]) if defined else (np.nan, np.nan)
        three = {"value": metric(SimpleNamespace(**columns)), "low": low, "high": high}
        found[name] = {key: float(one) if np.isfinite(one) else None for key, one in three.items()}
    return found


def interval(table: pd.DataFrame, metric: Callable[..., float], seed: int = 0) -> dict[str, float | None]:
    """One metric with its interval; see intervals."""
    return intervals(table, {"": metric}, seed)[""]


def logit_columns(scores: pd.DataFrame) -> list[str]:
    """The logit columns of a score table, in class order."""
    return [name for name in scores.columns if name.startswith("logit_")]


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


def fit_threshold(scores: pd.DataFrame, temperature: float) -> float:
    """The p_fake from which an image is called fake: best balanced accuracy on these rows, midway between scores."""
    is_fake, p = true_class(scores).eq("fake").to_numpy(), p_fake(scores, temperature)
    false, true, cuts = skm.roc_curve(is_fake, p, drop_intermediate=False)
    gain = true - false
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    cut = cuts[best[len(best) // 2]]
    if not np.isfinite(cut):
        return 0.5
    below = p[p < cut]
    return float((cut + (below.max() if len(below) else cut)) / 2)


def true_class(scores: pd.DataFrame) -> pd.Series:
    """The class each row should get: real or fake in stage 1's table, the generator in stage 2's."""
    if "logit_fake" in scores:
        return scores["label"].eq("RealPhotos").map({True: "real", False: "fake"})
    return scores["label"]


def p_fake(scores: pd.DataFrame, temperature: float) -> np.ndarray:
    """Calibrated probability of fake, (N,), from stage 1's logits."""
    return softmax(scores[["logit_real", "logit_fake"]].to_numpy() / temperature, axis=1)[:, 1]


def _share(which: np.ndarray) -> float:
    return float(which.mean()) if len(which) else float("nan")


def stage1_metrics(scores: pd.DataFrame, temperature: float, seed: int = 0) -> dict:
    """Every stage 1 metric with its interval, over all rows; `prediction` holds the verdict at the threshold.

    Returns:
        name -> {value, low, high}: auc, ap, accuracy (at 0.5), accuracy_at_threshold, balanced_accuracy (at 0.5),
        real_accuracy and fake_accuracy (at the threshold), tpr_at_fpr_1, tpr_at_fpr_5, ece.
    """
    rows = scores.assign(is_fake=true_class(scores).eq("fake"), p=p_fake(scores, temperature))
    rows["called"], rows["verdict"] = rows["p"] >= 0.5, rows["prediction"].eq("fake")
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
        "ece": lambda t: expected_calibration_error(np.maximum(t.p, 1 - t.p), t.called == t.is_fake),
    }
    return intervals(rows, named, seed)


def stage1_by_generator(scores: pd.DataFrame, seed: int = 0) -> dict:
    """Per generator: AUC against all photos, and the share of its images called fake at the threshold."""
    rows = scores.assign(is_fake=true_class(scores).eq("fake"), verdict=scores["prediction"].eq("fake"))
    result = {}
    for name in sorted(rows.loc[rows.is_fake, "label"].unique()):
        pair = rows[rows["label"].isin([name, "RealPhotos"])]
        result[name] = {
            "auc": interval(pair, lambda t: auc(t.is_fake, t.logit_fake), seed),
            "fake_accuracy": interval(pair[pair.is_fake], lambda t: float(t.verdict.mean()), seed),
        }
    return result


def stage2_metrics(scores: pd.DataFrame, temperature: float, seed: int = 0) -> dict:
    """Every stage 2 metric with its interval: accuracy, balanced_accuracy, macro_f1, ece."""
    p = softmax(scores[logit_columns(scores)].to_numpy() / temperature, axis=1)
    rows = scores.assign(confidence=p.max(1), right=scores["prediction"].eq(scores["label"]))
    named = {
        "accuracy": lambda t: float(t.right.mean()),
        "balanced_accuracy": lambda t: balanced_accuracy(t.label, t.prediction),
        "macro_f1": lambda t: float(skm.f1_score(t.label, t.prediction, average="macro", zero_division=0.0)),
        "ece": lambda t: expected_calibration_error(t.confidence, t.right),
    }
    return intervals(rows, named, seed)


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


def readable(sweep: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """A sweep for reading: one row per quality, one column per metric, each "value [low, high]"."""
    index = [("as it is" if np.isnan(q) else f"JPEG {q:.0f}") for q in sweep["quality"]]
    cells = {
        name: [f"{v:.3f} [{a:.3f}, {b:.3f}]" for v, a, b in sweep[[name, f"{name}_low", f"{name}_high"]].to_numpy()]
        for name in metrics
    }
    return pd.DataFrame(cells, index=pd.Index(index, name="quality"))


def mistakes(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows whose prediction is wrong, the surest first; `margin` is the predicted logit minus the true class's."""
    wrong = scores[scores["prediction"] != true_class(scores)]
    logit = {name.removeprefix("logit_"): wrong[name].to_numpy() for name in logit_columns(scores)}
    true = true_class(wrong)
    margin = [logit[p][i] - logit[t][i] for i, (p, t) in enumerate(zip(wrong["prediction"], true, strict=True))]
    return wrong.assign(margin=np.array(margin, dtype=float)).sort_values("margin", ascending=False, ignore_index=True)


def by_source(scores: pd.DataFrame, table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Accuracy with its interval for each label, format and origin, the worst first.

    Args:
        scores: rows of a score table, each image once.
        table: the manifest; an image's origin is its file name up to the first underscore.
    """
    rows = scores.merge(table[["path", "format"]], on="path").assign(right=lambda t: t["prediction"] == true_class(t))
    name = rows["path"].str.rsplit("/", n=1).str[-1]
    rows["origin"] = name.str.split("_").str[0].where(name.str.contains("_"), "")
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
