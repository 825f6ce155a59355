"""What an examination holds, and the pictures beside a verdict: crops on a map, residual, spectrum, Grad-CAM.

The pictures show what the networks looked at. None of them proves anything by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dfd.analysis.explain import grad_cam, residuals
from dfd.analysis.explain import spectrum as power_spectrum
from dfd.analysis.fingerprint import SPECTRA
from dfd.app.metadata import Facts
from dfd.data.crops import cut, equalise
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
    tiles: tuple[tuple[str, Image.Image], ...]  # label, RGB


@dataclass(frozen=True, eq=False)
class Examination:
    """What is known of one image. Where it was refused, the verdict holds the error and the rest is empty."""

    name: str  # one printable line; not escaped for HTML
    verdict: Verdict
    threshold: float | None = None  # that p_fake was held against
    headline: str = ""  # the answer in a few words
    sentences: tuple[str, ...] = ()  # the answer, how it came about, and what it is worth
    notes: tuple[str, ...] = ()  # what was left out, for a log; the sentences say it too
    crops: tuple[Crop, ...] = ()  # of stage 1
    facts: Facts = field(default_factory=Facts)
    image: Image.Image | None = None  # RGB, upright
    pictures: dict[str, Picture] = field(default_factory=dict)  # by kind; filled by `draw`

    def without_image(self) -> Examination:
        """The same without what takes room: image and pictures."""
        return replace(self, image=None, pictures={})

    def asdict(self) -> dict[str, Any]:
        """Plain values, for JSON; without image and pictures."""
        text = {"headline": self.headline, "sentences": list(self.sentences), "threshold": self.threshold}
        crops = [vars(crop) for crop in self.crops]
        return {"name": self.name, **self.verdict.asdict(), **text, "by_crop": crops, "facts": self.facts.asdict()}


def draw(detector: Detector, examination: Examination, kinds: Iterable[str] | None = None) -> Iterator[Picture]:
    """Draw evidence one after another, and put each into the examination's pictures.

    Args:
        detector: the one that made the examination.
        examination: of an image that was not refused.
        kinds: names in KINDS; none draws all, the quick ones first.

    Raises:
        KeyError: an unknown kind.
    """
    for kind in KINDS if kinds is None else kinds:
        title, function = KINDS[kind]
        caption, tiles = function(detector, examination)
        examination.pictures[kind] = Picture(title, caption, tuple(tiles))
        yield examination.pictures[kind]


Tiles = list[tuple[str, Image.Image]]


def crop_map(detector: Detector, examination: Examination) -> tuple[str, Tiles]:
    """Stage 1's windows on the image, coloured by what each scores alone; where they overlap, by their mean."""
    image, crops = examination.image, examination.crops
    longest = max(image.size)
    scale = MAP_SIDE / longest if longest > MAP_SIDE else max(1, TILE_SIDE * 2 // longest)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    boxes = [_box(crop, scale, size) for crop in crops]
    total, count = np.zeros(size[::-1]), np.zeros(size[::-1])
    for crop, (left, top, right, bottom) in zip(crops, boxes, strict=True):
        total[top:bottom, left:right] += crop.p_fake
        count[top:bottom, left:right] += 1
    p_fake = (total / np.maximum(count, 1))[..., None]
    weight = np.where(count > 0, 0.45, 0.0)[..., None]
    colours = REAL_COLOUR + (FAKE_COLOUR - REAL_COLOUR) * p_fake
    scaled = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    tinted = _picture(np.asarray(scaled) / 255 * (1 - weight) + colours * weight)
    pen = ImageDraw.Draw(tinted)
    font = ImageFont.load_default(max(11, round(max(size) / 28)))
    for crop, (left, top, right, bottom) in zip(crops, boxes, strict=True):
        pen.rectangle((left, top, right - 1, bottom - 1), outline="white")
        if right - left >= 3 * font.size:
            middle = (left + right) / 2, (top + bottom) / 2
            pen.text(middle, f"{crop.p_fake:.2f}", "white", font, "mm", stroke_width=2, stroke_fill="black")
    caption = (
        f"Windows of {crops[0].size} pixels that were judged, each with its own score: blue where it is low, orange "
        "where it is high. What is not coloured was not looked at."
    )
    return caption, [("", tinted)]


def residual(detector: Detector, examination: Examination) -> tuple[str, Tiles]:
    """Stage 2's residual of the centre crop, beside the crop."""
    crop, extracted = _centre_residual(detector, examination)
    stretched = 0.5 + extracted / (6 * max(float(extracted.std()), 1e-6))
    tiles = [("middle of the image", _tile(crop[0])), ("its residual", _tile(stretched[0]))]
    return "What stage 2 extracts from the middle of the image to name a generator, stretched about grey.", tiles


def spectrum(detector: Detector, examination: Examination) -> tuple[str, Tiles]:
    """The spectrum of the residual, beside the mean ones of the generators where the run folder has them."""
    _, extracted = _centre_residual(detector, examination)
    spectra = {"this image": power_spectrum(extracted), **_mean_spectra(detector)}
    if len(spectra) > 1:
        means = "Beside it the means of each generator's training images."
    else:
        means = "This run folder keeps no mean spectra to compare with; notebook 02 writes them."
    caption = (
        "Power of that residual by frequency, the lowest in the middle, each on its own scale. Upsampling leaves "
        f"bright points and lines; one image is noisier than a mean. {means}"
    )
    tiles = []
    for name, values in spectra.items():
        low, high = np.percentile(values, (2, 99.8))
        scaled = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
        tiles.append((name, _enlarged(_picture(colormaps["viridis"](scaled)[..., :3]))))
    return caption, tiles


def gradcam(detector: Detector, examination: Examination) -> tuple[str, Tiles]:
    """Grad-CAM of stage 1 on the crops that score highest."""
    chosen = sorted(examination.crops, key=lambda crop: -crop.p_fake)[:MAX_CAMS]
    stage, side = detector.stage1, detector.stage1.crop_size
    crops = torch.cat([cut(examination.image, (crop.top, crop.left), side) for crop in chosen])
    heat = grad_cam(stage, equalise(crops, stage.equalise_quality), "fake")
    tiles = []
    for crop, pixels, values in zip(chosen, crops, heat, strict=True):
        colours = torch.from_numpy(colormaps["inferno"](values)[..., :3]).permute(2, 0, 1)
        tiles.append((f"score {crop.p_fake:.2f}", _tile(0.45 * pixels + 0.55 * colours)))
    caption = (
        "Bright: where stage 1 found what raises the score, in the crops that score highest. Each crop has its own "
        "scale, so a dark one is not proof of nothing."
    )
    return caption, tiles


KINDS = {
    "crops": ("Scores by place", crop_map),
    "residual": ("Residual", residual),
    "spectrum": ("Spectrum", spectrum),
    "gradcam": ("Grad-CAM", gradcam),
}


def _mean_spectra(detector: Detector) -> dict[str, np.ndarray]:
    """The generators' mean spectra that the run folder keeps, (S, S) each; empty where there are none that fit."""
    stage = detector.stage2
    path = detector.run and detector.run / SPECTRA
    if not path or not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as file:
        stored = {name: file[name] for name in stage.classes if name in file}
    return {name: values for name, values in stored.items() if values.shape == (stage.crop_size, stage.crop_size)}


def _centre_residual(detector: Detector, examination: Examination) -> tuple[Tensor, Tensor]:
    """The centre crop of stage 2's size, (1, 3, S, S) in [0, 1], and its residual."""
    stage, image = detector.stage2, examination.image
    side = stage.crop_size
    corner = max(image.height - side, 0) // 2, max(image.width - side, 0) // 2
    crop = equalise(cut(image, corner, side), stage.equalise_quality)
    return crop, residuals(stage, crop)


def _box(crop: Crop, scale: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a window on the scaled image."""
    left, top = round(crop.left * scale), round(crop.top * scale)
    right, bottom = round((crop.left + crop.size) * scale), round((crop.top + crop.size) * scale)
    return left, top, min(max(right, left + 1), size[0]), min(max(bottom, top + 1), size[1])


def _picture(values: np.ndarray) -> Image.Image:
    """(H, W, 3) in [0, 1] as a picture."""
    return Image.fromarray((values * 255).round().astype(np.uint8))


def _tile(pixels: Tensor) -> Image.Image:
    """(3, S, S) in [0, 1] as a picture, enlarged by a whole factor."""
    return _enlarged(_picture(pixels.clamp(0, 1).permute(1, 2, 0).numpy()))


def _enlarged(image: Image.Image) -> Image.Image:
    factor = max(1, math.ceil(TILE_SIDE / image.width))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
