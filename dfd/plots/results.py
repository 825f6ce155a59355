"""Figures of the data, of training and of results; at the end what all figures share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from sklearn import metrics as skm

from dfd.config import REAL
from dfd.evaluate import metrics
from dfd.evaluate.scores import FPR_GRID, precision_recall, reliability, roc
from dfd.inference import decide

# Okabe and Ito 2008, told apart with any common colour blindness; ordered so that the first few differ most
PALETTE = sns.color_palette("#0072B2 #E69F00 #009E73 #D55E00 #56B4E9 #000000 #CC79A7 #F0E442".split())
MARKERS = "os^Dv"


Names = Sequence[str]


def plot_cm(true: Names, predicted: Names, classes: Names, ax: Axes, title: str = "", rows: Names = ()) -> Axes:
    """Confusion matrix: counts, and in brackets the share of each true class.

    Args:
        true, predicted: (N,) class names.
        classes: order of the columns, and of the rows where `rows` does not give another.
    """
    rows = rows or classes
    counts = pd.crosstab(np.asarray(true), np.asarray(predicted)).reindex(index=rows, columns=classes, fill_value=0)
    shares = counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
    text = counts.astype(str) + "\n(" + shares.map("{:.0%}".format) + ")"
    heatmap(
        ax, shares, annot=text, fmt="", vmin=0, vmax=1, cmap="Blues", cbar=False, square=list(rows) == list(classes)
    )
    ax.set(xlabel="predicted", ylabel="true", title=title)
    return ax


def plot_confusions(tables: dict[str, pd.DataFrame], split: str, by_label: bool = False) -> Figure:
    """Confusion matrices of score tables, title -> table, side by side, on the clean images of one split.

    With `by_label` each label has a row, so that stage 1's generators are told apart.
    """
    figure, axes = new_grid(1, len(tables), (5.2, 4.6))
    for ax, (title, scores) in zip(axes[0], tables.items(), strict=True):
        images = metrics.clean(scores, split)
        classes = [name.removeprefix("logit_") for name in decide.logit_columns(scores)]
        true = images["label"] if by_label else decide.true_class(images)
        labels = sorted(true.unique(), key=lambda label: (label != REAL, label))
        plot_cm(true, decide.closed_set(images), classes, ax, f"{title}, {split}", labels if by_label else classes)
    return figure


def plot_history(history: pd.DataFrame) -> Figure:
    """Losses, validation metrics and, where there are several, each loss by itself over the epochs; best epoch marked.

    Columns val_<metric> and <name>_loss of what training returns are drawn.
    """
    names = [name for name in history if name.startswith("val_") and name != "val_loss"]
    parts = [name for name in history if name.endswith("_loss") and name not in ("train_loss", "val_loss")]
    panels = [{"train_loss": "training, degraded crops", "val_loss": "validation, clean crops"}]
    panels.append({name: name.removeprefix("val_").replace("_", " ") for name in names})
    if parts:
        panels.append({name: name.removesuffix("_loss") for name in parts})
    figure, axes = new_grid(1, len(panels), (4.4, 3.6))
    titles = ("loss", "validation", "each loss, before its weight")
    for ax, lines, title in zip(axes[0], panels, titles, strict=False):
        for colour, (name, label) in zip(PALETTE, lines.items(), strict=False):
            ax.plot(history["epoch"], history[name], "o-", ms=4, label=label, color=colour)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(xlabel="epoch", title=title)
    axes[0, 0].set_ylabel("cross-entropy, nats")
    best = history.loc[history["score"].idxmax(), "epoch"]
    axes[0, 1].axvline(best, color="0.5", ls=":", label=f"kept: epoch {best:.0f}")
    axes[0, 1].set_ylim(min(0.45, history[names].min().min() - 0.05), 1.02)
    for ax in axes[0]:
        ax.legend(fontsize="small")
    return figure


def live_history() -> Callable[[pd.DataFrame], None]:
    """Give a callback `on_epoch(history)` that redraws plot_history in place below a notebook's cell.

    Outside a notebook it does nothing.
    """
    handle = None

    def on_epoch(history: pd.DataFrame) -> None:
        nonlocal handle
        if "ipykernel" not in sys.modules:
            return
        from IPython.display import display

        figure, about = plot_history(history), {"alt": "Training: losses and validation metrics over the epochs"}
        if handle is None:
            handle = display(figure, display_id=True, metadata=about)
        else:
            handle.update(figure, metadata=about)
        plt.close(figure)

    return on_epoch


def plot_roc(scores: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """ROC curve of stage 1 for each generator against all photos, with 95 % bands.

    Takes rows of a score table, each image once. False positives are on a logarithmic axis.
    """
    ax = ax or new_axes()
    for name, pair, colour in _against_photos(scores):
        curve = roc(pair)
        area = skm.roc_auc_score(pair["label"] != REAL, pair["logit_fake"])
        _plot_band(ax, curve["fpr"], curve["tpr"], curve, "post", colour, f"{name}, AUC {area:.3f}")
    photos = scores["label"].eq(REAL).sum()
    ax.set(xscale="log", xlim=(max(0.5 / photos, FPR_GRID[0]), 1), ylim=(0, 1.02))
    ax.set(xlabel="photos called fake (false positive rate)", ylabel="fakes found (true positive rate)")
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    return _with_legend(ax)


def plot_pr(scores: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Precision against recall of stage 1 for each generator against all photos, with 95 % bands.

    Takes rows of a score table, each image once. Dotted lines: the precision of calling every image fake.
    """
    ax, chances = ax or new_axes(), set()
    for name, pair, colour in _against_photos(scores):
        is_fake, curve = pair["label"] != REAL, precision_recall(pair)
        area = skm.average_precision_score(is_fake, pair["logit_fake"])
        _plot_band(ax, curve["recall"], curve["precision"], curve, "pre", colour, f"{name}, AP {area:.3f}")
        chances.add(is_fake.mean())
    ax.hlines(sorted(chances), 0, 1, colors="0.5", linestyles=":", label="all called fake")
    ax.set(xlabel="fakes found (recall)", ylabel="fakes among those called fake (precision)")
    ax.set(xlim=(0, 1), ylim=(0, 1.02))
    return _with_legend(ax)


def _against_photos(scores: pd.DataFrame) -> list[tuple[str, pd.DataFrame, tuple]]:
    """Each generator's name, its rows with all photos, and its colour."""
    names = sorted(set(scores["label"]) - {REAL})
    if not names or not scores["label"].eq(REAL).any():
        labels = ", ".join(names) or f"{REAL} alone"
        raise ValueError(f"a curve needs photos and fakes, got rows of {labels}; give all rows of a split")
    pairs = [scores[scores["label"].isin([name, REAL])] for name in names]
    return list(zip(names, pairs, sns.color_palette(PALETTE, len(names)), strict=True))


def _plot_band(ax: Axes, x: pd.Series, y: pd.Series, limits: pd.DataFrame, step: str, colour: Any, label: str) -> None:
    """A step curve, and its band where there is one."""
    ax.step(x, y, where=step, color=colour, label=label)
    if limits["low"].notna().any():
        ax.fill_between(x, limits["low"], limits["high"], step=step, color=colour, alpha=0.15, lw=0, gid="band")


def _with_legend(ax: Axes) -> Axes:
    banded = any(artist.get_gid() == "band" for artist in ax.collections)
    ax.legend(fontsize=9, title="shaded: 95 % interval" if banded else None, title_fontsize=9)
    return ax


def plot_reliability(scores: pd.DataFrame, temperature: float, ax: Axes | None = None) -> Axes:
    """Accuracy against confidence before calibration and after; below, how many images have which confidence.

    Takes the test split's rows, for the temperature was fitted on the validation split. Empty bins are left out.
    """
    ax = ax or new_axes()
    lowest = 1 / len(decide.logit_columns(scores))  # the likeliest of n classes has at least 1 / n
    ax.plot([lowest, 1], [lowest, 1], color="0.5", ls=":", label="confidence = accuracy")
    below = ax.inset_axes([0, 0, 1, 0.2], sharex=ax)
    for title, divisor, marker, colour in (("before", 1.0, "s", PALETTE[1]), ("after", temperature, "o", PALETTE[0])):
        confidence, right = decide.confidences(scores, divisor)
        bins = reliability(confidence, right)
        error = metrics.calibration_error(np.ones((1, len(right))), confidence, right)[0]
        label = f"{title} (T = {divisor:.2f}), ECE {error:.3f}"
        ax.plot(bins["confidence"], bins["accuracy"], marker=marker, ms=5, color=colour, label=label)
        below.hist(confidence, np.linspace(0, 1, metrics.BINS + 1), histtype="step", color=colour, lw=1.5)
    bottom = min(line.get_ydata().min() for line in ax.lines)
    ax.set(xlim=(lowest - 0.04, 1.02), ylim=(bottom - 0.3 * (1 - bottom), 1.03))
    ax.set(yticks=[tick for tick in np.linspace(0, 1, 11) if tick >= bottom])
    ax.set(xlabel="confidence (mean in the bin)", ylabel="accuracy (share right in the bin)")
    below.set_ylim(0, 1.5 * below.get_ylim()[1])  # room for the word
    below.text(0.02, 0.9, "images", transform=below.transAxes, va="top", fontsize=9, color="0.4")
    below.set_axis_off()
    ax.legend(loc="upper left", fontsize=9)
    return ax


def plot_ablation(table: pd.DataFrame, metric: str = "auc") -> Axes:
    """One metric, auc or accuracy, of each variant under each degradation, with 95 % intervals, from `ablation.run`."""
    variants, conditions = table["variant"].unique(), table["degradation"].unique()
    ax = new_axes(9, 1.4 + len(variants) * max(0.5, 0.17 * len(conditions)))
    for i, condition in enumerate(conditions):
        rows = table[table["degradation"] == condition]
        y = pd.Index(variants).get_indexer(rows["variant"]) + 0.7 * ((i + 0.5) / len(conditions) - 0.5)
        colour = PALETTE[i % len(PALETTE)]
        draw_intervals(ax, y, rows, metric, color=colour, marker="o", label=condition)
    ax.hlines(np.arange(len(variants) - 1) + 0.5, 0, 1, transform=ax.get_yaxis_transform(), color="0.9", lw=0.8)
    name_rows(ax, variants, 10)
    ax.set_xlabel("AUC" if metric == "auc" else metric)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title="images")
    return ax


def plot_split(table: pd.DataFrame) -> Axes:
    """Images per class and split, of a manifest."""
    counts = table.groupby(["label", "split"]).size().unstack(fill_value=0)
    counts = counts[[name for name in ("train", "val", "test") if name in counts]]
    ax = counts.plot.barh(stacked=True, figsize=(7.5, 0.55 * len(counts) + 1.2), color=PALETTE[:3], width=0.7)
    ax.set(xlabel="images", ylabel="")
    ax.legend(title="split", loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def new_axes(width: float = 5.6, height: float = 4.4) -> Axes:
    """The axes of a figure of that size, inches."""
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def new_grid(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure and its axes, (rows, columns); size is that of one panel, inches."""
    figsize = size[0] * columns, size[1] * rows
    return plt.subplots(rows, columns, figsize=figsize, squeeze=False, **{"layout": "constrained", **options})


def draw_intervals(ax: Axes, y: Any, table: pd.DataFrame, metric: str, **style: Any) -> None:
    """A metric as markers at the heights y, each on the line from <metric>_low to <metric>_high."""
    value, low, high = (table[metric + end].astype(float) for end in ("", "_low", "_high"))
    ax.hlines(y, low, high, color=style["color"], lw=2, alpha=0.5)
    ax.plot(value, y, ls="", **style)


def name_rows(ax: Axes, names: Sequence[str], size: float = 9) -> None:
    """One row per name, from the top."""
    ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6))
    ax.tick_params(axis="y", length=0, labelsize=size)
    ax.grid(axis="x", color="0.93")
    ax.set_axisbelow(True)


def heatmap(ax: Axes, values: pd.DataFrame, **options: Any) -> None:
    """Numbers written on their colours, row names upright."""
    sns.heatmap(values, ax=ax, linewidths=0.5, **{"annot": True, **options})
    ax.tick_params(axis="y", rotation=0)
