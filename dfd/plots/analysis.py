"""Figures of robustness, fingerprints and errors; and pictures in grids."""

import math
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfd.analysis import slices
from dfd.analysis.explain import Dossier, stretch
from dfd.analysis.fingerprint import Fingerprint
from dfd.config import REAL
from dfd.degrade import registry
from dfd.evaluate import robustness
from dfd.inference.decide import closed_set, true_class
from dfd.plots import results
from dfd.plots.results import MARKERS, PALETTE, draw_intervals, legible, name_rows, new_axes, new_grid, show


def captions(rows: pd.DataFrame) -> list[str]:
    """Truth and verdict of each row of a score table, and the confidence that `certainty` gave it."""
    likeliest = closed_set(rows)
    called = likeliest.where(likeliest == rows["prediction"], likeliest + " but unknown")
    right = np.where(likeliest == true_class(rows), "rightly", "wrongly")
    words = zip(rows["label"], right, called, rows["confidence"], strict=True)
    return [f"{label}, {how} called {name}, p {p:.2f}" for label, how, name, p in words]


def plot_dossiers(dossiers: Sequence[Dossier], texts: Sequence[str]) -> Figure:
    """Images, two a row, each beside its residual, spectrum and Grad-CAM, under its caption."""
    down, across = math.ceil(len(dossiers) / 2), min(2, len(dossiers))
    figure = plt.figure(figsize=(6.6 * across, 2.15 * down), layout="constrained")
    low, high = results.colour_limits([dossier.spectrum for dossier in dossiers])
    panels = figure.subfigures(down, across, squeeze=False).flat
    for number, (panel, dossier, text) in enumerate(zip(panels, dossiers, texts, strict=False), 1):
        panel.suptitle(textwrap.fill(f"{number}: {text}", 70), fontsize=11)
        axes = panel.subplots(1, 4)
        show(axes[0], dossier.image)
        left, top, width, height = dossier.box
        for colour, line in (("white", 2.2), ("black", 0.9)):
            axes[0].add_patch(plt.Rectangle((left - 0.5, top - 0.5), width, height, fill=False, ec=colour, lw=line))
        show(axes[1], dossier.residual)
        show(axes[2], dossier.spectrum, vmin=low, vmax=high, cmap="viridis")
        show(axes[3], dossier.crop.mean(2), cmap="gray", vmin=0, vmax=1)
        show(axes[3], dossier.cam, cmap="viridis", vmin=0, vmax=1, alpha=0.55)
        for ax, name in zip(axes, ("image and crop", "residual", "spectrum", "Grad-CAM"), strict=True):
            ax.set_xlabel(name, fontsize=9, labelpad=2)
    return figure


def plot_errors(errors: dict[str, pd.DataFrame], columns: int = 3) -> Figure:
    """A panel of errors in the bins of each property, stage -> `slices.by_property`; dotted: over all images."""
    names = list(dict.fromkeys(name for table in errors.values() for name in table["property"]))
    most = max((table.groupby("property")["bin"].nunique().max() for table in errors.values() if len(table)), default=0)
    figure, axes = new_grid(math.ceil(len(names) / columns) or 1, columns, (4.3, min(max(2.7, 0.9 + 0.17 * most), 12)))
    figure.set_layout_engine("constrained", h_pad=0.1)
    for ax, name in zip(axes.flat, names, strict=False):
        parts = {stage: table[table["property"] == name] for stage, table in errors.items()}
        bins = list(dict.fromkeys(word for rows in parts.values() for word in rows["bin"]))
        for k, (stage, rows) in enumerate(parts.items()):
            y, colour = rows["bin"].map(bins.index) + 0.16 * (2 * k - len(parts) + 1), PALETTE[k]
            draw_intervals(ax, y, rows, "error", color=colour, marker=MARKERS[k], ms=5, label=stage)
            ax.axvline(errors[stage].attrs["average"], color=colour, ls=":", lw=1.2, label=f"{stage}, all images")
        cuts = ([b if len(b) < 26 else f"{b[:n]}…{b[len(b) - 24 + n :]}" for b in bins] for n in (12, 24, 0, 6, 18))
        name_rows(ax, next((short for short in cuts if len({*short}) == len(bins)), bins), 8)
        ax.set(xlim=(-0.03, 1.03), xlabel="images wrong")
        ax.xaxis.set_major_formatter("{x:.0%}")
        ax.set_title(f"{name}: {slices.NUMBERS[name]}" if name in slices.NUMBERS else name, fontsize=9)
    for ax in axes.flat[len(names) :]:
        ax.remove()
    if names:
        figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=2 * len(errors))
    return figure


def plot_fingerprints(prints: dict[str, Fingerprint]) -> Figure:
    """Mean residuals, stretched about grey as far as their titles say, over the mean spectra of each generator."""
    limits = results.colour_limits([fingerprint.spectrum for fingerprint in prints.values()])
    figure, axes = new_grid(2, len(prints), (2.7 + 0.9 / len(prints), 2.9), layout="compressed")
    for (above, below), (name, fingerprint) in zip(axes.T, prints.items(), strict=True):
        above.imshow(stretch(fingerprint.mean), interpolation="nearest")
        about = f"{fingerprint.images} images, ±{3 * 255 * fingerprint.mean.std():.2f} of 255"  # as `stretch` does
        above.set_title(f"{legible(name)}\n{about}", fontsize=10)
        shown = results.show_spectrum(below, fingerprint.spectrum, limits)
    axes[0, 0].set_ylabel("mean residual, pixels")
    axes[1, 0].set_ylabel("mean spectrum, cycles per pixel")
    figure.colorbar(shown, ax=axes[1].tolist(), label="log10 power", shrink=0.85)
    return figure


def plot_embedding(points: pd.DataFrame) -> Axes:
    """The embedding of `fingerprint.embed`: colour by generator, shape by source, the rarest of many sources as one."""
    points = points.assign(generator=points["label"].map(legible), source=points["source"].map(legible))
    ax, labels = new_axes(8.6, 5.2), sorted(points["label"].unique(), key=lambda name: (name == REAL, name))
    common, palette = points["source"].value_counts().index[:10], results.colours(len(labels))
    points["source"] = points["source"].where(points["source"].isin(common), "other")
    sns.scatterplot(points, x="x", y="y", hue="generator", hue_order=[*map(legible, labels)], palette=palette, s=34,
           style="source", style_order=[*common, *({*points["source"]} - {*common})], alpha=0.75, ax=ax)  # fmt: skip
    sns.move_legend(ax, "center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    ax.set(xlabel="t-SNE 1, no unit", ylabel="t-SNE 2, no unit", xticks=[], yticks=[])
    ax.set_title(f"classifier features of {len(points)} images")
    return ax


def plot_conditions(table: pd.DataFrame, names: Mapping[str, str], xlabel: str, ax: Axes | None = None) -> Axes:
    """Costs under each condition as dots from 0 on, with 95 % intervals where groups suffice, a line per condition.

    `names` gives columns their words in the legend. One alone has none, but a dashed line at its value as it is.
    """
    ax = ax or new_axes(max(8, 4 + 0.07 * table.index.str.len().max()), 1.1 + 0.23 * len(table))
    for i, (metric, words) in enumerate(names.items()):
        y = np.arange(len(table)) + 0.5 * ((i + 0.5) / len(names) - 0.5)
        draw_intervals(ax, y, table, metric, color=PALETTE[i], marker=MARKERS[i], ms=5, label=words)
    if len(names) == 1 and registry.AS_IT_IS in table.index:
        ax.axvline(table[next(iter(names))].loc[registry.AS_IT_IS], color="0.4", ls="--", lw=1)
    name_rows(ax, table.index)
    ax.set(xlabel=xlabel, xlim=(-0.02 * ax.get_xlim()[1], None))
    if len(names) > 1:
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(names), frameon=False)
    return ax


def plot_levels(measured: pd.DataFrame) -> Figure:
    """Balanced accuracy of `robustness.measure` along the levels of each operator that has several, with 95 % bands."""
    rows = measured[measured["metric"].isin(robustness.ACCURACY.values())].sort_values("level")
    several = rows.groupby("degradation")["level"].transform("nunique") > 1
    rows = rows[several | (rows["degradation"] == "none")].replace({"degradation": {"none": registry.AS_IT_IS}})
    options = {"col_wrap": 4, "height": 2.6, "aspect": 1.15, "sharex": False, "ylim": (0, 1.03)}
    grid = sns.FacetGrid(rows, col="degradation", hue="stage", palette=PALETTE, **options)
    grid.map(plt.fill_between, "level", "low", "high", alpha=0.18, lw=0)
    grid.map(plt.plot, "level", "value", marker="o", ms=4)
    grid.map(lambda levels, **_: levels.nunique() > 1 or plt.xticks([]), "level")  # as it is, which has none
    return grid.set_titles("{col_name}").set_axis_labels("level", "balanced accuracy").add_legend().figure


def plot_probe(probe: pd.DataFrame) -> Axes:
    """Stage 1's AUC where a condition meets photos only, fakes only, or both, from `audit.probe`; bold where named."""
    ax, y = new_axes(max(8, 4 + 0.07 * probe.index.str.len().max()), 1.4 + 0.23 * len(probe)), range(len(probe))
    for marker, colour, column in zip(MARKERS, PALETTE, ("photos_only", "fakes_only", "both"), strict=False):
        ax.plot(probe[column], y, marker, color=colour, ms=6, alpha=0.9, label=column.replace("_", " "))
    ax.axvline(probe["clean"].iloc[0], color="0.4", ls="--", lw=1, label="images as they are")
    ax.axvline(0.5, color="0.6", ls=":", lw=1, label="guessing")
    name_rows(ax, probe.index)
    for label, named in zip(ax.get_yticklabels(), probe["named"], strict=True):
        label.set_fontweight("bold" if named else "normal")
    ax.set(xlabel="AUC of stage 1 (0.5: guessing)", xlim=(None, 1.02))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=5, frameon=False, fontsize=9)
    return ax


def plot_sources(table: pd.DataFrame) -> Figure:
    """Where stage 1 can be trusted: AUC and share called fake of a class's 40 worst sources, by `metrics.by_source`."""
    worse = table["called_fake"].where(table["label"] == REAL, -table.get("auc", table["called_fake"]))
    names = sorted(table["label"].unique(), key=lambda name: (name == REAL, name))
    table = table.assign(worse=-worse, place=table["label"].map(names.index)).sort_values(["place", "worse"])
    table = table.groupby("place").head(40).reset_index(drop=True)
    figure, (axes,) = new_grid(1, 2, (5.2, 1.2 + 0.26 * len(table)), sharey=True)
    for ax, metric, text in zip(axes, ("auc", "called_fake"), ("AUC against all photos", "called fake"), strict=True):
        for colour, label in zip(results.colours(len(names)), names, strict=True):
            if metric in (rows := table[table["label"] == label]):
                draw_intervals(ax, rows.index, rows, metric, color=colour, marker="o", label=legible(str(label)))
        name_rows(ax, table["source"] + " (" + table["images"].astype(str) + ")")
        ax.set(xlabel=text, xlim=(-0.02, 1.02))
        ax.axvline(0.5, color="0.6", ls=":", lw=1)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure
