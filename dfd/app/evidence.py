"""What an examination holds, and the pictures beside a verdict: crops on a map, residual, Grad-CAM, curve."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from dfd.analysis import explain
from dfd.analysis.fingerprint import SPECTRA
from dfd.app.metadata import Metadata, sentence
from dfd.data.crops import cut, equalise, plan
from dfd.degrade import DEGRADATIONS, compose, to_tensor
from dfd.inference.detector import Detector, Verdict

MAP_SIDE = 768  # pixels; the longer side of the map of crops
TILE_SIDE = 256  # pixels; small pictures are enlarged by whole factors to about this
SIDE = 1024  # pixels; of a larger image the middle is degraded, so that the curve comes soon
MAX_CAMS = 5  # crops that Grad-CAM is drawn for
REAL_COLOUR, FAKE_COLOUR = np.array([0.13, 0.40, 0.67]), np.array([0.85, 0.37, 0.01])  # blue, orange: apart for all
AXES = [DEGRADATIONS[name] for name in ("rescale", "blur", "jpeg")]


@dataclass(frozen=True)
class Crop:
    """What stage 1 says of one window."""

    top: int
    left: int
    size: int  # side, pixels
    p_fake: float  # calibrated as the image's


@dataclass(frozen=True, eq=False)
class Picture:
    """One piece of evidence: pictures side by side, each with a label."""

    title: str
    caption: str  # what is seen, in a sentence or two
    tiles: list[tuple[str, Image.Image]]  # label, RGB


@dataclass(frozen=True, eq=False)
class Examination:
    """What is known of one image. Where it was refused, the verdict holds the error and the rest is empty."""

    name: str  # one printable line; not escaped for HTML
    verdict: Verdict
    threshold: float | None = None  # that p_fake was held against
    sentences: tuple[str, ...] = ()  # the answer, how it came about, and what it is worth
    crops: tuple[Crop, ...] = ()  # of stage 1
    metadata: Metadata = field(default_factory=Metadata)
    image: Image.Image | None = None  # RGB, upright
    pictures: dict[str, Picture] = field(default_factory=dict)  # by kind; filled by `draw` and `trace`
    curves: dict[str, dict[float, Verdict]] = field(default_factory=dict)  # operator -> level -> answer, by `trace`


def draw(detector: Detector, examination: Examination, *kinds: str) -> None:
    """Draw those KINDS of evidence, or all, that an examination by this detector lacks; it has its image."""
    assert examination.image is not None, "an examination without its image has no evidence"
    for kind in kinds or KINDS:
        if kind not in examination.pictures:
            caption, tiles = KINDS[kind](detector, examination.image, examination.crops)
            examination.pictures[kind] = Picture(TITLES[kind], caption, tiles)


Drawing = tuple[str, list[tuple[str, Image.Image]]]  # caption and tiles


def _crop_map(detector: Detector, image: Image.Image, crops: Sequence[Crop]) -> Drawing:
    """Stage 1's windows on the image, coloured by what each scores alone; where they overlap, by their mean."""
    scale = MAP_SIDE / max(image.size)
    pixels = image.resize([max(1, round(length * scale)) for length in image.size])
    side = max(1, round(crops[0].size * scale))
    corners = [(round(crop.top * scale), round(crop.left * scale)) for crop in crops]
    total, count = np.zeros((2, pixels.height, pixels.width, 1))
    for crop, (top, left) in zip(crops, corners, strict=True):
        total[top : top + side, left : left + side] += crop.p_fake
        count[top : top + side, left : left + side] += 1
    colours = REAL_COLOUR + (FAKE_COLOUR - REAL_COLOUR) * total / np.maximum(count, 1)
    weight = 0.45 * (count > 0)
    tinted = Image.fromarray(((1 - weight) * np.asarray(pixels) + weight * 255 * colours).round().astype(np.uint8))
    pen = ImageDraw.Draw(tinted)
    for top, left in corners:
        pen.rectangle((left, top, left + side - 1, top + side - 1), outline="white")
    return sentence("caption_crops", crops[0].size), [("", tinted)]


def _residual(detector: Detector, image: Image.Image, crops: Sequence[Crop]) -> Drawing:
    """Stage 2's residual of the centre crop and its spectrum, beside the generators' mean ones that the run has.

    Without a stage 2 it is the high-pass part that stage 1 looks at.
    """
    stage = detector.stage2 or detector.stage1
    corner = plan(image.height, image.width, stage.crop_size, 1).corners[0]
    crop = equalise(cut(image, corner, stage.crop_size), stage.equalise_quality)
    with torch.inference_mode():
        residual = explain.residuals(stage, crop)
    stretched = torch.from_numpy(explain.stretch(residual[0].numpy()))
    tiles = [("middle of the image", _tile(crop[0])), ("its residual", _tile(stretched))]
    spectra = {"its spectrum": explain.spectrum(residual)}
    if detector.run and (detector.run / SPECTRA).exists():
        with np.load(detector.run / SPECTRA, allow_pickle=False) as file:
            stored = {name: file[name] for name in stage.classes if name in file}
        spectra |= {name: values for name, values in stored.items() if values.shape == spectra["its spectrum"].shape}
    for name, values in spectra.items():
        low, high = np.percentile(values, (2, 99.8))
        tiles.append((name, _tile(_coloured(np.clip((values - low) / max(high - low, 1e-9), 0, 1), "viridis"))))
    return sentence("caption_residual", len(spectra) > 1, getattr(stage.model, "sees_image", True)), tiles


def _gradcam(detector: Detector, image: Image.Image, crops: Sequence[Crop]) -> Drawing:
    """Grad-CAM of stage 1 on the crops that score highest."""
    chosen = sorted(crops, key=lambda crop: -crop.p_fake)[:MAX_CAMS]
    stage, tiles = detector.stage1, []
    windows = torch.cat([cut(image, (crop.top, crop.left), crop.size) for crop in chosen])
    heat = explain.grad_cam(stage, equalise(windows, stage.equalise_quality), stage.classes[1])
    for crop, window, values in zip(chosen, windows, heat, strict=True):
        tiles.append((f"score {crop.p_fake:.2f}", _tile(0.45 * window + 0.55 * _coloured(values, "inferno"))))
    return sentence("caption_gradcam"), tiles


KINDS = {"crops": _crop_map, "residual": _residual, "gradcam": _gradcam}
TITLES = {"crops": "Scores by place", "residual": "Residual and spectrum", "gradcam": "Grad-CAM"}
TITLES["curve"] = "Does the answer stand?"  # by `trace`


def _coloured(values: np.ndarray, colours: str) -> Tensor:
    """(S, S) in [0, 1] through a colour map of matplotlib, (3, S, S)."""
    return torch.from_numpy(colormaps[colours](values)[..., :3]).permute(2, 0, 1)


def _tile(pixels: Tensor) -> Image.Image:
    """(3, S, S) in [0, 1] as a picture, enlarged by a whole factor."""
    image = to_pil_image((pixels.clamp(0, 1) * 255).round().byte())
    return ImageOps.scale(image, max(1, math.ceil(TILE_SIDE / image.width)), Image.Resampling.NEAREST)


def trace(detector: Detector, examination: Examination) -> Iterator[bool]:
    """Compute the curves level by level, telling whether a degradation is done, and so the picture `curve` new.

    They are of the image, or of its middle of SIDE pixels each way, as it is (none) and under each degradation of AXES.
    What is known is kept, so a caller may stop between two levels and go on later.
    """
    assert examination.image is not None, "an examination without its image has no curves"
    image, curves = examination.image, examination.curves
    width, height = (min(SIDE, length) for length in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    middle = image.crop((left, top, left + width, top + height))
    pixels = to_tensor(middle)
    for name, level in [("none", 0.0), *((axis.name, level) for axis in AXES for level in axis.curve)]:
        if level in curves.setdefault(name, {}):
            continue
        degraded = middle if name == "none" else compose(pixels, [(name, level, {})])  # not rounded to 8 bits
        curves[name][level] = detector.judge(None, *detector.scored(degraded, None, None))
        if is_done := name != "none" and len(curves[name]) == len(DEGRADATIONS[name].curve):
            examination.pictures["curve"] = _curve(examination, middle.size != image.size)
        yield is_done


def _curve(examination: Examination, is_cut: bool) -> Picture:
    """Score by level, one panel for each degradation; drawn without pyplot, so on any thread."""
    curves, threshold = examination.curves, examination.threshold
    figure = Figure((9.9, 2.7), 100, layout="constrained")
    for axis, ax in zip(AXES, figure.subplots(1, len(AXES), sharey=True), strict=True):
        verdicts = {axis.neutral: curves["none"][0], **curves.get(axis.name, {})}
        levels, scores = np.array(sorted((level, verdict.p_fake) for level, verdict in verdicts.items())).T
        ax.plot(levels, scores, color="0.6", lw=1.2, zorder=1)
        ax.scatter(levels, scores, c=np.where(scores[:, None] >= threshold, FAKE_COLOUR, REAL_COLOUR), s=28, zorder=2)
        ax.axhline(threshold, color="0.3", lw=1, ls="--")
        ax.set(ylim=(-0.05, 1.05), xlabel=axis.axis)
        if axis.name == "jpeg":  # the best quality stands on the left, as no degradation does elsewhere
            ax.invert_xaxis()
        ax.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set(ylabel="score")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    tiles = [("", Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))]
    return Picture(TITLES["curve"], sentence("caption_curve", AXES, curves, is_cut), tiles)
