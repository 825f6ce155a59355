"""Is stage 2's residual a fingerprint: mean residuals, correlations, an embedding, and fingerprints put on photos.

Everything is taken at the centre crop: a mean over images, and a correlation with it, only mean something where pixels
lie at the same place of the generator's grid: in images of one size. Where sizes differ means fade, and spectra do not.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import cdist
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.manifold import TSNE
from torch import Tensor

from dfd.analysis.explain import residuals, spectrum
from dfd.core import atomic_write, runs
from dfd.data.crops import equalise
from dfd.evaluate.metrics import bootstrap_all, mean_recall, share, units
from dfd.inference.stage import BATCH, Stage, center_crops, sample_crops, sample_per_label

SPECTRA = "spectra.npz"  # in the run folder: spectrum of each generator
SSIM = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}  # Wang et al. 2004


class Fingerprint(NamedTuple):
    """What the residuals of one generator's images have in common."""

    mean: np.ndarray  # (S, S, 3) mean residual, in units of the [0, 1] range
    spectrum: np.ndarray  # (S, S), see explain.spectrum
    images: int


def fingerprints(stage: Stage, table: pd.DataFrame, limit: int, seed: int = 0) -> dict[str, Fingerprint]:
    """Mean residual of each generator's training images, and the mean of their spectra.

    After Marra et al. 2019, arXiv:1812.11842, with the UNet's residual in place of a denoiser's, of at most `limit`
    images. What they show at one place, aligned faces for instance, stays in the mean beside the generator's traces.
    """
    train, prints = table[table["is_fake"] & (table["split"] == "train")], {}
    if train.empty:
        raise ValueError("the training split has no fake to take a fingerprint from")
    for label, rows in train.groupby("label"):
        own = residuals(stage, sample_crops(stage, rows, limit, seed)[0])
        prints[label] = Fingerprint(own.mean(0, dtype=torch.float64).permute(1, 2, 0).numpy(), spectrum(own), len(own))
    return prints


def save_spectra(prints: dict[str, Fingerprint], out: str | Path) -> None:
    """Keep each generator's spectrum in the run folder, for the pages that show one image beside them."""
    spectra: dict[str, Any] = {f"{name} spectrum": own.spectrum.astype(np.float32) for name, own in prints.items()}
    with atomic_write(Path(out) / SPECTRA) as draft, draft.open("wb") as file:
        np.savez_compressed(file, **spectra)


def correlations(stage: Stage, prints: dict, table: pd.DataFrame, limit: int, seed: int = 0) -> pd.DataFrame:
    """Normalised cross-correlation of test images' residuals with each mean residual, at no shift, by true label.

    As in Marra et al. 2019, arXiv:1812.11842. Means in [-1, 1] over at most `limit` images of a label, photos last.
    """
    crops, rows = sample_crops(stage, table[table["split"] == "test"], limit, seed)
    means = np.stack([own.mean.transpose(2, 0, 1).ravel() for own in prints.values()])
    parts = [cdist(residuals(stage, chunk).flatten(1).numpy(), means, "correlation") for chunk in crops.split(BATCH)]
    images = pd.DataFrame(np.nan_to_num(1 - np.concatenate(parts)), rows.index, columns=list(prints))
    by_label = images.groupby(rows["label"]).mean().rename_axis(index="true", columns="fingerprint")
    return by_label.sort_index(key=lambda labels: ~labels.isin(list(prints)), kind="stable")


def embed(values: np.ndarray, rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Features (N, D) on a plane, neighbours kept: t-SNE, van der Maaten and Hinton 2008, from the first components.

    Distances and sizes of clusters say nothing. Gives x, y, label, and source (or the split) on the N rows' index.
    """
    if len(values) < 4 or not np.ptp(values, axis=0).any():  # of which scikit-learn's t-SNE ends the process
        raise runs.TooFew(f"an embedding needs at least four images, not all alike, got {len(values)}")
    perplexity = min(30.0, (len(values) - 1) / 3)
    x, y = np.asarray(TSNE(init="pca", random_state=seed, perplexity=perplexity).fit_transform(values)).T
    source = rows["source"] if "source" in rows else rows["split"] + " split"
    return pd.DataFrame({"x": x, "y": y, "label": rows["label"], "source": source}, index=rows.index)


def carry(stage: Stage, table: pd.DataFrame, limit: int, seed: int = 0, judge: Stage | None = None) -> pd.DataFrame:
    """Put residuals of test fakes on test photos: which generator does stage 2 name then?

    c is the photo's centre crop, r = G(x) the residual of a fake's; c + r is clipped to [0, 1]. Both then pass the same
    codec into the network; PSNR and SSIM compare them before it. Gives a row per fake, at most `limit` of each
    generator that the stage knows: path, label, group, carrier, carrier_group; alone and named, what stage 2 says of c
    and of c + r; psnr in dB, infinite where c + r is c; ssim. With a judge, a stage 2 that learnt by itself, also what
    it says of these, of x and of x - r: judge_alone, judge_named, judge_fake, judge_removed.
    """
    pairs, parts = draw_pairs(table[~table["is_fake"] | table["label"].isin(stage.classes)], limit, seed), []
    for start in range(0, len(pairs), BATCH):
        fakes, carriers, own, sums = put_on(stage, table, pairs.iloc[start : start + BATCH])
        asked = {"alone": (stage, carriers), "named": (stage, sums)}
        if judge is not None:
            asked |= {f"judge_{name}": (judge, images) for name, (_, images) in asked.items()}
            asked |= {"judge_fake": (judge, fakes), "judge_removed": (judge, (fakes - own).clamp(0, 1))}
        columns: dict[str, Any] = {}
        for name, (by, images) in asked.items():
            columns[name] = [by.classes[int(s.logits.argmax())] for s in by.stream(images.split(1), 1, "five")]
        images = [(c.numpy(), s.numpy()) for c, s in zip(carriers, sums, strict=True)]
        with np.errstate(divide="ignore"):  # equal images: infinite
            columns["psnr"] = [float(peak_signal_noise_ratio(c, s, data_range=1)) for c, s in images]
        ssim: Any = [structural_similarity(c, s, data_range=1, channel_axis=0, **SSIM) for c, s in images]
        parts.append(pd.DataFrame(columns | {"ssim": np.array(ssim, dtype=float)}))
    return pairs.join(pd.concat(parts, ignore_index=True))


def draw_pairs(table: pd.DataFrame, limit: int, seed: int = 0) -> pd.DataFrame:
    """A photo of another group for each fake of the test split: path, label, group, carrier, carrier_group."""
    rows = table[table["split"] == "test"]
    fakes, photos = sample_per_label(rows[rows["is_fake"]], limit, seed), rows[~rows["is_fake"]]
    if fakes.empty:
        raise runs.TooFew("the test split has no fake of a known generator")
    random, groups, drawn = np.random.default_rng(seed), photos["group"].to_numpy(), []
    for group in fakes["group"]:
        others = np.flatnonzero(groups != group)
        if not len(others):
            raise runs.TooFew(f"the test split has no photo outside group {group} to carry its fingerprint")
        drawn.append(random.choice(others))
    own, fakes = photos.iloc[drawn], fakes.filter(["path", "label", "group", "source"]).reset_index(drop=True)
    return fakes.assign(carrier=own["path"].to_numpy(), carrier_group=own["group"].to_numpy())


def put_on(stage: Stage, table: pd.DataFrame, pairs: pd.DataFrame) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fakes behind the codec, and before it carriers, residuals and clipped sums of pairs, (N, 3, S, S) each."""
    carriers, fakes = (center_crops(table, pairs[name], stage.crop_size) for name in ("carrier", "path"))
    fakes = equalise(fakes, stage.equalise_quality)
    own = residuals(stage, fakes)
    return fakes, carriers, own, (carriers + own).clamp(0, 1)


def confusion(pairs: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """Shares of the named generator, one row per source of the fingerprint; the last row is the carriers alone."""
    rows = pd.crosstab(pairs["label"], pairs["named"], normalize="index").reindex(columns=classes)
    rows.loc["carrier alone"] = pairs["alone"].value_counts(normalize=True)  # the control
    return rows.fillna(0.0).rename_axis(index="fingerprint of", columns="named")


def summary(pairs: pd.DataFrame, seed: int = 0) -> dict[str, dict[str, float | None]]:
    """What `carry` shows: value, low and high of each number, a 95 % interval over the fakes' sources or groups.

    Means over generators: `carried`, share named as the fingerprint's source; `carrier_alone`, the same without the
    fingerprint; `carried_anew`, of carriers that are named otherwise alone. Over pairs: finite `psnr` in dB, `ssim`.
    With a judge, shares named right of what it was asked: `judge_alone`, `judge_named`, `judge_fake`, `judge_removed`.
    """
    labels, alone, named = (pairs[name].to_numpy() for name in ("label", "alone", "named"))
    other, psnr, ssim = alone != labels, pairs["psnr"].to_numpy(), pairs["ssim"].to_numpy()
    finite = np.isfinite(psnr)
    statistics = {"carried": partial(mean_recall, labels=labels, right=named == labels),
                  "carrier_alone": partial(mean_recall, labels=labels, right=alone == labels),
                  "carried_anew": partial(mean_recall, labels=labels, right=named == labels, among=other),
                  "psnr": partial(share, right=np.where(finite, psnr, 0), among=finite),
                  "ssim": partial(share, right=ssim)}  # fmt: skip
    for column in map(str, pairs.filter(like="judge_")):
        statistics[column] = partial(mean_recall, labels=labels, right=pairs[column].to_numpy() == labels)
    return bootstrap_all(units(pairs), statistics, seed)
