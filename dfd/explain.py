"""Looking inside: residual pictures and averaged spectra."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dfd.config import Training
from dfd.datasets import RealFakeDataset, equalise, pad_to
from dfd.degrade import RandomDegrade, to_tensor
from dfd.images import load_rgb
from dfd.inference import Stage
from dfd.models.classifier import high_pass


def centre(image: Tensor, size: int) -> Tensor:
    """The middle (1, 3, S, S) window of a (1, 3, H, W) image, padded where it is smaller."""
    image = pad_to(image, size)
    top, left = ((side - size) // 2 for side in image.shape[-2:])
    return image[..., top : top + size, left : left + size]


def averaged_spectrum(images: Iterable[Tensor]) -> np.ndarray:
    """Mean log-magnitude spectrum of the high-pass residuals; upsampling leaves bright points and crosses in it.

    After Zhang et al. 2019, arXiv:1907.06515, and Frank et al. 2020, arXiv:2003.08685.

    Args:
        images: (1, 3, S, S) in [0, 1], all of one size.

    Returns:
        (S, S) mean of log10 of the magnitude, the zero frequency in the middle.

    Raises:
        ValueError: no image.
    """
    total, count = 0.0, 0
    for image in images:
        residual = high_pass(image).mean(dim=(0, 1)).double()  # (S, S)
        window = torch.hann_window(residual.shape[-1], periodic=False, dtype=residual.dtype)
        total = total + torch.fft.fft2(residual * torch.outer(window, window)).abs()
        count += 1
    if not count:
        raise ValueError("no image to average a spectrum over")
    return torch.fft.fftshift(torch.log10(total / count + 1e-8)).numpy()


def class_spectra(table: pd.DataFrame, size: int, per_class: int, quality: int | None) -> dict[str, np.ndarray]:
    """Averaged spectrum of each label's centre crops, equalised like the detector's input.

    Args:
        table: rows of the manifest, with its root in attrs.
        size: crop side S, pixels.
        per_class: images per label at most, spread evenly over the table.
        quality: JPEG quality of the equalisation; none leaves the crops as they are.
    """
    spectra = {}
    for label, rows in table.groupby("label"):
        images = (_read(table, path) for path in _spread(rows["path"], per_class))
        crops = (equalise(centre(image, size), quality) for image in images)
        spectra[label] = averaged_spectrum(crops)
    return spectra


@torch.inference_mode()
def residuals(stage2: Stage, images: list[Tensor]) -> list[np.ndarray]:
    """Stage 2's residual of each image's centre crop: (S, S, 3), in units of the [0, 1] range."""
    crops = (equalise(centre(image, stage2.crop_size), stage2.equalise_quality) for image in images)
    return [stage2.model.generator(crop.to(stage2.device))[0].permute(1, 2, 0).float().cpu().numpy() for crop in crops]


def read_images(table: pd.DataFrame, paths: Iterable[str]) -> list[Tensor]:
    """The named images of the manifest as (1, 3, H, W) tensors in [0, 1]."""
    return [_read(table, path) for path in paths]


def _read(table: pd.DataFrame, path: str) -> Tensor:
    return to_tensor(load_rgb(f"{table.attrs['root']}/{path}"))


def examples(table: pd.DataFrame, per_class: int, size: int = 128) -> dict[str, list[np.ndarray]]:
    """Centre crops of each label, (size, size, 3) in [0, 1], spread evenly over the table."""
    return {label: _crops(table, _spread(rows["path"], per_class), size) for label, rows in table.groupby("label")}


def twins(table: pd.DataFrame, count: int, size: int = 128) -> dict[str, list[np.ndarray]]:
    """Centre crops of files whose name stands in every class, one column per name: a photo and what was made of it.

    Returns:
        label -> pictures, RealPhotos first, one photo per group; empty where no name stands in every class.
    """
    labels = sorted(table["label"].unique(), key=lambda label: (label != "RealPhotos", label))
    names = table["path"].str.split("/").str[1:].str.join("/")
    everywhere = table.assign(name=names).groupby("name").filter(lambda rows: rows["label"].nunique() == len(labels))
    chosen = _spread(everywhere.drop_duplicates("group")["name"] if len(everywhere) else names.iloc[:0], count)
    return {label: _crops(table, [f"{label}/{name}" for name in chosen], size) for label in labels} if chosen else {}


def training_views(table: pd.DataFrame, cfg: Training, columns: int) -> dict[str, list[np.ndarray]]:
    """What stage 1 is trained on: one random, degraded, equalised crop of `columns` images of each label."""
    torch.manual_seed(cfg.seed)
    degrade = RandomDegrade(smallest=cfg.crop_size) if cfg.degrade else None
    quality = cfg.equalise_quality if cfg.equalise else None
    pictures = {}
    for label, rows in table.groupby("label"):
        rows = rows[rows["path"].isin(_spread(rows["path"], columns))]
        data = RealFakeDataset(rows, table.attrs["root"], cfg.crop_size, degrade, quality)
        pictures[label] = [_picture(data[i][0]) for i in range(len(data))]
    return pictures


def residual_pictures(stage2: Stage, table: pd.DataFrame, columns: int) -> dict[str, list[np.ndarray]]:
    """Pairs of rows per generator: centre crops, and their residuals stretched about grey to three deviations."""
    pictures = {}
    for label, rows in table.groupby("label"):
        images = read_images(table, _spread(rows["path"], columns))
        pictures[label] = [_picture(centre(image, stage2.crop_size)[0]) for image in images]
        pictures[f"{label}, residual"] = [
            np.clip(0.5 + one / (6 * max(float(one.std()), 1e-6)), 0, 1) for one in residuals(stage2, images)
        ]
    return pictures


def captioned(
    table: pd.DataFrame, mistakes: pd.DataFrame, columns: int = 6, size: int = 128
) -> tuple[dict[str, list[np.ndarray]], dict[str, list[str]]]:
    """Mistaken images as rows of pictures with captions, for plots.plot_examples."""
    pictures, captions = {}, {}
    for start in range(0, len(mistakes), columns):
        rows = mistakes.iloc[start : start + columns]
        name = f"{start + 1} to {start + len(rows)}"
        pictures[name] = _crops(table, rows["path"], size)
        words = zip(rows["label"], rows["prediction"], rows["margin"], strict=True)
        captions[name] = [f"{label}\ncalled {said}\nmargin {margin:z.1f}" for label, said, margin in words]
    return pictures, captions


def _spread(values: pd.Series, count: int) -> list[str]:
    return values.iloc[np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).astype(int))].tolist()


def _crops(table: pd.DataFrame, paths: Iterable[str], size: int) -> list[np.ndarray]:
    return [_picture(centre(image, size)[0]) for image in read_images(table, paths)]


def _picture(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()
