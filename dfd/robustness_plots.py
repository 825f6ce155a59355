"""The figures of the robustness notebook: one function each; they take data and give Axes, or a Figure of several."""

from __future__ import annotations

import math
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from dfd import grid, robustness
from dfd.plots import PALETTE

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
    if len(metrics) == 1 and grid.AS_IT_IS in table.index:
        ax.axvline(table.at[grid.AS_IT_IS, next(iter(metrics))], color="0.4", ls="--", lw=1)
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
        ax.set_xlabel(grid.RULES[grid.last_operator(part["degradation"].iloc[0])].axis, fontsize=9)
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
