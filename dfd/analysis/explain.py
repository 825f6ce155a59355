"""Looking inside: residual pictures, averaged spectra and Grad-CAM."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from dfd.analysis.label_errors import network
from dfd.config import Training
from dfd.core.images import load_rgb
from dfd.data.crops import RealFakeDataset, cut, equalise, pad_to, plan
from dfd.degrade.registry import RandomDegrade, to_tensor
from dfd.inference.stage import Stage
from dfd.models.backbones import high_pass

CELLS = 6  # of a Grad-CAM's map a side, at least, where the backbone has such a layer
SHOWN = 256  # longer side of a picture, pixels


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
    return magnitude(high_pass(image) for image in images)


def magnitude(residuals: Iterable[Tensor]) -> np.ndarray:
    """Mean log-magnitude spectrum of residuals (1, 3, S, S), Hann-windowed; see averaged_spectrum."""
    total, count = 0.0, 0
    for each in residuals:
        residual = each.mean(dim=(0, 1)).double()  # (S, S)
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
    table: pd.DataFrame, rows: pd.DataFrame, texts: Sequence[str], columns: int = 6
) -> tuple[dict[str, list[np.ndarray]], dict[str, list[str]]]:
    """Whole images, reduced to SHOWN pixels, as rows of pictures with captions, for plots.plot_examples."""
    pictures, captions = {}, {}
    for start in range(0, len(rows), columns):
        paths = rows["path"].iloc[start : start + columns]
        name = f"{start + 1} to {start + len(paths)}"
        pictures[name] = [_reduced(table, path) for path in paths]
        captions[name] = list(texts[start : start + columns])
    return pictures, captions


def beside(table: pd.DataFrame, near: pd.DataFrame) -> dict[str, list[np.ndarray]]:
    """Images with their neighbours, reduced to SHOWN pixels: path -> the image, then its neighbours in order.

    Args:
        table: the manifest, with its root in attrs.
        near: what `suspects.neighbours` gave.
    """
    return {
        path: [_reduced(table, one) for one in (path, *rows["neighbour"])]
        for path, rows in near.groupby("path", sort=False)
    }


def grad_cam(stage: Stage, crop: Tensor, target: str) -> np.ndarray:
    """Where a stage found its answer: Grad-CAM, Selvaraju et al. 2017, arXiv:1610.02391.

    The last layer of a small crop has a handful of cells. So the map is taken at the deepest stage of the backbone that
    has CELLS or more a side; what lies above it enters through the gradient.

    Args:
        stage: either stage; of stage 2 the map lies over the residual that its classifier sees.
        crop: (1, 3, S, S) in [0, 1], equalised already.
        target: one of the stage's classes.

    Returns:
        (S, S) in [0, 1]: 0 where nothing speaks for the class, 1 where most does; all 0 where nothing does.

    Raises:
        ValueError: the stage has no such class.
    """
    if target not in stage.classes:
        raise ValueError(f"{stage.stage} has no class {target!r}; it has {', '.join(stage.classes)}")
    backbone, maps = network(stage), []
    layers = [backbone.get_submodule(one["module"]) for one in backbone.feature_info]
    hooks = [layer.register_forward_hook(lambda _, __, out: maps.append(out)) for layer in layers]
    try:
        with torch.enable_grad():
            out = stage.model(crop.to(stage.device).requires_grad_())[0].float()
    finally:
        for hook in hooks:
            hook.remove()
    logits = torch.stack([-out, out]) if stage.stage == "stage1" else out
    deepest = next((one for one in reversed(maps) if min(one.shape[-2:]) >= CELLS), maps[0])
    (gradient,) = torch.autograd.grad(logits[stage.classes.index(target)], deepest)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    cam = torch.relu((weights * deepest.detach()).sum(1, keepdim=True)).float()
    cam = F.interpolate(cam, crop.shape[-2:], mode="bilinear", align_corners=False)[0, 0].cpu().numpy()
    return cam / cam.max() if cam.max() > 0 else cam


def dossiers(stage: Stage, table: pd.DataFrame, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Each image beside what the network sees of its centre crop, for error_plots.plot_dossiers.

    Args:
        stage: the one that gave the predictions.
        table: the manifest, with its root in attrs.
        rows: of its score table; columns path and prediction.

    Returns:
        For each row: image (H, W, 3) in [0, 1], the longer side at most SHOWN pixels; box, the crop's left, top, width
        and height in it. Of the S x S centre crop, equalised: crop (S, S, 3) in [0, 1]; residual (S, S, 3), of stage 1
        the high-pass residual, of stage 2 G's, stretched about grey to three deviations; spectrum (S, S), log10 of the
        residual's magnitude, the zero frequency in the middle; cam (S, S) in [0, 1], for the predicted class.
    """
    found = []
    for path, said in zip(rows["path"], rows["prediction"], strict=True):
        image = load_rgb(f"{table.attrs['root']}/{path}")
        size = stage.crop_size
        (top, left), *_ = plan(image.height, image.width, size, 1).corners
        crop = equalise(cut(image, (top, left), size), stage.equalise_quality)
        scale = min(SHOWN / max(image.size), 1)
        box = left, top, min(size, image.width), min(size, image.height)
        image.thumbnail((SHOWN, SHOWN))
        if stage.stage == "stage2":
            with torch.inference_mode():
                residual = stage.model.generator(crop.to(stage.device)).float().cpu()
        else:
            residual = high_pass(crop)
        found.append(
            {
                "image": np.asarray(image, dtype=np.float32) / 255,
                "box": tuple(scale * side for side in box),
                "crop": _picture(crop[0]),
                "residual": np.clip(0.5 + _picture(residual[0]) / (6 * max(float(residual.std()), 1e-6)), 0, 1),
                "spectrum": magnitude([residual]),
                "cam": grad_cam(stage, crop, said),
            }
        )
    return found


def _spread(values: pd.Series, count: int) -> list[str]:
    return values.iloc[np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).astype(int))].tolist()


def _reduced(table: pd.DataFrame, path: str) -> np.ndarray:
    image = load_rgb(f"{table.attrs['root']}/{path}")
    image.thumbnail((SHOWN, SHOWN))
    return np.asarray(image, dtype=np.float32) / 255


def _crops(table: pd.DataFrame, paths: Iterable[str], size: int) -> list[np.ndarray]:
    return [_picture(centre(image, size)[0]) for image in read_images(table, paths)]


def _picture(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()
