"""One function per figure: takes data, returns Axes, or a Figure where the figure is a grid."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from sklearn import metrics as skm

from dfd.evaluate import metrics as metrics_module
from dfd.evaluate import scores as scores_module
from dfd.evaluate.metrics import clean
from dfd.inference import decide
from dfd.inference.decide import logit_columns, true_class

# Okabe and Ito 2008, told apart with any common colour blindness; ordered so that the first few differ most
PALETTE = sns.color_palette("#0072B2 #E69F00 #009E73 #D55E00 #56B4E9 #000000 #CC79A7 #F0E442".split())


def plot_cm(true: Sequence[str], predicted: Sequence[str], classes: Sequence[str], ax: Axes, title: str = "") -> Axes:
    """Confusion matrix: counts, and in brackets the share of each true class.

    Args:
        true, predicted: (N,) class names.
        classes: order of rows and columns.
        ax: where to draw.
        title: above the matrix.
    """
    counts = skm.confusion_matrix(true, predicted, labels=list(classes))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    text = [[f"{n}\n({s:.0%})" for n, s in zip(*row, strict=True)] for row in zip(counts, shares, strict=True)]
    sns.heatmap(
        shares, annot=text, fmt="", vmin=0, vmax=1, cmap="Blues", cbar=False, square=True, linewidths=0.5,
        xticklabels=classes, yticklabels=classes, ax=ax,
    )  # fmt: skip
    ax.set(xlabel="predicted", ylabel="true", title=title)
    ax.tick_params(axis="y", rotation=0)
    return ax


def plot_confusions(tables: dict[str, pd.DataFrame], split: str) -> Figure:
    """Confusion matrices side by side, on the clean images of one split.

    Args:
        tables: title -> score table of a stage.
        split: val or test.
    """
    figure, axes = plt.subplots(1, len(tables), figsize=(5.2 * len(tables), 4.6), squeeze=False, layout="constrained")
    for ax, (title, scores) in zip(axes[0], tables.items(), strict=True):
        rows = clean(scores, split)
        classes = [name.removeprefix("logit_") for name in logit_columns(scores)]
        plot_cm(true_class(rows), rows["prediction"], classes, ax, f"{title}, {split}")
    return figure


def plot_history(history: pd.DataFrame) -> Figure:
    """Losses, validation metrics and, where there are several, each loss by itself over the epochs; best epoch marked.

    Args:
        history: what dfd.train.stage2 returns; columns val_<metric> are drawn, and <name>_loss of each part and adversary.
    """
    metrics = [name for name in history if name.startswith("val_") and name != "val_loss"]
    parts = [name for name in history if name.endswith("_loss") and name not in ("train_loss", "val_loss")]
    panels = 3 if parts else 2
    figure, axes = plt.subplots(1, panels, figsize=(4.4 * panels, 3.6), layout="constrained")
    drawn = [{"train_loss": "training, degraded crops", "val_loss": "validation, clean crops"}]
    drawn.append({name: name.removeprefix("val_").replace("_", " ") for name in metrics})
    drawn.append({name: name.removesuffix("_loss") for name in parts})
    for ax, lines in zip(axes, drawn, strict=False):
        for colour, (name, label) in zip(PALETTE, lines.items(), strict=False):
            ax.plot(history["epoch"], history[name], "o-", ms=4, label=label, color=colour)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(xlabel="epoch")
    axes[0].set(ylabel="cross-entropy, nats", title="loss")
    best = history.loc[history["score"].idxmax(), "epoch"]
    axes[1].axvline(best, color="0.5", ls=":", label=f"kept: epoch {best:.0f}")
    axes[1].set(title="validation", ylim=(min(0.45, history[metrics].min().min() - 0.05), 1.02))
    if parts:
        axes[2].set(title="each loss, before its weight")
    for ax in axes:
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


def plot_roc(scores: pd.DataFrame, ax: Axes | None = None) -> Figure:
    """ROC curve of stage 1 for each generator against all photos, with 95 % bands.

    Args:
        scores: rows of a score table, each image once; photos and at least one generator.
        ax: where to draw; none makes a figure. False positives are on a logarithmic axis.
    """
    ax = ax or _single()
    for name, pair, colour in _against_photos(scores):
        curve = scores_module.roc(pair)
        area = metrics_module.auc(pair["label"] != "RealPhotos", pair["logit_fake"])
        _with_band(ax, curve, "fpr", "tpr", "post", colour, f"{name}, AUC {area:.3f}")
    photos = (scores["label"] == "RealPhotos").sum()
    ax.set(xscale="log", xlim=(max(0.5 / photos, scores_module.FPR_GRID[0]), 1), ylim=(0, 1.02))
    ax.set(xlabel="photos called fake (false positive rate)", ylabel="fakes found (true positive rate)")
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    _legend(ax)
    return ax.figure


def plot_pr(scores: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Precision against recall of stage 1 for each generator against all photos, with 95 % bands.

    Args:
        scores: rows of a score table, each image once; photos and at least one generator.
        ax: where to draw; none makes a figure. Dotted lines: the precision of calling every image fake.
    """
    ax = ax or _single()
    chances = set()
    for name, pair, colour in _against_photos(scores):
        is_fake = pair["label"] != "RealPhotos"
        area = skm.average_precision_score(is_fake, pair["logit_fake"])
        curve = scores_module.precision_recall(pair)
        _with_band(ax, curve, "recall", "precision", "pre", colour, f"{name}, AP {area:.3f}")
        chances.add(is_fake.mean())
    ax.hlines(sorted(chances), 0, 1, colors="0.5", linestyles=":", label="all called fake")
    ax.set(xlabel="fakes found (recall)", ylabel="fakes among those called fake (precision)")
    ax.set(xlim=(0, 1), ylim=(0, 1.02))
    _legend(ax)
    return ax


def plot_reliability(scores: pd.DataFrame, temperature: float, ax: Axes | None = None) -> Axes:
    """Accuracy against confidence before calibration and after; below, how many images have which confidence.

    Args:
        scores: rows of a stage's score table; the test split's, for the temperature was fitted on the validation split.
        temperature: the fitted one; before it the temperature is 1.
        ax: where to draw; none makes a figure. Bins without images are left out.
    """
    ax = ax or _single()
    lowest = 1 / len(decide.logit_columns(scores))  # the likeliest of n classes has at least 1 / n
    ax.plot([lowest, 1], [lowest, 1], color="0.5", ls=":", label="confidence = accuracy")
    below = ax.inset_axes([0, 0, 1, 0.2], sharex=ax)
    for title, divisor, marker, colour in (("before", 1.0, "s", PALETTE[1]), ("after", temperature, "o", PALETTE[0])):
        confidence, right = decide.confidences(scores, divisor)
        bins = scores_module.reliability(confidence, right)
        ece = metrics_module.calibration_error(np.ones((1, len(right))), confidence, right)[0]
        label = f"{title} (T = {divisor:.2f}), ECE {ece:.3f}"
        ax.plot(bins["confidence"], bins["accuracy"], marker=marker, ms=5, color=colour, label=label)
        below.hist(confidence, np.linspace(0, 1, metrics_module.BINS + 1), histtype="step", color=colour, lw=1.5)
    bottom = min(line.get_ydata().min() for line in ax.lines)
    ax.set(xlim=(lowest - 0.04, 1.02), ylim=(bottom - 0.3 * (1 - bottom), 1.03))
    ax.set(yticks=[tick for tick in np.linspace(0, 1, 11) if tick >= bottom])
    ax.set(xlabel="confidence (mean in the bin)", ylabel="accuracy (share right in the bin)")
    below.set_ylim(0, 1.5 * below.get_ylim()[1])  # room for the word
    below.text(0.02, 0.9, "images", transform=below.transAxes, va="top", fontsize=9, color="0.4")
    below.spines[["left", "right", "bottom"]].set_visible(False)
    below.tick_params(bottom=False, labelbottom=False, left=False, labelleft=False)
    below.patch.set_visible(False)
    ax.legend(loc="upper left", fontsize=9)
    return ax


def plot_ablation(table: pd.DataFrame, metric: str = "auc") -> Axes:
    """One metric of each variant under each degradation, with 95 % intervals.

    Args:
        table: columns variant, degradation, <metric>, <metric>_low, <metric>_high, drawn in the table's order from the
            top; an interval that is not known is left out.
        metric: auc or accuracy.
    """
    variants, conditions = table["variant"].unique(), table["degradation"].unique()
    height = 1.4 + len(variants) * max(0.5, 0.17 * len(conditions))
    ax = plt.subplots(figsize=(9, height), layout="constrained")[1]
    for i, (condition, colour) in enumerate(zip(conditions, _colours(len(conditions)), strict=True)):
        rows = table[table["degradation"] == condition]
        y = pd.Index(variants).get_indexer(rows["variant"]) + 0.7 * ((i + 0.5) / len(conditions) - 0.5)
        ax.hlines(
            y, rows[f"{metric}_low"].astype(float), rows[f"{metric}_high"].astype(float), color=colour, lw=2, alpha=0.6
        )
        ax.plot(rows[metric], y, "o", color=colour, label=condition)
    ax.hlines(np.arange(len(variants) - 1) + 0.5, 0, 1, transform=ax.get_yaxis_transform(), color="0.9", lw=0.8)
    ax.set(yticks=range(len(variants)), yticklabels=variants, ylim=(len(variants) - 0.5, -0.5))
    ax.set_xlabel("AUC" if metric == "auc" else metric)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="0.93")
    ax.set_axisbelow(True)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title="images")
    return ax


def _single() -> Axes:
    return plt.subplots(figsize=(5.6, 4.4), layout="constrained")[1]


def _legend(ax: Axes) -> None:
    banded = any(isinstance(one, PolyCollection) for one in ax.collections)
    ax.legend(fontsize=9, title="shaded: 95 % interval" if banded else None, title_fontsize=9)


def _colours(count: int) -> list[tuple[float, float, float]]:
    return sns.color_palette(PALETTE, count)  # starts again after its eight


def _against_photos(scores: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, tuple[float, float, float]]]:
    """Each generator's name, its rows with all photos, and its colour."""
    names = sorted(set(scores["label"]) - {"RealPhotos"})
    if not names or not scores["label"].eq("RealPhotos").any():
        found = ", ".join(names) or "RealPhotos alone"
        raise ValueError(f"a curve needs photos and fakes, got rows of {found}; give all rows of a split")
    for name, colour in zip(names, _colours(len(names)), strict=True):
        yield name, scores[scores["label"].isin([name, "RealPhotos"])], colour


def _with_band(ax: Axes, curve: pd.DataFrame, x: str, y: str, step: str, colour: tuple, label: str) -> None:
    """A step curve, and its band where there is one."""
    ax.step(curve[x], curve[y], where=step, color=colour, label=label)
    if curve["low"].notna().any():
        ax.fill_between(curve[x], curve["low"], curve["high"], step=step, color=colour, alpha=0.15, lw=0)


def plot_examples(images: dict[str, list[np.ndarray]], titles: dict[str, list[str]] | None = None) -> Figure:
    """A grid of pictures, one row per name.

    Args:
        images: name -> pictures (H, W, 3) in [0, 1].
        titles: name -> a caption for each picture.
    """
    columns = max(len(row) for row in images.values())
    height = 1.75 if titles else 1.5
    figure, axes = plt.subplots(
        len(images), columns, figsize=(1.55 * columns + 0.6, height * len(images)), squeeze=False, layout="constrained"
    )
    for row, (name, pictures) in zip(axes, images.items(), strict=True):
        for i, ax in enumerate(row):
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if i < len(pictures):
                ax.imshow(pictures[i], vmin=0, vmax=1, interpolation="nearest")
                if titles:
                    ax.set_title(titles[name][i], fontsize=7)
        row[0].set_ylabel(name, fontsize=9)
    return figure


def plot_spectra(spectra: dict[str, np.ndarray]) -> Figure:
    """Averaged residual spectra side by side, on one common colour scale."""
    low = min(np.percentile(one, 2) for one in spectra.values())
    high = max(np.percentile(one, 99.8) for one in spectra.values())
    figure, axes = plt.subplots(
        1, len(spectra), figsize=(2.7 * len(spectra) + 0.8, 3.1), squeeze=False, layout="constrained"
    )
    for ax, (name, spectrum) in zip(axes[0], spectra.items(), strict=True):
        extent = (-0.5, 0.5, 0.5, -0.5)
        shown = ax.imshow(spectrum, vmin=low, vmax=high, cmap="viridis", extent=extent)
        ax.set(title=name, xlabel="cycles per pixel", xticks=[-0.5, 0, 0.5], yticks=[-0.5, 0, 0.5])
    axes[0, 0].set_ylabel("cycles per pixel")
    figure.colorbar(shown, ax=axes[0].tolist(), label="log10 magnitude", shrink=0.8)
    return figure


def plot_split(table: pd.DataFrame) -> Axes:
    """Images per class and split."""
    counts = table.groupby(["label", "split"]).size().unstack(fill_value=0)
    counts = counts.reindex(columns=[name for name in ("train", "val", "test") if name in counts])
    ax = counts.plot.barh(stacked=True, figsize=(7.5, 0.55 * len(counts) + 1.2), color=PALETTE[:3], width=0.7)
    ax.set(xlabel="images", ylabel="")
    ax.legend(title="split", loc="center left", bbox_to_anchor=(1, 0.5))
    return ax
