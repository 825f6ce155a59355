"""Figures of the error analysis: takes what slices, suspects and explain give, returns Axes or a Figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dfd import properties
from dfd.calibration import logit_columns, true_class
from dfd.plots import PALETTE

PARTS = {"image": "image and crop", "residual": "residual", "spectrum": "spectrum", "cam": "Grad-CAM"}


def plot_confusions(tables: dict[str, pd.DataFrame]) -> Figure:
    """What images of each class were called: counts in the first row of matrices, shares of each class in the second.

    Args:
        tables: title -> rows of a stage's score table. Stage 1's rows are told apart by their label too.
    """
    figure, axes = plt.subplots(2, len(tables), figsize=(5.4 * len(tables), 7), squeeze=False, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.1)
    for column, (title, rows) in zip(axes.T, tables.items(), strict=True):
        called = [name.removeprefix("logit_") for name in logit_columns(rows)]
        labels = sorted(rows["label"].unique(), key=lambda name: (name != "RealPhotos", name))
        counts = pd.crosstab(rows["label"], rows["prediction"]).reindex(labels).reindex(columns=called, fill_value=0)
        shares = counts.div(counts.sum(axis=1), axis=0)
        for ax, values, form, what in zip(column, (counts, shares), ("d", ".0%"), ("images", "share"), strict=True):
            sns.heatmap(
                shares, annot=values, fmt=form, vmin=0, vmax=1, cmap="Blues", linewidths=0.5, ax=ax,
                cbar=False, annot_kws={"fontsize": 11},
            )  # fmt: skip
            ax.set(xlabel="predicted", ylabel="true", title=f"{title}, {what}")
            ax.tick_params(axis="y", rotation=0)
            ax.tick_params(axis="x", rotation=0)
    return figure


def captions(rows: pd.DataFrame) -> list[str]:
    """Truth and verdict of each row: label, what it was called, and how probable that was held.

    Args:
        rows: of a score table, with the confidence that `evaluation.certainty` gave.
    """
    right = rows["prediction"] == true_class(rows)
    words = zip(rows["label"], rows["prediction"], right, rows["confidence"], strict=True)
    return [f"{label}, {'rightly' if ok else 'wrongly'} called {said}, p {p:.2f}" for label, said, ok, p in words]


def plot_dossiers(found: Sequence[dict[str, Any]], texts: Sequence[str]) -> Figure:
    """Images, two a row, each beside its residual, spectrum and Grad-CAM, under its caption.

    Args:
        found: what `explain.dossiers` gave.
        texts: a caption for each.
    """
    across = min(2, len(found))
    down = -(-len(found) // across)
    figure = plt.figure(figsize=(6.6 * across, 2.15 * down), layout="constrained")
    low = min(np.percentile(one["spectrum"], 2) for one in found)
    high = max(np.percentile(one["spectrum"], 99.8) for one in found)
    panels = np.ravel(figure.subfigures(down, across, squeeze=False))
    for i, (panel, one, text) in enumerate(zip(panels, found, texts, strict=False)):
        axes = panel.subplots(1, 4)
        panel.suptitle(f"{i + 1}: {text}", fontsize=11)
        axes[0].imshow(one["image"])
        left, top, width, height = one["box"]
        axes[0].add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, ec="white", lw=2.2))
        axes[0].add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, ec="black", lw=0.9))
        axes[1].imshow(one["residual"], interpolation="nearest")
        axes[2].imshow(one["spectrum"], vmin=low, vmax=high, cmap="viridis")
        axes[3].imshow(one["crop"].mean(2), cmap="gray", vmin=0, vmax=1)
        axes[3].imshow(one["cam"], cmap="viridis", vmin=0, vmax=1, alpha=0.55)
        for ax, name in zip(axes, PARTS.values(), strict=True):
            ax.set(xticks=[], yticks=[])
            ax.set_xlabel(name, fontsize=9, labelpad=2)
            ax.spines[:].set_visible(False)
    return figure


def plot_errors(found: dict[str, pd.DataFrame], columns: int = 3) -> Figure:
    """The error in the bins of each property, one panel a property, with 95 % intervals over groups.

    Args:
        found: stage -> what `slices.by_property` gave.
        columns: panels a row.
    """
    names = list(dict.fromkeys(name for each in found.values() for name in each["property"]))
    down = -(-len(names) // columns)
    figure, axes = plt.subplots(down, columns, figsize=(4.3 * columns, 2.7 * down), squeeze=False, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1)
    for ax, name in zip(axes.flat, names, strict=False):
        words = list(
            dict.fromkeys(word for each in found.values() for word in each.loc[each["property"] == name, "bin"])
        )
        for k, (stage, each) in enumerate(found.items()):
            rows = each[each["property"] == name]
            y = np.array([words.index(word) for word in rows["bin"]]) + 0.16 * (2 * k - len(found) + 1)
            ax.hlines(y, 100 * rows["low"], 100 * rows["high"], color=PALETTE[k], lw=2, alpha=0.6)
            ax.plot(100 * rows["error"], y, "os^"[k % 3], ms=5, color=PALETTE[k], label=stage)
        _average(ax, found)
        ax.set(yticks=range(len(words)), ylim=(len(words) - 0.5, -0.5), xlim=(-3, 103), xlabel="images wrong (%)")
        ax.set_yticklabels([word if len(word) < 26 else word[:24] + "…" for word in words], fontsize=8)
        ax.set_title(f"{name}: {properties.NUMBERS[name]}" if name in properties.NUMBERS else name, fontsize=9)
    for ax in axes.flat[len(names) :]:
        ax.remove()
    if names:
        figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=2 * len(found))
    return figure


def _average(ax: Axes, found: dict[str, pd.DataFrame]) -> None:
    for k, (stage, each) in enumerate(found.items()):
        rows = each[each["property"] == each["property"].iloc[0]]
        mean = 100 * rows["errors"].sum() / rows["images"].sum()
        ax.axvline(mean, color=PALETTE[k], ls=":", lw=1.2, label=f"{stage}, all images")


def plot_slices(found: pd.DataFrame, title: str = "", limit: int = 12) -> Axes:
    """Reported slices beside the average, those that lie within another one left out.

    Args:
        found: what `slices.find` gave, at least one row.
        title: above the slices.
        limit: slices drawn at most.
    """
    rows = found[found["within"] == ""].head(limit)
    ax = plt.subplots(figsize=(9, 0.42 * len(rows) + 1.6), layout="constrained")[1]
    y = np.arange(len(rows))
    ax.hlines(y, 100 * rows["average"], 100 * rows["error"], color=PALETTE[1], lw=2, alpha=0.6)
    ax.plot(100 * rows["error"], y, "o", color=PALETTE[1], label="in the slice")
    ax.axvline(100 * found["average"].iloc[0], color="0.4", ls="--", label="all images")
    for place, one in zip(y, rows.itertuples(), strict=True):
        text = f"{one.errors} of {one.images} wrong, {one.groups} groups"
        ax.annotate(text, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    ax.set(yticks=y, yticklabels=rows["slice"], ylim=(len(rows) - 0.5, -0.5), xlim=(-2, 102))
    ax.set(xlabel="images wrong (%)", title=title)
    ax.grid(axis="x", color="0.93")
    ax.set_axisbelow(True)
    ax.figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return ax


def plot_neighbours(pictures: dict[str, list[np.ndarray]], found: pd.DataFrame) -> Figure:
    """Mistaken images in the first column, their nearest training images beside them.

    A frame is drawn around neighbours of another label (orange, dashed) and of the same (blue).

    Args:
        pictures: path -> the image and its neighbours in order, (H, W, 3) in [0, 1].
        found: what `suspects.neighbours` gave.
    """
    columns = max(len(row) for row in pictures.values())
    figure, axes = plt.subplots(
        len(pictures), columns, figsize=(1.75 * columns, 2.15 * len(pictures)), squeeze=False, layout="constrained"
    )
    for row, (path, images) in zip(axes, pictures.items(), strict=True):
        near = found[found["path"] == path]
        texts = [f"mistaken:\n{near['label'].iloc[0]}"]
        for one in near.itertuples():
            bits = "" if np.isnan(one.bits) else f", {one.bits:.0f} bits"
            texts.append(f"{one.neighbour_label}\n{one.similarity:.2f}{bits}{', TWIN' if one.twin else ''}")
        same = [None, *(near["label"] == near["neighbour_label"])]
        for i, ax in enumerate(row):
            ax.set(xticks=[], yticks=[])
            if i >= len(images):
                ax.set_axis_off()
                continue
            ax.imshow(images[i])
            ax.set_title(texts[i], fontsize=8)
            colour, style = {None: ("0.3", "-"), True: (PALETTE[0], "-"), False: (PALETTE[1], "--")}[same[i]]
            ax.spines[:].set(visible=True, color=colour, linestyle=style, linewidth=3 if i else 1)
    return figure
