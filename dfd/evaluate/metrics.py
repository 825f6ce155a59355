"""The registry of metrics, and their 95 % intervals from a bootstrap over sources, or groups where these are unknown.

Every metric is a function of N images and of weights (R, N): how often each image counts in each of R draws. So one
function gives the value (weights of one) and all draws at once. Images of a group are drawn together or not at all.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from dfd.config import REAL
from dfd.core.io import read_json, write_json
from dfd.inference.decide import closed_set, confidences, stage_of, true_class
from dfd.inference.likelihood import cllr, units

RESAMPLES = 400  # bootstrap draws behind each interval
FEWEST = 8  # groups behind an interval: of 3 its "95 %" hold the truth in 72 of 100 cases, of 5 in 89, of 9 in 94
LARGEST_JACKKNIFE = 1000  # groups; with more, BCa's correction is small and leaving out each of them slow
BINS = 15  # equal-width bins of confidence, behind the calibration error and the reliability diagram
Interval = dict[str, float | None]  # value, low, high; None where undefined


@np.errstate(invalid="ignore", divide="ignore")  # of draws in which a statistic is undefined
def bootstrap(groups: Any, statistic: Callable[[np.ndarray], Any], seed: int = 0,
        resamples: int = RESAMPLES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """A statistic with its 95 % BCa interval (Efron 1987) over groups; percentiles where it is undefined or lopsided:
    where nearly all draws lie on one side of the value, as those of a calibration error do, it shrinks to that end.

    `groups` has one of each image, (N,); `statistic` takes weights (R, N) and gives (R,), or (K, R) for K numbers, NaN
    where undefined. Gives value, low and high, () or (K,) each; limits are NaN below FEWEST groups, or without a draw.
    """
    codes, names = pd.factorize(np.asarray(groups), sort=True)
    count, value = len(names), np.asarray(statistic(np.ones((1, len(codes)))), dtype=float)[..., 0].round(12)
    if count < FEWEST:
        return value, np.full(value.shape, np.nan), np.full(value.shape, np.nan)

    def of_groups(drawn: np.ndarray, axis: int = -1) -> np.ndarray:  # drawn: (..., M) numbers of groups
        rows = drawn.reshape(-1, drawn.shape[-1])
        flat = (rows + count * np.arange(len(rows))[:, None]).ravel()
        times = np.bincount(flat, minlength=count * len(rows)).reshape(-1, count)
        result = np.asarray(statistic(times[:, codes].astype(float)), dtype=float).round(12)  # ties, in any order
        return result.reshape(result.shape[:-1] + drawn.shape[:-1])

    with warnings.catch_warnings(action="ignore"):  # undefined or constant draws, which are dealt with below
        method, batch = "BCa" if count <= LARGEST_JACKKNIFE else "percentile", max(1, 2**23 // len(codes))
        result = stats.bootstrap((np.arange(count),), of_groups, n_resamples=resamples, rng=seed, vectorized=True,
                                 method=method, batch=batch)  # fmt: skip
        low, high = (np.array(limit, dtype=float) for limit in result.confidence_interval)
        percentiles = np.nanpercentile(result.bootstrap_distribution, [2.5, 97.5], axis=-1)
    outside = (value <= percentiles[0]) | (value >= percentiles[1])
    unusable = np.isnan(low) | np.isnan(high) | (outside & (percentiles[0] < percentiles[1]))
    low, high = np.where(unusable, percentiles[0], low), np.where(unusable, percentiles[1], high)
    return value, low - np.fmax(low - value, 0), high + np.fmax(value - high, 0)  # all draws may lie on one side of it


def bootstrap_all(groups: Any, statistics: Mapping[Any, Callable[[np.ndarray], np.ndarray]], seed: int = 0,
        resamples: int = RESAMPLES) -> dict[Any, Interval]:  # fmt: skip
    """Several statistics, each (R,) from weights (R, N), on the same draws: name -> value, low, high.

    A `partial` that is `too_few` has none. One of `share` that is 0 or 1 in each draw, as 0 of 60 photos, has the exact
    binomial interval over groups.
    """
    groups = np.asarray(groups)
    limits = bootstrap(groups, lambda weights: np.stack([f(weights) for f in statistics.values()]), seed, resamples)
    result = {}
    for (name, f), value, low, high in zip(statistics.items(), *limits, strict=True):
        told = f.keywords if isinstance(f, partial) and f.func is share else {"right": np.zeros(0)}
        if too_few(f, groups):
            low = high = np.nan
        elif low == high and value in (0, 1) and told["right"].dtype == bool:
            count = len(np.unique(groups[told.get("among", slice(None))]))
            low, high = stats.binomtest(round(value * count), count).proportion_ci()
        ends = {"value": value, "low": low, "high": high}
        result[name] = {end: float(x) if np.isfinite(x) else None for end, x in ends.items()}
    return result


def too_few(statistic: Callable, groups: np.ndarray) -> bool:
    """Whether a `partial` is of a class, or of images `among` all, with fewer than FEWEST groups."""
    told = statistic.keywords if isinstance(statistic, partial) else {}
    among = np.ones(len(groups)) if told.get("among") is None else told["among"]
    of = next((told[name] for name in ("labels", "positive", "is_fake") if name in told), among)
    parts = (np.asarray(among, dtype=bool) & (of == part) for part in np.unique(of[np.asarray(among, dtype=bool)]))
    return any(len(np.unique(groups[part])) < FEWEST for part in parts)


def flatten(values: Mapping[str, Interval]) -> dict[str, float]:
    """Intervals as the columns of one row: each metric beside its _low and _high; NaN where undefined."""
    ends = {"value": "", "low": "_low", "high": "_high"}
    numbers = {name + ends[key]: number for name, three in values.items() for key, number in three.items()}
    return {name: np.nan if number is None else number for name, number in numbers.items()}


def share(weights: np.ndarray, right: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
    """Share of the images, or of those `among` them, that are right: (R,); NaN where there is none."""
    among = np.ones(len(right)) if among is None else np.asarray(among, dtype=float)
    return weights @ (among * right) / (weights @ among)


def mean_recall(weights: np.ndarray, labels: np.ndarray, right: np.ndarray, among: Any = True) -> np.ndarray:
    """Mean over the classes of the share of their images, `among` all, that are right (R,); of those a draw holds."""
    recalls = np.stack([share(weights, right, (labels == name) & among) for name in np.unique(labels)])
    return np.nansum(recalls, 0) / (~np.isnan(recalls)).sum(0)


def macro_f1(weights: np.ndarray, labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Mean F1 (R,) over the classes that a draw holds or predicts."""
    names = np.union1d(labels, predicted)
    hits = np.stack([weights @ ((labels == name) & (predicted == name)) for name in names])
    totals = np.stack([weights @ ((labels == name).astype(float) + (predicted == name)) for name in names])
    return (2 * hits / np.where(totals > 0, totals, 1)).sum(0) / (totals > 0).sum(0)


def _ranked(weights: np.ndarray, positive: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the positives and of the negatives at each different score, highest first: (R, U) each."""
    score, positive = np.asarray(score), np.asarray(positive, bool)  # 0 and 1 too
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])
    ups = np.add.reduceat(weights[:, order] * positive[order], starts, axis=1)
    return ups, np.add.reduceat(weights[:, order] * ~positive[order], starts, axis=1)


def weighted_auc(weights: np.ndarray, positive: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Area under the ROC curve (R,); ties count half; NaN where a draw holds one class alone."""
    ups, downs = _ranked(weights, positive, score)
    total, above = downs.sum(1), np.cumsum(downs, axis=1) - downs / 2
    with np.errstate(invalid="ignore"):
        return (ups * (total[:, None] - above)).sum(1) / (ups.sum(1) * total)


def average_precision(weights: np.ndarray, positive: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Average precision (R,); NaN where a draw has no positive."""
    ups, downs = _ranked(weights, positive, score)
    hits = np.cumsum(ups, axis=1)
    return (ups * np.nan_to_num(hits / (hits + np.cumsum(downs, axis=1)))).sum(1) / ups.sum(1)


def tpr_at_fpr(weights: np.ndarray, positive: np.ndarray, score: np.ndarray, fpr: float) -> np.ndarray:
    """Share of positives found when at most `fpr` of the negatives are (R,); NaN where a draw holds one class alone."""
    ups, downs = (np.cumsum(part, axis=1) for part in _ranked(weights, positive, score))
    true, false = ups / ups[:, -1:], downs / downs[:, -1:]
    return np.where((ups[:, -1] > 0) & (downs[:, -1] > 0), np.where(false <= fpr, true, 0.0).max(1), np.nan)


def calibration_error(weights: np.ndarray, confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Expected calibration error (R,): mean gap between confidence and accuracy over BINS bins; arXiv:1706.04599."""
    bins = np.minimum((np.asarray(confidence) * BINS).astype(int), BINS - 1)
    gaps = (bins[:, None] == np.arange(BINS)) * (right - confidence)[:, None]  # (N, BINS)
    return np.abs(weights @ gaps).sum(1) / weights.sum(1)


class Metric(NamedTuple):
    """A number that a score table gives."""

    function: Callable[..., np.ndarray]  # of weights (R, N) and inputs: (R,)
    inputs: dict[str, str]  # argument -> its name in `judged`
    label: str
    higher_is_better: bool = True

    def of(self, table: SimpleNamespace) -> Callable[[np.ndarray], np.ndarray]:
        """The statistic of weights that `bootstrap` draws, on what `judged` gives."""
        return partial(self.function, **{argument: getattr(table, name) for argument, name in self.inputs.items()})


RANKED, DECIDED = {"positive": "is_fake", "score": "logit"}, {"right": "decided"}
METRICS = {  # as in metrics.json
    "auc": Metric(weighted_auc, RANKED, "AUC"),
    "ap": Metric(average_precision, RANKED, "average precision"),
    "accuracy": Metric(share, {"right": "right"}, "accuracy"),
    "accuracy_at_threshold": Metric(share, DECIDED, "accuracy at the threshold"),
    "balanced_accuracy": Metric(mean_recall, {"labels": "true", "right": "right"}, "balanced accuracy"),
    "balanced_accuracy_at_threshold": Metric(mean_recall, DECIDED | {"labels": "true"}, "balanced at threshold"),
    "real_accuracy": Metric(share, {"right": "decided", "among": "is_real"}, "photos called real"),
    "fake_accuracy": Metric(share, {"right": "decided", "among": "is_fake"}, "fakes called fake"),
    "unsure": Metric(share, {"right": "unsure"}, "called unsure", False),
    "photos_accused": Metric(share, {"right": "wrong", "among": "is_real"}, "photos accused", False),
    "fakes_passed": Metric(share, {"right": "wrong", "among": "is_fake"}, "fakes passed", False),
    "unknown": Metric(share, {"right": "unknown"}, "called unknown", False),
    "false_positive_rate": Metric(share, {"right": "missed", "among": "is_real"}, "photos called fake", False),
    "true_positive_rate": Metric(share, {"right": "decided", "among": "is_fake"}, "fakes called fake"),
    "tpr_at_fpr_1": Metric(partial(tpr_at_fpr, fpr=0.01), RANKED, "fakes found at 1 % false alarms"),
    "tpr_at_fpr_5": Metric(partial(tpr_at_fpr, fpr=0.05), RANKED, "fakes found at 5 % false alarms"),
    "macro_f1": Metric(macro_f1, {"labels": "true", "predicted": "prediction"}, "macro F1"),
    "ece_before": Metric(calibration_error, {"confidence": "before", "right": "right"}, "ECE at temperature 1", False),
    "ece": Metric(calibration_error, {"confidence": "confidence", "right": "right"}, "ECE", False),
    "cllr": Metric(cllr, {"lr": "lr", "is_fake": "is_fake"}, "Cllr", False),
}
STAGE_METRICS = {
    "stage1": "auc ap accuracy accuracy_at_threshold balanced_accuracy real_accuracy fake_accuracy unsure "
    "photos_accused fakes_passed tpr_at_fpr_1 tpr_at_fpr_5 ece_before ece cllr".split(),
    "stage2": "accuracy balanced_accuracy macro_f1 unknown ece".split()}  # fmt: skip


def judged(scores: pd.DataFrame, temperature: float = 1.0) -> SimpleNamespace:
    """What METRICS read, (N,) each; `right` is stage 1's at 0.5, `decided` at the threshold, `missed` its opposite.

    `unsure` and `wrong` are of the three answers that `predict` gives; in tables of earlier versions NaN.
    """
    true, prediction = true_class(scores).to_numpy(), closed_set(scores).to_numpy()
    confidence, right = confidences(scores, temperature)
    logit = scores["logit_fake"].to_numpy() if stage_of(scores) == "stage1" else None
    lr = scores.get("log10_lr", pd.Series(np.nan, scores.index)).to_numpy(float)  # of tables of earlier versions: none
    unsure = wrong = np.full(len(scores), np.nan)
    if "answer" in scores:
        unsure = scores["answer"].eq("unsure").to_numpy()
        wrong = scores["answer"].ne(true).to_numpy() & ~unsure
    return SimpleNamespace(
        unsure=unsure, wrong=wrong, unknown=scores["prediction"].to_numpy() != prediction,
        true=true, prediction=prediction, is_fake=true == "fake", is_real=true == "real", logit=logit, right=right,
        decided=prediction == true, missed=prediction != true, confidence=confidence, lr=lr,
        before=confidences(scores, 1.0)[0])  # fmt: skip


def evaluate(scores: pd.DataFrame, temperature: float, seed: int = 0, only: Iterable[str] = ()) -> dict[str, Interval]:
    """A stage's metrics with intervals over all rows: its STAGE_METRICS, or `only` these; a mapping names them anew."""
    table, names = judged(scores, temperature), only or STAGE_METRICS[stage_of(scores)]
    names = names if isinstance(names, Mapping) else dict(zip(names, names, strict=True))
    return bootstrap_all(units(scores), {name: METRICS[metric].of(table) for name, metric in names.items()}, seed)


def by_generator(scores: pd.DataFrame, seed: int = 0) -> dict[str, dict[str, Interval]]:
    """Each generator by itself, with intervals.

    Stage 1, against all photos: auc, and at the threshold accuracy (balanced: the mean over photos and fakes, whatever
    their numbers) and fake_accuracy. Stage 2: recall, the share of its images whose likeliest name it is.
    """
    names = sorted(set(scores["label"]) - {REAL})
    if stage_of(scores) == "stage2":
        labels, right = scores["label"].to_numpy(), judged(scores).right
        recalls = {name: partial(share, right=right, among=labels == name) for name in names}
        return {name: {"recall": three} for name, three in bootstrap_all(units(scores), recalls, seed).items()}
    only = {"auc": "auc", "accuracy": "balanced_accuracy_at_threshold", "fake_accuracy": "fake_accuracy"}
    return {name: evaluate(scores[scores["label"].isin([name, REAL])], 1.0, seed, only) for name in names}


def by_source(scores: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Stage 1 on each source by itself: images, called_fake, and of fakes auc, with intervals.

    The AUC is of the source's fakes against all photos. Intervals are over groups of near-duplicates.
    """
    sources, scores = scores["source"], scores.drop(columns="source")
    rows, photos = [], scores[scores["label"] == REAL]
    for (label, source), part in scores.groupby(["label", sources]):
        fakes = {} if label == REAL else {"auc": "auc"}
        only = fakes | {"called_fake": "fake_accuracy" if fakes else "false_positive_rate"}
        measured = evaluate(pd.concat([part, photos]) if fakes else part, 1.0, seed, only)
        rows.append({"label": label, "source": source, "images": len(part)} | flatten(measured))
    return pd.DataFrame(rows)


def measure(scores: pd.DataFrame, temperature: float, seed: int = 0) -> dict:
    """A stage's metrics on the clean images of each split: split -> name -> {value, low, high}, and by_generator."""
    parts = {split: part for split in ("val", "test") if len(part := clean(scores, split))}
    apart = {split: {"by_generator": by_generator(part, seed)} for split, part in parts.items()}
    return {split: evaluate(part, temperature, seed) | apart[split] for split, part in parts.items()}


def clean(scores: pd.DataFrame, split: str) -> pd.DataFrame:
    """The rows of one split without degradation."""
    return scores[(scores["split"] == split) & (scores["degradation"] == "none")]


def save_metrics(out: str | Path, section: str, values: dict | list) -> None:
    """Merge one section into the run folder's metrics.json, keeping the other sections."""
    path = Path(out) / "metrics.json"
    write_json(path, {**read_json(path), section: values})
