"""One function per figure: takes data, returns Axes, or a Figure where the figure is a grid."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn import metrics as skm

from dfd.evaluation import clean, logit_columns, true_class

PALETTE = sns.color_palette("colorblind")


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


def plot_history(history: pd.DataFrame, metric: str) -> Figure:
    """Losses and the validation metric over the epochs, the best epoch marked."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    left.plot(history["epoch"], history["train_loss"], "o-", label="training, degraded crops", color=PALETTE[0])
    left.plot(history["epoch"], history["val_loss"], "s-", label="validation, clean crops", color=PALETTE[1])
    left.set(xlabel="epoch", ylabel="cross-entropy, nats")
    left.legend()
    right.plot(history["epoch"], history[metric], "s-", color=PALETTE[1])
    best = history.loc[history[metric].idxmax()]
    right.axvline(best["epoch"], color="0.5", ls=":", label=f"best: {best[metric]:.3f}")
    for ax in (left, right):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set(xlabel="epoch", ylabel=metric.replace("_", " "), ylim=(min(0.45, history[metric].min() - 0.05), 1.02))
    right.legend(loc="lower right")
    return figure


def plot_roc(scores: pd.DataFrame) -> Figure:
    """ROC curve of stage 1 for each generator against all photos, false positives on a logarithmic axis."""
    figure, ax = plt.subplots(figsize=(5.6, 4.4), layout="constrained")
    real = scores.loc[scores["label"] == "RealPhotos", "logit_fake"]
    for colour, name in zip(PALETTE, sorted(set(scores["label"]) - {"RealPhotos"}), strict=False):
        fake = scores.loc[scores["label"] == name, "logit_fake"]
        truth = np.r_[np.zeros(len(real)), np.ones(len(fake))]
        false, true, _ = skm.roc_curve(truth, np.r_[real, fake])
        label = f"{name}, AUC {skm.auc(false, true):.3f}"
        ax.step(np.maximum(false, 1e-4), true, where="post", label=label, color=colour)
    ax.set(xscale="log", xlim=(max(0.5 / max(len(real), 1), 1e-4), 1), ylim=(0, 1.02))
    ax.set(xlabel="photos called fake (false positive rate)", ylabel="fakes found (true positive rate)")
    ax.legend(loc="lower right")
    return figure


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


def plot_sweep(sweep: pd.DataFrame, metric: str, chance: float, ax: Axes, title: str = "") -> Axes:
    """A metric against JPEG quality with its 95 % band.

    Args:
        sweep: columns quality, <metric>, <metric>_low, <metric>_high; the row without a quality is not recompressed.
        metric: which one.
        chance: drawn as a dotted line.
        ax: where to draw.
        title: above the curve.
    """
    rows = sweep[sweep["quality"].notna()].sort_values("quality")
    low, high = rows[f"{metric}_low"], rows[f"{metric}_high"]
    ax.fill_between(rows["quality"], low, high, alpha=0.2, color=PALETTE[0], label="95 % interval")
    ax.plot(rows["quality"], rows[metric], "o-", color=PALETTE[0], label="JPEG")
    ax.axhline(sweep.loc[sweep["quality"].isna(), metric].item(), color=PALETTE[2], ls="--", label="not recompressed")
    ax.axhline(chance, color="0.5", ls=":", label="chance")
    ax.set(xlabel="JPEG quality (Pillow)", ylabel=metric.replace("_", " "), title=title, ylim=(0, 1.02))
    ax.invert_xaxis()
    ax.legend(loc="lower left", fontsize=8)
    return ax
