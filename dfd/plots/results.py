"""Figures of the data, of training and of results; at the end what all figures share."""

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from sklearn import metrics as skm
from sklearn.calibration import calibration_curve

from dfd.config import REAL
from dfd.evaluate.metrics import BINS, calibration_error, clean
from dfd.inference import likelihood
from dfd.inference.decide import class_names, closed_set, confidences, true_class

# Okabe and Ito 2008, told apart with any common colour blindness; ordered so that the first few differ most
PALETTE = sns.color_palette("#0072B2 #E69F00 #009E73 #D55E00 #56B4E9 #000000 #CC79A7 #F0E442".split())
MARKERS = "os^Dv"
pd.set_option("display.max_rows", 500, "display.max_columns", 200, "display.max_colwidth", None)  # tables whole
BESIDE = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}  # a legend that axes have no room for
LOSSES = {"train_loss": "training", "val_loss": "validation, cross-entropy"}
Names = Sequence[str] | pd.Series | pd.Index


def colours(count: int) -> Any:
    """One for each generator, in their order, and one for photos behind them: the same in all figures of up to 7."""
    return sns.color_palette(PALETTE if count <= len(PALETTE) else "husl", count)


def plot_cm(true: Names, predicted: Names, classes: Names, ax: Axes, title: str = "", rows: Names = ()) -> Axes:
    """Confusion matrix, counts and shares of each true class; columns as in `classes`, rows as in `rows` or these."""
    order, classes = list(rows) or list(classes), list(classes)
    table = pd.crosstab(np.asarray(true), np.asarray(predicted))
    parts = table, table.div(table.sum(axis=1), axis=0)
    counts, shares = (part.reindex(order, columns=classes, fill_value=0) for part in parts)
    text = counts.astype(str) + "\n(" + shares.map("{:.0%}".format) + ")"
    options = {"vmin": 0, "vmax": 1, "cmap": "Blues", "cbar": False, "linewidths": 0.5, "square": order == classes}
    sns.heatmap(shares.rename(index=legible, columns=legible), ax=ax, annot=text, fmt="", **options)
    ax.tick_params(axis="y", rotation=0)
    ax.set(xlabel="predicted", ylabel="true", title=title)
    return ax


def plot_confusions(tables: dict[str, pd.DataFrame], split: str, by_label: bool = False) -> Figure:
    """Confusion matrices of score tables, title -> table, on a split's clean images; a row per class or label."""
    most = max(scores["label"].nunique() * (1 + (scores["label"].str.len().max() > 36)) for scores in tables.values())
    figure, axes = new_grid(1, len(tables), (max(5.2, 0.62 * most), max(4.6, 0.55 * most)))
    for ax, (title, scores) in zip(axes[0], tables.items(), strict=True):
        images, classes = clean(scores, split), class_names(scores)
        true = images["label"] if by_label else true_class(images)
        labels = sorted(true.unique(), key=lambda label: (label != REAL, label))
        plot_cm(true, closed_set(images), classes, ax, f"{title}, {split}", labels if by_label else classes)
    return figure


def plot_history(history: pd.DataFrame) -> Figure:
    """Losses, validation metrics and, where there are several, each loss over the epochs; the best is marked."""
    metrics = [name for name in map(str, history) if name.startswith("val_") and name not in LOSSES]
    parts = [name for name in map(str, history) if name.endswith("_loss") and name not in LOSSES]
    panels = {"loss": list(LOSSES), "validation": metrics} | ({"each loss": parts} if parts else {})
    figure, axes = new_grid(1, len(panels), (4.4, 4.2))
    for ax, (title, names) in zip(axes[0], panels.items(), strict=True):
        for colour, name in zip(PALETTE, names, strict=False):
            label = LOSSES.get(name, name.removeprefix("val_").removesuffix("_loss").replace("_", " "))
            ax.plot(history["epoch"], history[name], "o-", ms=4, label=label, color=colour)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.set(xlabel="epoch", ylabel="value of the metric" if names == metrics else "loss", title=title)
        ax.set_xlim(0.5, history["epoch"].max() + 0.5)
    best = history.sort_values(["score", "val_loss"], ascending=[False, True])["epoch"].iloc[0]  # as `end_epoch` keeps
    axes[0, 1].axvline(best, color="0.5", ls=":", label=f"kept: epoch {best:.0f}")
    axes[0, 1].set_ylim(min(0.45, history[metrics].min().min() - 0.05), 1.02)
    for ax in axes[0]:
        ax.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return figure


def live_history() -> Callable[[pd.DataFrame], None]:
    """A callback `on_epoch(history)` that redraws plot_history below a notebook's cell; elsewhere it does nothing."""
    if "ipykernel" not in sys.modules:
        return lambda history: None
    from IPython.display import DisplayHandle

    handle = DisplayHandle()
    calls = chain([handle.display], repeat(handle.update))

    def on_epoch(history: pd.DataFrame) -> None:
        figure, about = plot_history(history), {"alt": "Training: losses and validation metrics over the epochs"}
        next(calls)(figure, metadata=about)
        plt.close(figure)

    return on_epoch


def plot_roc(scores: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """ROC curve of stage 1 for each generator against all photos, from rows of a score table."""
    ax = ax or new_axes()
    for name, colour, is_fake, logits in _against_photos(scores, ax):
        fpr, tpr, _ = skm.roc_curve(is_fake, logits)
        ax.step(fpr, tpr, where="post", color=colour, label=f"{name}, AUC {skm.auc(fpr, tpr):.3f}")
    ax.set(xscale="log", xlim=(0.5 / scores["label"].eq(REAL).sum(), 1), ylim=(0, 1.02))
    ax.set(xlabel="photos called fake (false positive rate)", ylabel="fakes found (true positive rate)")
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    return ax


def plot_pr(scores: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Precision against recall of stage 1 for each generator against all photos; dotted: all called fake."""
    ax = ax or new_axes()
    for name, colour, is_fake, logits in _against_photos(scores, ax):
        precision, recall, _ = skm.precision_recall_curve(is_fake, logits)
        label = f"{name}, AP {skm.average_precision_score(is_fake, logits):.3f}"
        ax.step(recall, precision, where="post", color=colour, label=label)
        ax.axhline(is_fake.mean(), color=colour, ls=":")
    ax.set(xlabel="fakes found (recall)", ylabel="fakes of those called fake (precision)", xlim=(0, 1), ylim=(0, 1.02))
    return ax


def _against_photos(scores: pd.DataFrame, ax: Any) -> Iterator[tuple[str, Any, pd.Series, pd.Series]]:
    """Each generator's name and colour, and of it and all photos: whether fake, and the logit; then their legend."""
    names = sorted(set(scores["label"]) - {REAL})
    if not names or not scores["label"].eq(REAL).any():
        raise ValueError(f"a curve needs photos and fakes, got {', '.join(names) or REAL}; give all rows of a split")
    for name, colour in zip(names, colours(len(names)), strict=True):
        pair = scores[scores["label"].isin([name, REAL])]
        yield legible(name), colour, pair["label"] == name, pair["logit_fake"]
    lines = sum(1 + legible(name).count("\n") for name in names)  # many, or of long names: beside axes as high
    ax.figure.set_figheight(max(ax.figure.get_figheight(), 0.16 * lines))
    ax.legend(fontsize=9, **(BESIDE if lines > min(8, len(names)) else {}))


def plot_reliability(scores: pd.DataFrame, temperature: float, ax: Axes | None = None) -> Axes:
    """Accuracy of test rows against confidence before calibration and after; below, how many images have which."""
    ax = ax or new_axes()
    lowest = 1 / len(class_names(scores))  # the likeliest of n classes has at least 1 / n
    ax.plot([lowest, 1], [lowest, 1], color="0.5", ls=":", label="confidence = accuracy")
    below = ax.inset_axes((0, 0, 1, 0.2), sharex=ax)
    for title, divisor, marker, colour in (("before", 1.0, "s-", PALETTE[1]), ("after", temperature, "o-", PALETTE[0])):
        confidence, right = confidences(scores, divisor)
        accuracy, mean = calibration_curve(right, confidence, n_bins=BINS)
        (error,) = calibration_error(np.ones((1, len(right))), confidence, right)
        ax.plot(mean, accuracy, marker, ms=5, color=colour, label=f"{title} (T = {divisor:.2f}), ECE {error:.3f}")
        below.hist(confidence, np.linspace(0, 1, BINS + 1).tolist(), histtype="step", color=colour, lw=1.5)
    bottom = min(np.asarray(line.get_ydata(), dtype=float).min() for line in ax.lines)
    ax.set(xlim=(lowest - 0.04, 1.02), ylim=(bottom - 0.3 * (1 - bottom), 1.03))
    ax.set(yticks=[tick for tick in np.linspace(0, 1, 11) if tick >= bottom])
    ax.set(xlabel="confidence (mean in the bin)", ylabel="accuracy (share right in the bin)")
    below.set_ylim(0, 1.5 * below.get_ylim()[1])  # room for the word
    below.text(0.02, 0.9, "images", transform=below.transAxes, va="top", fontsize=9, color="0.4")
    below.set_axis_off()
    ax.legend(loc="best", fontsize=9, bbox_to_anchor=(0, 0.2, 1, 0.8))
    return ax


def plot_evidence(scores: pd.DataFrame) -> Figure:
    """Tippett plot of stage 1's likelihood ratios, and their empirical cross-entropy over the prior odds.

    After Meuwly et al. 2017, doi:10.1016/j.forsciint.2016.03.048, and Ramos et al. 2013, doi:10.1111/1556-4029.12233.
    """
    lr, is_fake = scores["log10_lr"].to_numpy(float), scores["label"].ne(REAL).to_numpy()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    for name, own, colour in (("photos", lr[~is_fake], PALETTE[0]), ("fakes", lr[is_fake], PALETTE[3])):
        left.step(np.sort(own), 1 - np.arange(len(own)) / len(own), where="pre", color=colour, label=name)
    left.axvline(0, color="0.5", ls=":")
    side = 1.05 * max(0.5, np.abs(lr).max())
    left.set(xlabel="log10 likelihood ratio", ylabel="share with a larger one", ylim=(0, 1.02), xlim=(-side, side))
    odds, (cost, least) = np.linspace(-3, 3, 121), likelihood.costs(lr, is_fake)
    shown = {"as given": lr, "best calibration": likelihood.isotonic(lr, is_fake)(lr)}
    shown["without evidence"] = np.zeros(len(lr))
    for (name, values), style, colour in zip(shown.items(), ("-", "--", ":"), (*PALETTE[:2], "0.5"), strict=True):
        right.plot(odds, likelihood.cross_entropy(values, is_fake, odds), style, color=colour, label=name)
    right.set(xlabel="log10 prior odds of a fake", ylabel="empirical cross-entropy, bits", ylim=(0, None))
    right.set_title(f"Cllr {cost:.3f}, of which calibration {max(cost - least, 0):.3f}", fontsize=10)
    for ax in (left, right):
        ax.legend(fontsize=9)
    return figure


def plot_ablation(table: pd.DataFrame, metric: str = "auc") -> Axes:
    """One metric, auc or accuracy, of each variant under each degradation, with 95 % intervals, from `ablation.run`."""
    variants, groups = pd.Index(table["variant"].unique()), table.groupby("degradation", sort=False)
    ax = new_axes(9, 1.4 + len(variants) * max(0.5, 0.17 * len(groups)))
    for i, (condition, rows) in enumerate(groups):
        y = variants.get_indexer(pd.Index(rows["variant"])) + 0.7 * ((i + 0.5) / len(groups) - 0.5)
        draw_intervals(ax, y, rows, metric, color=PALETTE[i % len(PALETTE)], marker="o", label=condition)
    ax.hlines(np.arange(len(variants) - 1) + 0.5, 0, 1, transform=ax.get_yaxis_transform(), color="0.9", lw=0.8)
    name_rows(ax, variants, 10)
    ax.set_xlabel("AUC" if metric == "auc" else metric)
    ax.legend(title="images", **BESIDE)
    return ax


def plot_examples(images: dict[str, list[np.ndarray]], titles: dict[str, list[str]] | None = None) -> Figure:
    """A grid of pictures (H, W, 3) in [0, 1], one row per name, with a title for each where they are given."""
    columns = max(len(row) for row in images.values())
    figure, axes = new_grid(len(images), columns, (1.55 + 0.6 / columns, 1.75 if titles else 1.5))
    for row, (name, pictures) in zip(axes, images.items(), strict=True):
        for ax in row[len(pictures) :]:
            ax.set_axis_off()
        for ax, picture, title in zip(row, pictures, titles[name] if titles else [""] * columns, strict=False):
            show(ax, picture, vmin=0, vmax=1)
            ax.set_title("\n".join(fill(line, 26) for line in title.split("\n")), fontsize=7)
        row[0].set_ylabel(legible(name), fontsize=9)
    return figure


def plot_spectra(spectra: dict[str, np.ndarray]) -> Figure:
    """Averaged residual spectra side by side, on one common colour scale."""
    limits = colour_limits(list(spectra.values()))
    figure, axes = new_grid(1, len(spectra), (2.7 + 0.8 / len(spectra), 3.1))
    for ax, (name, spectrum) in zip(axes[0], spectra.items(), strict=True):
        image = show_spectrum(ax, spectrum, limits)
        ax.set(title=legible(name), xlabel="cycles per pixel")
    axes[0, 0].set_ylabel("cycles per pixel")
    figure.colorbar(image, ax=axes[0].tolist(), label="log10 power", shrink=0.8)
    return figure


def colour_limits(spectra: Sequence[np.ndarray]) -> tuple[float, float]:
    """One colour scale for several spectra, without their extremes."""
    return min(np.percentile(x, 2) for x in spectra), max(np.percentile(x, 99.8) for x in spectra)


def show(ax: Axes, picture: np.ndarray, **options: Any) -> AxesImage:
    """A picture without ticks and frame."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax.imshow(picture, **{"interpolation": "nearest", **options})


def show_spectrum(ax: Axes, spectrum: np.ndarray, limits: tuple[float, float]) -> AxesImage:
    """A spectrum (S, S), its axes in cycles per pixel."""
    ax.set(xticks=[-0.5, 0, 0.5], yticks=[-0.5, 0, 0.5], xlabel="cycles per pixel")
    return ax.imshow(spectrum, vmin=limits[0], vmax=limits[1], cmap="viridis", extent=(-0.5, 0.5, 0.5, -0.5))


def plot_split(table: pd.DataFrame) -> Axes:
    """Images per class and split, of a manifest."""
    counts: Any = pd.crosstab(table["label"], table["split"]).filter(["train", "val", "test"]).rename(legible)
    row = 0.4 + 0.15 * (1 + max(name.count("\n") for name in counts.index))  # inches
    ax = counts.plot.barh(stacked=True, figsize=(7.5, row * len(counts) + 1.2), color=PALETTE[:3], width=0.7)
    ax.set(xlabel="images", ylabel="")
    ax.locator_params(axis="x", integer=True)
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


def legible(name: str) -> str:
    """A name as figures show it, no two alike: lines of 18 letters; legends leave out what begins with _, no name."""
    return "\u200b" * name.startswith("_") + fill(name, 18, drop_whitespace=False, replace_whitespace=False)


def name_rows(ax: Axes, names: Names, size: float = 9) -> None:
    """One row per name, from the top."""
    ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6), axisbelow=True)
    ax.tick_params(axis="y", length=0, labelsize=size)
    ax.grid(axis="x", color="0.93")
