"""Is stage 2's residual a fingerprint? Mean residuals, correlation and embedding; dfd/transfer.py carries it to photos.

Everything here is taken at the centre crop: a mean over images, and a correlation with it, only mean something where
pixels lie at the same place of the generator's grid. That holds for images of one size; where a generator's images
differ in size its mean fades, and its spectrum does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import cdist
from sklearn.manifold import TSNE
from torch import Tensor

from dfd import openset
from dfd.atomic import whole
from dfd.bootstrap import interval
from dfd.checkpoints import update_checkpoint
from dfd.crops import cut, plan
from dfd.datasets import equalise
from dfd.evaluation import balanced_accuracy
from dfd.images import load_rgb
from dfd.stage import BATCH, Stage

SPECTRA = "spectra.npz"  # in the run folder: spectrum of each generator
CORRELATION = "corr_"  # starts the name of a column that holds the correlation with one generator's mean residual


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """What the residuals of one generator's images have in common."""

    mean: np.ndarray  # (S, S, 3) mean residual, in units of the [0, 1] range
    spectrum: np.ndarray  # (S, S) log10 of the mean power, the zero frequency in the middle
    images: int


def choose(table: pd.DataFrame, limit: int, seed: int = 0) -> pd.DataFrame:
    """Draw at most `limit` rows of each label; they stay in the table's order."""
    return table.sample(frac=1, random_state=seed).groupby("label").head(limit).sort_index()


def crops_of(stage: Stage, table: pd.DataFrame, limit: int, seed: int = 0) -> tuple[Tensor, pd.DataFrame]:
    """Centre crops of at most `limit` images a label, as the stage takes them: padded where small, equalised.

    Args:
        stage: gives the side S and the quality.
        table: rows of the manifest, with its root in attrs.
        limit, seed: of the choice; a label with fewer images gives all that it has.

    Returns:
        (N, 3, S, S) in [0, 1], and the N rows of the table that they come from.

    Raises:
        ValueError: the table has no image.
    """
    rows = choose(table, limit, seed)
    if rows.empty:
        raise ValueError("the table has no image to take a fingerprint from")
    return equalise(centres(stage, table.attrs["root"], rows["path"]), stage.equalise_quality), rows


@torch.inference_mode()
def residuals(stage: Stage, crops: Tensor) -> Tensor:
    """G(x) of (N, 3, S, S) equalised crops: (N, 3, S, S) on the CPU, in units of the [0, 1] range."""
    return torch.cat([stage.model.generator(chunk.to(stage.device)).float().cpu() for chunk in crops.split(BATCH)])


@torch.inference_mode()
def features(stage: Stage, crops: Tensor) -> np.ndarray:
    """What the classifier knows before its last layer, in float32 and without mixed precision.

    Args:
        stage: a stage 2.
        crops: (N, 3, S, S) in [0, 1], equalised already.

    Returns:
        (N, D); the last layer of the classifier makes the logits from it.

    Raises:
        ValueError: the stage is a stage 1.
    """
    if stage.stage != "stage2":
        raise ValueError(f"features are those of stage 2's classifier, got {stage.stage}")
    found = [stage.model.describe(chunk.to(stage.device))[1].float().cpu() for chunk in crops.split(BATCH)]
    return torch.cat(found).numpy()


def remember(stage: Stage, table: pd.DataFrame, path: Path, limit: int = 300, seed: int = 0) -> None:
    """Keep features of training images in a stage 2 and its checkpoint, to tell later what is like none of them.

    Args:
        stage: a stage 2; gets `neighbours`.
        table: rows of the manifest that it was trained on, with their root in attrs.
        path: its checkpoint.
        limit, seed: of the choice of images, for each generator.
    """
    crops, _ = crops_of(stage, table, limit, seed)
    bank = torch.from_numpy(openset.Neighbours.fit(features(stage, crops)).bank).half()
    stage.neighbours = openset.Neighbours(bank.float().numpy())
    update_checkpoint(path, bank=bank)


def fingerprints(stage: Stage, table: pd.DataFrame, limit: int, seed: int = 0) -> dict[str, Fingerprint]:
    """Mean residual of each generator's training images, and the mean of their spectra.

    After Marra et al. 2019, arXiv:1812.11842, with the UNet's residual in place of a denoiser's. The mean over spectra
    is given, not the spectrum of the mean: it does not need aligned images and is not speckled. What the images show at
    one place, aligned faces for instance, stays in the mean beside the generator's traces.

    Args:
        stage: a stage 2.
        table: the manifest, with its root in attrs; fakes of the training split are used.
        limit, seed: of the choice of images, for each generator.

    Raises:
        ValueError: the training split has no fake.
    """
    train, found = table[table["is_fake"] & (table["split"] == "train")], {}
    if train.empty:
        raise ValueError("the training split has no fake to take a fingerprint from")
    for label, rows in train.groupby("label"):
        crops, _ = crops_of(stage, rows, limit, seed)
        own = residuals(stage, crops)
        mean = own.mean(0, dtype=torch.float64).permute(1, 2, 0).numpy()
        found[label] = Fingerprint(mean, power_spectrum(own), len(own))
    return found


def save_spectra(prints: dict[str, Fingerprint], out: str | Path) -> None:
    """Keep each generator's spectrum in the run folder, for the pages that show one image beside them."""
    with whole(Path(out) / SPECTRA) as draft, draft.open("wb") as file:
        np.savez_compressed(file, **{name: one.spectrum.astype(np.float32) for name, one in prints.items()})


def power_spectrum(residual: Tensor) -> np.ndarray:
    """Log10 of the mean power of residuals, Hann-windowed, the zero frequency in the middle.

    Args:
        residual: (N, 3, S, S).

    Returns:
        (S, S); white noise of deviation d has 2 log10 d everywhere, but for the zero frequency.
    """
    side = torch.hann_window(residual.shape[-1], periodic=False)
    window, total = torch.outer(side, side), 0.0
    for chunk in residual.split(BATCH):
        centred = chunk - chunk.mean(dim=(2, 3), keepdim=True)
        total = total + torch.fft.fft2(centred * window).abs().square().mean(1).sum(0, dtype=torch.float64)
    power = total / len(residual) / window.square().sum()
    return torch.fft.fftshift(torch.log10(power + 1e-16)).numpy()


def correlations(
    stage: Stage, prints: dict[str, Fingerprint], table: pd.DataFrame, limit: int, seed: int = 0
) -> pd.DataFrame:
    """Normalised cross-correlation of each test image's residual with each mean residual, at no shift.

    Photos are correlated too: they are the control. As in Marra et al. 2019, arXiv:1812.11842, the largest names the
    generator.

    Args:
        stage: the one that gave the fingerprints.
        prints: what `fingerprints` gave.
        table: the whole manifest, with its root in attrs; the test split is used.
        limit, seed: of the choice of images, for each label.

    Returns:
        One row per image: path, label, group, prediction, and corr_<generator> in [-1, 1]; 0 where a residual is flat.
    """
    crops, rows = crops_of(stage, table[table["split"] == "test"], limit, seed)
    means = np.stack([one.mean.transpose(2, 0, 1).ravel() for one in prints.values()])
    parts = [cdist(residuals(stage, chunk).flatten(1).numpy(), means, "correlation") for chunk in crops.split(BATCH)]
    values = np.nan_to_num(1 - np.concatenate(parts))  # (N, generators)
    found = rows[["path", "label", "group"]].reset_index(drop=True)
    found["prediction"] = np.array(list(prints))[values.argmax(1)]
    return pd.concat([found, pd.DataFrame(values, columns=[CORRELATION + name for name in prints])], axis=1)


def mean_correlations(found: pd.DataFrame) -> pd.DataFrame:
    """Mean correlation, one row per true label (photos last) and one column per generator's fingerprint."""
    means = found.groupby("label")[_generators(found)].mean().rename_axis(index="true", columns="fingerprint")
    means = means.rename(columns=lambda name: name.removeprefix(CORRELATION))
    return means.reindex([*means.index.intersection(means.columns), *means.index.difference(means.columns)])


def correlation_accuracy(found: pd.DataFrame, seed: int = 0) -> dict[str, float | None]:
    """Balanced accuracy of naming the generator by the largest correlation: value, and the 95 % interval over groups.

    Args:
        found: what `correlations` gave; labels without a fingerprint are left out.
        seed: of the bootstrap.
    """
    rows = found[(CORRELATION + found["label"]).isin(_generators(found))]
    return interval(rows[["group", "label", "prediction"]], lambda t: balanced_accuracy(t.label, t.prediction), seed)


def embed(values: np.ndarray, rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Features on a plane, neighbours kept: t-SNE, van der Maaten and Hinton 2008, started from the first components.

    Distances between clusters, and their sizes, say nothing.

    Args:
        values: (N, D), what `features` gave.
        rows: the N rows of the manifest.
        seed: of the t-SNE.

    Returns:
        On the rows' index: x, y, label, and source; where the manifest has none, source is the split.

    Raises:
        ValueError: fewer than four images.
    """
    if len(values) < 4:
        raise ValueError(f"an embedding needs at least four images, got {len(values)}")
    perplexity = min(30.0, (len(values) - 1) / 3)
    x, y = TSNE(init="pca", random_state=seed, perplexity=perplexity).fit_transform(values).T
    source = rows["source"] if "source" in rows else rows["split"] + " split"
    return pd.DataFrame({"x": x, "y": y, "label": rows["label"], "source": source}, index=rows.index)


def _generators(found: pd.DataFrame) -> list[str]:
    return [name for name in found if name.startswith(CORRELATION)]


def centres(stage: Stage, root: str, paths: Iterable[str]) -> Tensor:
    """Centre crops as the files have them: (N, 3, S, S) in [0, 1]."""
    found = []
    for path in paths:
        image = load_rgb(f"{root}/{path}")
        (corner,) = plan(image.height, image.width, stage.crop_size, 1).corners
        found.append(cut(image, corner, stage.crop_size))
    return torch.cat(found)
