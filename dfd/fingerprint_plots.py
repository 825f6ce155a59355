"""Figures of the fingerprint's evidence: takes what dfd.fingerprint gives, returns a Figure."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfd.fingerprint import Fingerprint
from dfd.plots import PALETTE, plot_examples
from dfd.transfer import Carried

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
