"""The baseline that needs no network: a linear classifier on the spectrum, trained on the same views as stage 2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.utils.data import DataLoader

from dfd import config, loading
from dfd.datasets import GFDTwoViewDataset, Seeded, equalise, seeds
from dfd.degrade import RandomDegrade, at_level
from dfd.explain import centre, read_images
from dfd.progress import bar

COMPONENTS = 64  # of the spectra that are kept; more than a few hundred images could fill would only be noise


def log_spectrum(images: Tensor) -> np.ndarray:
    """Log power spectrum of each image's mean channel, a half plane of it, for the other half is the same.

    Frank et al. 2020, arXiv:2003.08685, and Durall et al. 2020, arXiv:2003.01826, classify such spectra linearly.

    Args:
        images: (B, 3, S, S) in [0, 1].

    Returns:
        (B, S * (S // 2 + 1)), natural logarithms.
    """
    grey = images.mean(1).double()
    window = torch.hann_window(images.shape[-1], periodic=False, dtype=grey.dtype)
    spectrum = torch.fft.rfft2((grey - grey.mean((1, 2), keepdim=True)) * torch.outer(window, window))
    return (spectrum.abs().square() + 1e-6).log().flatten(1).numpy()


def fit_spectrum(table: pd.DataFrame, cfg: config.Stage2) -> Pipeline:
    """Train the linear classifier on two degraded views of every training fake, as stage 2 sees them.

    Args:
        table: the manifest, with its root in attrs.
        cfg: crop size, degradation, equalisation and seed are read.
    """
    fakes = table[table["is_fake"]]
    train, classes = fakes[fakes["split"] == "train"], sorted(fakes["label"].unique())
    degrade = RandomDegrade(smallest=cfg.crop_size) if cfg.degrade else None
    quality = cfg.equalise_quality if cfg.equalise else None
    data = GFDTwoViewDataset(train, table.attrs["root"], classes, cfg.crop_size, degrade, quality)
    draws = list(enumerate(seeds(len(data), cfg.seed)))
    loader = DataLoader(Seeded(data), cfg.batch_size, sampler=draws, num_workers=loading.processes(cfg.workers))
    spectra, labels = [], []
    for batch in bar(loader, desc="spectra", unit="batch"):
        spectra += [log_spectrum(batch["view1"]), log_spectrum(batch["view2"])]
        labels += [batch["source"].numpy()] * 2
    spectra, names = np.concatenate(spectra), np.array(classes)[np.concatenate(labels)]
    linear = LogisticRegression(class_weight="balanced", max_iter=2000)
    reduce = PCA(min(COMPONENTS, len(spectra) - 1, spectra.shape[1]), random_state=cfg.seed)
    return make_pipeline(StandardScaler(), reduce, StandardScaler(), linear).fit(spectra, names)


def score_spectrum(
    classifier: Pipeline, table: pd.DataFrame, cfg: config.Stage2, levels: Sequence[tuple[str, float]]
) -> pd.DataFrame:
    """Score every fake of the table on its centre crop at each degradation, as a score table of stage 2.

    Args:
        classifier: from fit_spectrum.
        table: rows of the manifest, with its root in attrs.
        cfg: as in fit_spectrum.
        levels: (degradation, level), the level 0 for none.
    """
    quality, found = cfg.equalise_quality if cfg.equalise else None, []
    for degradation, level in levels:
        spectra = [
            log_spectrum(equalise(centre(at_level(image, degradation, level), cfg.crop_size), quality))
            for path in table["path"]
            for image in read_images(table, [path])
        ]
        logits = classifier.predict_log_proba(np.concatenate(spectra))
        rows = table[["path", "label", "split", "group"]].reset_index(drop=True)
        rows = rows.assign(degradation=degradation, level=float(level))
        for name, column in zip(classifier.classes_, logits.T, strict=True):
            rows[f"logit_{name}"] = column
        found.append(rows.assign(prediction=classifier.classes_[logits.argmax(1)], crops=1, crop_std=0.0))
    return pd.concat(found, ignore_index=True)
