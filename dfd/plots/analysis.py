"""Figures of the error analysis: takes what slices, suspects and explain give, returns Axes or a Figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from dfd.analysis import slices
from dfd.analysis.fingerprint import Carried, Fingerprint
from dfd.degrade import registry
from dfd.evaluate import robustness
from dfd.inference.decide import logit_columns, true_class
from dfd.plots.results import PALETTE, plot_examples

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
        ax.set_title(f"{name}: {slices.NUMBERS[name]}" if name in slices.NUMBERS else name, fontsize=9)
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


SHAPES = ("o", "X", "s", "^", "D", "P", "v", "*", "<", ">")  # marker of each source; the last is for the others
OTHER = "other"


def plot_fingerprints(prints: dict[str, Fingerprint]) -> Figure:
    """Mean residuals over the mean power spectra, one column per generator.

    A mean is stretched about grey to three of its own deviations, which its title gives in levels of 255; the spectra
    share one scale.

    Args:
        prints: what `fingerprint.fingerprints` gave.
    """
    low = min(np.percentile(one.spectrum, 2) for one in prints.values())
    high = max(np.percentile(one.spectrum, 99.8) for one in prints.values())
    size = (2.7 * len(prints) + 0.9, 5.8)
    figure, axes = plt.subplots(2, len(prints), figsize=size, squeeze=False, layout="compressed")
    for (above, below), (name, one) in zip(axes.T, prints.items(), strict=True):
        _mean_residual(above, name, one)
        shown = below.imshow(one.spectrum, vmin=low, vmax=high, cmap="viridis", extent=(-0.5, 0.5, 0.5, -0.5))
        below.set(xlabel="cycles per pixel", xticks=[-0.5, 0, 0.5], yticks=[-0.5, 0, 0.5])
    axes[0, 0].set_ylabel("mean residual, pixels")
    axes[1, 0].set_ylabel("mean spectrum, cycles per pixel")
    figure.colorbar(shown, ax=axes[1].tolist(), label="log10 power", shrink=0.85)
    return figure


def plot_correlations(means: pd.DataFrame, accuracy: dict[str, float | None] | None = None) -> Figure:
    """Mean correlation of test residuals with each generator's mean residual, as a heatmap.

    Args:
        means: what `fingerprint.mean_correlations` gave.
        accuracy: what `fingerprint.correlation_accuracy` gave; told in the title.
    """
    rows, columns = means.shape
    figure, ax = plt.subplots(figsize=(1.25 * columns + 2.6, 0.75 * rows + 1.8), layout="constrained")
    limit = float(np.abs(means.to_numpy()).max())
    sns.heatmap(
        means, annot=True, fmt=".3f", cmap="vlag", vmin=-limit, vmax=limit, linewidths=0.5, ax=ax,
        cbar_kws={"label": "mean correlation"},
    )  # fmt: skip
    ax.set(xlabel="mean residual of (training images)", ylabel="test images of", title=_accuracy_text(accuracy))
    ax.tick_params(axis="y", rotation=0)
    return figure


def plot_embedding(points: pd.DataFrame) -> Figure:
    """The embedding: colour by generator, shape by source, legend outside.

    Args:
        points: what `fingerprint.embed` gave; of more sources than there are shapes the rarest become one, "other".
    """
    figure, ax = plt.subplots(figsize=(8.6, 5.2), layout="constrained")
    source = _few(points["source"])
    names = [name for name in source.value_counts().index if name != OTHER]
    markers = dict(zip(names, SHAPES, strict=False)) | {OTHER: SHAPES[-1]}
    labels = sorted(points["label"].unique())
    sns.scatterplot(
        points.assign(generator=points["label"], source=source), x="x", y="y", hue="generator", hue_order=labels,
        style="source", style_order=names + [OTHER] * (OTHER in set(source)), markers=markers,
        palette=sns.color_palette(PALETTE, len(labels)), s=34, alpha=0.75, ax=ax,
    )  # fmt: skip
    sns.move_legend(ax, "center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    ax.set(xlabel="t-SNE 1, no unit", ylabel="t-SNE 2, no unit", xticks=[], yticks=[])
    ax.set_title(f"classifier features of {len(points)} images")
    return figure


def plot_transfer(pairs: pd.DataFrame, carried: Carried, times: float = 10) -> Figure:
    """Pairs side by side: the carrier, the fingerprint times a factor about grey, and their sum.

    Args:
        pairs: some rows of what `transfer.carry` gave.
        carried: what `transfer.put_on` gave for these rows.
        times: the factor; the sum has the fingerprint once.
    """
    grown = (0.5 + times * carried.residuals).clamp(0, 1)
    pictures = {"carrier": carried.carriers, f"fingerprint × {times:g}": grown, "sum": carried.sums}
    captions = [
        [f"named {name}" for name in pairs["alone"]],
        [f"of {name}" for name in pairs["label"]],
        [
            f"named {one.named}\n{one.psnr:.1f} dB, SSIM {one.ssim:.3f}"
            for one in pairs.itertuples()
        ],
    ]  # fmt: skip
    shown = {name: list(images.permute(0, 2, 3, 1).numpy()) for name, images in pictures.items()}
    figure = plot_examples(shown, dict(zip(shown, captions, strict=True)))
    figure.suptitle("Fingerprints put on photos; PSNR and SSIM between carrier and sum", fontsize=10)
    return figure


def _mean_residual(ax: Axes, name: str, one: Fingerprint) -> None:
    deviation = max(float(one.mean.std()), 1e-9)
    ax.imshow(np.clip(0.5 + one.mean / (6 * deviation), 0, 1), interpolation="nearest")
    ax.set_title(f"{name}\n{one.images} images, ±{3 * 255 * deviation:.2f} of 255", fontsize=10)


def _accuracy_text(accuracy: dict[str, float | None] | None) -> str:
    if accuracy is None or accuracy["value"] is None:
        return ""
    spread = "" if accuracy["low"] is None else f" ({accuracy['low']:.2f} to {accuracy['high']:.2f})"
    return f"named by the largest: {accuracy['value']:.2f} right{spread}"


def _few(source: pd.Series) -> pd.Series:
    """The sources that get a shape of their own, the rest as OTHER."""
    counts = source.value_counts()
    kept = counts.index if len(counts) <= len(SHAPES) else counts.index[: len(SHAPES) - 1]
    return source.where(source.isin(kept), OTHER)


MARKERS = "os^Dv"
STAGES = {"stage1": ("stage 1: real or fake", PALETTE[0]), "stage2": ("stage 2: which generator", PALETTE[1])}


def plot_conditions(table: pd.DataFrame, metrics: Mapping[str, str], xlabel: str, ax: Axes | None = None) -> Axes:
    """Metrics under each condition as dots with their 95 % intervals, a line per condition.

    Args:
        table: from `robustness.wide`; indexed by condition, drawn from the top.
        metrics: column -> its words in the legend; one alone has no legend, and its value on the images as they are is
            a dashed line. Several differences have a line at 0.
        xlabel: what the numbers are, with their unit.
        ax: where to draw; none makes a figure.
    """
    ax = ax or plt.subplots(figsize=(8, 1.1 + 0.23 * len(table)), layout="constrained")[1]
    for i, (metric, words) in enumerate(metrics.items()):
        y = np.arange(len(table)) + 0.5 * ((i + 0.5) / len(metrics) - 0.5)
        values, colour = table[metric].astype(float), PALETTE[i]
        ax.hlines(y, table[f"{metric}_low"], table[f"{metric}_high"], color=colour, lw=2, alpha=0.5)
        ax.plot(values, y, MARKERS[i], color=colour, ms=5, label=words)
    if len(metrics) == 1 and registry.AS_IT_IS in table.index:
        ax.axvline(table.at[registry.AS_IT_IS, next(iter(metrics))], color="0.4", ls="--", lw=1)
    elif (table[list(metrics)].astype(float) < 0).any(axis=None):
        ax.axvline(0, color="0.4", lw=1)
    _rows(ax, table.index)
    ax.set_xlabel(xlabel)
    if len(metrics) > 1:
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(metrics), frameon=False)
    return ax


def plot_series(found: pd.DataFrame, accuracy: float, columns: int = 4) -> Figure:
    """The balanced accuracy of both stages along each operator, from mild on the left to severe on the right.

    Args:
        found: from `robustness.measure`.
        accuracy: the bar, a dotted line. The images as they are: dashed lines.
        columns: panels in a row. Without an operator of two levels the figure says so.
    """
    lines = {stage: robustness.series(found, stage, metric) for stage, metric in robustness.ACCURACY.items()}
    names = list(dict.fromkeys(name for one in lines.values() for name in one))
    if not names:
        figure = plt.figure(figsize=(6, 1))
        figure.text(0.5, 0.5, "No operator has two levels in this grid: there is no curve to draw.", ha="center")
        return figure
    rows = math.ceil(len(names) / columns)
    columns = min(columns, len(names))
    size = (3.3 * columns, 2.7 * rows + 0.4)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for ax, name in zip(axes.flat, names, strict=False):
        for number, (stage, (words, colour)) in enumerate(STAGES.items()):
            part = lines[stage].get(name)
            if part is None:
                continue
            x, marker = part["level"].astype(float), MARKERS[number]
            ax.fill_between(x, part["low"], part["high"], color=colour, alpha=0.18, lw=0)
            ax.plot(x, part["value"], f"{marker}-", color=colour, ms=4, label=words)
            clean = robustness.wide(found, stage, [robustness.ACCURACY[stage]]).iloc[0, 0]
            ax.axhline(clean, color=colour, ls="--", lw=1, label=f"{words.split(':')[0]}, images as they are")
        ax.axhline(accuracy, color="0.4", ls=":", label=f"{accuracy:g}")
        _levels(ax, part := next(one[name] for one in lines.values() if name in one))
        ax.set_title(name, fontsize=10)
        ax.set_xlabel(registry.DEGRADATIONS[registry.last_operator(part["degradation"].iloc[0])].axis, fontsize=9)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel("balanced accuracy")
    axes[0, 0].set_ylim(0, 1.03)
    handles, words = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, words, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def _levels(ax: Axes, part: pd.DataFrame) -> None:
    """Ticks at the levels that were tried, mild on the left."""
    levels = part["level"].to_numpy(float)
    ax.xaxis.set_major_locator(FixedLocator(sorted(levels)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.tick_params(axis="x", labelsize=8, rotation=45 if len(levels) > 5 else 0)
    if levels[0] > levels[-1]:
        ax.invert_xaxis()


def plot_recalls(table: pd.DataFrame, title: str = "") -> Axes:
    """A heat map: which label's images are judged right under which condition.

    Args:
        table: from `robustness.recalls`; shares in [0, 1].
        title: above it.
    """
    shown = table.T
    ax = plt.subplots(figsize=(3.6 + 1.1 * shown.shape[1], 1.3 + 0.24 * len(shown)), layout="constrained")[1]
    sns.heatmap(
        shown, annot=True, fmt=".2f", vmin=0, vmax=1, cmap="cividis", linewidths=0.5, annot_kws={"size": 8}, ax=ax,
        cbar_kws={"label": "share of the images judged right", "shrink": 0.6},
    )  # fmt: skip
    ax.set(xlabel="", ylabel="", title=title)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.tick_params(axis="y", rotation=0)
    return ax


def plot_probe(found: pd.DataFrame) -> Axes:
    """Stage 1's AUC where a condition meets photos only, fakes only, or both; named conditions are in bold.

    Args:
        found: from `bias.probe`.
    """
    ax = plt.subplots(figsize=(8, 1.4 + 0.23 * len(found)), layout="constrained")[1]
    kinds = {"photos_only": "photos only", "fakes_only": "fakes only", "both": "both"}
    for i, (column, words) in enumerate(kinds.items()):
        ax.plot(found[column], range(len(found)), MARKERS[i], color=PALETTE[i], ms=6, alpha=0.9, label=words)
    if len(found):
        ax.axvline(found["clean"].iloc[0], color="0.4", ls="--", lw=1, label="images as they are")
    ax.axvline(0.5, color="0.6", ls=":", lw=1, label="guessing")
    _rows(ax, found.index)
    for label, named in zip(ax.get_yticklabels(), found["named"], strict=True):
        label.set_fontweight("bold" if named else "normal")
    ax.set(xlabel="AUC of stage 1 (0.5: guessing)", xlim=(None, 1.02))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=5, frameon=False, fontsize=9)
    return ax


def _rows(ax: Axes, names: pd.Index) -> None:
    ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6))
    ax.tick_params(axis="y", length=0, labelsize=9)
    ax.grid(color="0.93")
    ax.set_axisbelow(True)
