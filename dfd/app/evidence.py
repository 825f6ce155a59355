"""What an examination holds, and the pictures beside a verdict: crops on a map, residual, spectrum, Grad-CAM.

The pictures show what the networks looked at. None of them proves anything by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from dfd.analysis import explain
from dfd.analysis.fingerprint import SPECTRA
from dfd.app.metadata import Metadata, sentence
from dfd.data.crops import cut, equalise, plan
from dfd.inference.detector import Detector, Verdict

MAP_SIDE = 768  # pixels; the longer side of the map of crops
TILE_SIDE = 256  # pixels; small pictures are enlarged by whole factors to about this
MAX_CAMS = 5  # crops that Grad-CAM is drawn for
REAL_COLOUR, FAKE_COLOUR = np.array([0.13, 0.40, 0.67]), np.array([0.85, 0.37, 0.01])  # blue, orange: apart for all


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
    notes: tuple[str, ...] = ()  # what was left out, for a log; the sentences say it too
    crops: tuple[Crop, ...] = ()  # of stage 1
    metadata: Metadata = field(default_factory=Metadata)
    image: Image.Image | None = None  # RGB, upright
    pictures: dict[str, Picture] = field(default_factory=dict)  # by kind; filled by `draw`

    @property
    def headline(self) -> str:
        """The answer in a few words."""
        return sentence("headline", self.verdict)

    def asdict(self) -> dict[str, Any]:
        """Plain values, for JSON; without image and pictures."""
        text = {"headline": self.headline, "sentences": list(self.sentences), "threshold": self.threshold}
        crops = [asdict(crop) for crop in self.crops]
        return {"name": self.name, **asdict(self.verdict), **text, "by_crop": crops, "facts": asdict(self.metadata)}


def draw(detector: Detector, examination: Examination, *kinds: str) -> None:
    """Draw these KINDS of evidence, or all, into the pictures of an examination by this detector.

    What is there already stays; an examination of an image that was refused has none.
    """
    assert examination.image is not None, "an examination without its image has no evidence"
    for kind in kinds or KINDS:
        title, function = KINDS[kind]
        if kind not in examination.pictures:
            caption, tiles = function(detector, examination.image, examination.crops)
            examination.pictures[kind] = Picture(title, caption, tiles)


Drawing = tuple[str, list[tuple[str, Image.Image]]]  # caption and tiles


def _crop_map(detector: Detector, image: Image.Image, crops: Sequence[Crop]) -> Drawing:
    """Stage 1's windows on the image, coloured by what each scores alone; where they overlap, by their mean."""
    longest = max(image.size)
    scale = MAP_SIDE / longest if longest > MAP_SIDE else max(1, TILE_SIDE * 2 // longest)
    width, height = (max(1, round(side * scale)) for side in image.size)
    side = max(1, round(crops[0].size * scale))
    corners = [(round(crop.top * scale), round(crop.left * scale)) for crop in crops]
    total, count = np.zeros((height, width, 1)), np.zeros((height, width, 1))
    for crop, (top, left) in zip(crops, corners, strict=True):
        total[top : top + side, left : left + side] += crop.p_fake
        count[top : top + side, left : left + side] += 1
    pixels = image.resize((width, height), Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    colours = REAL_COLOUR + (FAKE_COLOUR - REAL_COLOUR) * total / np.maximum(count, 1)
    weight = 0.45 * (count > 0)
    tinted = Image.fromarray(((1 - weight) * np.asarray(pixels) + weight * 255 * colours).round().astype(np.uint8))
    pen, letter = ImageDraw.Draw(tinted), max(11, round(max(width, height) / 20))
    font = ImageFont.load_default(letter)
    for crop, (top, left) in zip(crops, corners, strict=True):
        right, bottom = (max(0, min(edge + side, end) - 1) for edge, end in ((left, width), (top, height)))
        pen.rectangle((min(left, right), min(top, bottom), right, bottom), outline="white")
        if side >= 3 * letter:  # in the corner: in the middle stand the edges of others
            pen.text((left + 6, top + 4), f"{crop.p_fake:.2f}", "white", font, stroke_width=2, stroke_fill="black")
    return sentence("caption_crops", crops[0].size), [("", tinted)]


def _residual(detector: Detector, image: Image.Image, crops: Sequence[Crop]) -> Drawing:
    """Stage 2's residual of the centre crop, beside the crop."""
    crop, residual = _centre(detector, image)
    stretched = torch.from_numpy(explain.stretch(residual[0].numpy()))
    return sentence("caption_residual"), [("middle of the image", _tile(crop[0])), ("its residual", _tile(stretched))]


def _spectrum(detector: Detector, image: Image.Image, crops: Sequence[Crop]) -> Drawing:
    """The spectrum of the residual, beside the mean ones of the generators where the run folder has them."""
    own, tiles = explain.spectrum(_centre(detector, image)[1]), []
    spectra = {"this image": own}
    if detector.run and (detector.run / SPECTRA).exists():
        with np.load(detector.run / SPECTRA, allow_pickle=False) as file:
            stored = {name: file[name] for name in detector.stage2.classes if name in file}
        spectra |= {name: values for name, values in stored.items() if values.shape == own.shape}
    for name, values in spectra.items():
        low, high = np.percentile(values, (2, 99.8))
        tiles.append((name, _tile(_coloured(np.clip((values - low) / max(high - low, 1e-9), 0, 1), "viridis"))))
    return sentence("caption_spectrum", len(spectra) > 1), tiles


def _gradcam(detector: Detector, image: Image.Image, crops: Sequence[Crop]) -> Drawing:
    """Grad-CAM of stage 1 on the crops that score highest."""
    chosen = sorted(crops, key=lambda crop: -crop.p_fake)[:MAX_CAMS]
    stage, tiles = detector.stage1, []
    windows = torch.cat([cut(image, (crop.top, crop.left), crop.size) for crop in chosen])
    heat = explain.grad_cam(stage, equalise(windows, stage.equalise_quality), stage.classes[1])
    for crop, window, values in zip(chosen, windows, heat, strict=True):
        tiles.append((f"score {crop.p_fake:.2f}", _tile(0.45 * window + 0.55 * _coloured(values, "inferno"))))
    return sentence("caption_gradcam"), tiles


KINDS = {
    "crops": ("Scores by place", _crop_map),
    "residual": ("Residual", _residual),
    "spectrum": ("Spectrum", _spectrum),
    "gradcam": ("Grad-CAM", _gradcam),
}


def _centre(detector: Detector, image: Image.Image) -> tuple[Tensor, Tensor]:
    """The centre crop as stage 2 takes it, (1, 3, S, S) in [0, 1], and its residual."""
    stage = detector.stage2
    corner = plan(image.height, image.width, stage.crop_size, 1).corners[0]
    crop = equalise(cut(image, corner, stage.crop_size), stage.equalise_quality)
    with torch.inference_mode():
        return crop, explain.residuals(stage, crop)


def _coloured(values: np.ndarray, colours: str) -> Tensor:
    """(S, S) in [0, 1] through a colour map of matplotlib, (3, S, S)."""
    return torch.from_numpy(colormaps[colours](values)[..., :3]).permute(2, 0, 1)


def _tile(pixels: Tensor) -> Image.Image:
    """(3, S, S) in [0, 1] as a picture, enlarged by a whole factor."""
    image = to_pil_image((pixels.clamp(0, 1) * 255).round().byte())
    return ImageOps.scale(image, max(1, math.ceil(TILE_SIDE / image.width)), Image.Resampling.NEAREST)
