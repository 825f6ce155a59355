"""Looking inside: pictures of images, crops and residuals, the spectrum, and Grad-CAM."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from captum.attr import LayerActivation, LayerAttribution, LayerGradCam
from torch import Tensor

from dfd.config import Training
from dfd.core.images import load_rgb
from dfd.data.crops import RealFakeDataset, equalise, plan
from dfd.degrade.operators import as_float
from dfd.degrade.registry import CLEAN, RandomDegrade
from dfd.inference.decide import closed_set
from dfd.inference.stage import BATCH, Stage, center_crops
from dfd.models.backbones import high_pass

CELLS = 6  # of a Grad-CAM's map a side, at least, where the backbone has such a layer
SHOWN = 256  # longer side of a picture, pixels
Pictures = dict[str, list[np.ndarray]]  # label -> (H, W, 3) in [0, 1], as plots.plot_examples takes them


def spectrum(images: Tensor) -> np.ndarray:
    """Log10 of the mean power by frequency of (N, C, S, S), Hann-windowed: (S, S), zero in the middle.

    Upsampling leaves bright points and crosses in it: Zhang et al. 2019, arXiv:1907.06515; Frank et al. 2020,
    arXiv:2003.08685. White noise of deviation d has 2 log10 d everywhere, but for the zero frequency.
    """
    side = torch.hann_window(images.shape[-1], periodic=False)
    window, total = torch.outer(side, side), 0.0
    for chunk in images.split(BATCH):
        centered = chunk - chunk.mean(dim=(2, 3), keepdim=True)
        total = total + torch.fft.fft2(centered * window).abs().square().mean(1).sum(0, dtype=torch.float64)
    return torch.fft.fftshift(torch.log10(total / len(images) / window.square().sum() + 1e-16)).numpy()


def class_spectra(table: pd.DataFrame, size: int, per_class: int) -> dict[str, np.ndarray]:
    """Spectrum of the high-pass residuals of each label's centre crops, of at most `per_class` images."""
    return {label: spectrum(high_pass(center_crops(table, paths, size))) for label, paths in _chosen(table, per_class)}


@torch.inference_mode()
def residuals(stage: Stage, crops: Tensor) -> Tensor:
    """Stage 2's G(x), or for stage 1 the high-pass part, of equalised crops: (N, 3, S, S) on the CPU, of [0, 1]."""
    if stage.stage == "stage1":
        return high_pass(as_float(crops))
    return torch.cat([stage.model.generator(x.to(stage.device)).float().cpu() for x in as_float(crops).split(BATCH)])


def stretch(residual: np.ndarray) -> np.ndarray:
    """A residual as a picture: three of its own deviations about grey, in [0, 1]."""
    return np.clip(0.5 + residual / (6 * max(float(residual.std()), 1e-9)), 0, 1)


def thumbnail(table: pd.DataFrame, path: str) -> np.ndarray:
    """A whole image of the manifest, (H, W, 3) in [0, 1], its longer side at most SHOWN pixels."""
    image = load_rgb(f"{table.attrs['root']}/{path}")
    image.thumbnail((SHOWN, SHOWN))
    return np.asarray(image, dtype=np.float32) / 255


def examples(table: pd.DataFrame, per_class: int, size: int = 128) -> Pictures:
    """Centre crops of each label, spread evenly over the table."""
    return {label: _pictures(center_crops(table, paths, size)) for label, paths in _chosen(table, per_class)}


def training_views(table: pd.DataFrame, cfg: Training, columns: int) -> Pictures:
    """What stage 1 is trained on: one random, degraded, equalised crop of `columns` images of each label."""
    torch.manual_seed(cfg.seed)
    degrade = RandomDegrade(smallest=cfg.crop_size, p_clean=CLEAN) if cfg.degrade else None
    quality, pictures = cfg.equalise_quality if cfg.equalise else None, {}
    views = RealFakeDataset(table, table.attrs["root"], cfg.crop_size, degrade, quality)  # cut as its smallest allows
    for label, paths in _chosen(table, columns):
        pictures[label] = _pictures(torch.stack([views[i][0] for i, path in enumerate(table["path"]) if path in paths]))
    return pictures


def residual_pictures(stage: Stage, table: pd.DataFrame, columns: int) -> Pictures:
    """Pairs of rows per generator: centre crops, and stage 2's residuals of them, stretched about grey."""
    pictures = {}
    for label, paths in _chosen(table, columns):
        crops = center_crops(table, paths, stage.crop_size)
        own = residuals(stage, equalise(crops, stage.equalise_quality))
        pictures |= {label: _pictures(crops), f"{label}, residual": [stretch(image) for image in _pictures(own)]}
    return pictures


def grad_cam(stage: Stage, crops: Tensor, target: str) -> np.ndarray:
    """Where a stage found what speaks for one of its classes: Grad-CAM, Selvaraju et al. 2017, arXiv:1610.02391.

    The last layer of a small crop has a handful of cells. So the map is taken at the deepest stage of the backbone that
    has CELLS or more a side; what lies above it enters through the gradient. From equalised crops (N, 3, S, S) in
    [0, 1]: (N, S, S) in [0, 1], 1 where most speaks for the class; all 0 where nothing does, or no layer is a map.
    """
    index = stage.classes.index(target)

    def logits(images: Tensor) -> Tensor:
        answer = stage.model(images).float()
        return torch.stack([-answer, answer], dim=1) if stage.stage == "stage1" else answer

    with torch.inference_mode(False):
        crops, infos = crops.detach().clone().to(stage.device).requires_grad_(), stage.backbone.feature_info
        layers = [stage.backbone.get_submodule(info["module"]) for info in infos]
        outputs: Any = LayerActivation(stage.model, layers).attribute(crops[:1]) if layers[1:] else []
        seen = [(layer, out) for layer, info, out in zip(layers, infos, outputs, strict=False)
                if out.ndim == 4 and info.get("num_chs", out.shape[1]) == out.shape[1]]  # fmt: skip
        large = [layer for layer, out in seen if min(out.shape[-2:]) >= CELLS] or [layer for layer, _ in seen[:1]]
        large = large if layers[1:] else layers  # the only one is a map
        if not large:  # a transformer's tokens
            return np.zeros((len(crops), *crops.shape[-2:]), dtype=np.float32)
        maps: Any = LayerGradCam(logits, large[-1]).attribute(crops, index, relu_attributions=True)
        heat = LayerAttribution.interpolate(maps.float(), crops.shape[-2:], "bilinear")[:, 0].detach()
    return (heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)).cpu().numpy()


class Dossier(NamedTuple):
    """An image beside what a network sees of its S x S centre crop, for plots.plot_dossiers."""

    image: np.ndarray  # (H, W, 3) in [0, 1], the longer side at most SHOWN pixels
    box: tuple[float, ...]  # the crop's left, top, width and height in it
    crop: np.ndarray  # (S, S, 3) in [0, 1], equalised
    residual: np.ndarray  # (S, S, 3) in [0, 1], stretched about grey
    spectrum: np.ndarray  # (S, S) of the residual
    cam: np.ndarray  # (S, S) in [0, 1], for the predicted class


def dossiers(stage: Stage, table: pd.DataFrame, rows: pd.DataFrame) -> list[Dossier]:
    """What a stage sees of the images of some rows of its score table."""
    result, size = [], stage.crop_size
    for path, prediction in zip(rows["path"], closed_set(rows), strict=True):
        width, height = load_rgb(f"{table.attrs['root']}/{path}").size
        top, left = plan(height, width, size, 1).corners[0]
        scale = min(SHOWN / max(width, height), 1)
        box = tuple(scale * side for side in (left, top, min(size, width), min(size, height)))
        crop = equalise(center_crops(table, [path], size), stage.equalise_quality)
        residual, (cam,) = residuals(stage, crop), grad_cam(stage, crop, prediction)
        (shown,), (own,) = _pictures(crop), _pictures(residual)
        result.append(Dossier(thumbnail(table, path), box, shown, stretch(own), spectrum(residual), cam))
    return result


def _chosen(table: pd.DataFrame, count: int) -> Iterator[tuple[str, list[str]]]:
    """At most `count` paths of each label, spread evenly over its rows."""
    for label, paths in table.groupby("label")["path"]:
        yield str(label), paths.iloc[np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int)].tolist()


def _pictures(images: Tensor) -> list[np.ndarray]:
    return list(images.permute(0, 2, 3, 1).numpy())
