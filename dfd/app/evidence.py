"""What an examination holds, and the pictures beside a verdict: map, residual, Grad-CAM, stability."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from dfd.analysis import explain
from dfd.analysis.fingerprint import SPECTRA
from dfd.app.metadata import Metadata, sentence
from dfd.data.crops import Corner, cut, equalise, plan
from dfd.degrade import compose, to_tensor
from dfd.degrade.operators import as_float
from dfd.inference import Detector, Verdict, extract_features
from dfd.inference.decide import decide
from dfd.inference.openset import Subspace

MAP_SIDE = 768  # pixels; the longer side of the map
TILE_SIDE = 256  # pixels; small pictures are enlarged by whole factors to about this
SIDE = 1024  # pixels; of a larger image the middle is degraded, so that the grid comes soon
MAX_CAMS = 5  # crops that Grad-CAM is drawn for
MAX_WINDOWS, DENSE = 400, 128  # of the map, a minute on two cores; up to which they lie half a window apart
REGION = 2  # windows each way that must agree before an image is called generated in part
REAL_COLOUR, FAKE_COLOUR = np.array([0.13, 0.40, 0.67]), np.array([0.85, 0.37, 0.01])  # blue, orange: apart for all
Drawing = tuple[str, list[tuple[str, Image.Image]]]  # caption and tiles
QUALITIES, FACTORS = (None, 95, 85, 75, 60, 40), (1.0, 0.75, 0.5)  # of JPEG, none first, and of the scale before it


@dataclass(frozen=True, eq=False)
class Picture:
    """One piece of evidence: pictures side by side, each with a label."""

    caption: str  # what is seen, in a sentence or two
    tiles: list[tuple[str, Image.Image]]  # label, RGB; none of stability, which is a table


@dataclass(frozen=True, eq=False)
class Examination:
    """What is known of one image. Where it was refused, the verdict holds the error and the rest is empty."""

    name: str  # one printable line; not escaped for HTML
    verdict: Verdict
    limits: tuple[float, float] = (0.0, 1.0)  # of p_fake: below the first a photo, from the second on generated
    sentences: tuple[str, ...] = ()  # the answer, how it came about, and what it is worth
    crops: tuple[tuple[float, Corner], ...] = ()  # of stage 1: p_fake, calibrated as the image's, and where
    metadata: Metadata = field(default_factory=Metadata)
    image: Image.Image | None = None  # RGB, upright
    stride: int | None = None  # between the windows of the map, pixels; none: half their side, or all of it where many
    pictures: dict[str, Picture] = field(default_factory=dict)  # by kind; filled by `draw` and `trace`
    stability: dict[tuple[float, int | None], Verdict] = field(default_factory=dict)  # factor, quality -> answer
    remarks: list[str] = field(default_factory=list)  # what the pictures add to the answer, in sentences


def draw(detector: Detector, examination: Examination, *kinds: str) -> None:
    """Draw those KINDS of evidence, or all, that an examination by this detector lacks; it has its image."""
    assert examination.image is not None, "an examination without its image has no evidence"
    for kind in (kind for kind in kinds or KINDS if kind not in examination.pictures):
        examination.pictures[kind] = Picture(*KINDS[kind](detector, examination, examination.image))


def _map(detector: Detector, examination: Examination, image: Image.Image) -> Drawing:
    """Stage 1's windows over the whole image, coloured by what each scores alone; where they overlap, by their mean."""
    stage, size = detector.stage1, detector.stage1.crop_size
    stride = examination.stride or size // 2
    chosen = plan(image.height, image.width, size, MAX_WINDOWS, "grid", stride)
    if not examination.stride and chosen.needed > DENSE:
        stride, chosen = size, plan(image.height, image.width, size, MAX_WINDOWS, "grid", size)
    (scored,) = stage.score([stage.cut_out(image, chosen)])
    p, scale = decide(scored.crop_logits.numpy(), stage).probabilities[:, 1], MAP_SIDE / max(image.size)
    pixels = image.resize([max(1, round(length * scale)) for length in image.size])
    side = max(1, round(size * scale))
    corners = [(round(top * scale), round(left * scale)) for top, left in chosen.corners]
    total, count = np.zeros((2, pixels.height, pixels.width, 1))
    for value, (top, left) in zip(p, corners, strict=True):
        total[top : top + side, left : left + side] += value
        count[top : top + side, left : left + side] += 1
    colours = REAL_COLOUR + (FAKE_COLOUR - REAL_COLOUR) * total / np.maximum(count, 1)
    weight = 0.45 * (count > 0)
    tinted = Image.fromarray(((1 - weight) * np.asarray(pixels) + weight * 255 * colours).round().astype(np.uint8))
    if (place := in_part(p, chosen.corners, size, examination)) is not None:
        examination.remarks.append(sentence("in_part", place, size))
        box = [round(length * scale) for length in (place[1], place[0], place[1] + place[2], place[0] + place[2])]
        ImageDraw.Draw(tinted).rectangle(box, outline="white", width=4)
    told: tuple = size, stride, p.tolist(), chosen.needed, float((count > 0).mean()), examination.limits[1]
    return sentence("caption_map", *told), [("", tinted)]


def in_part(p: np.ndarray, corners: Sequence[Corner], size: int, seen: Examination) -> tuple[int, int, int] | None:
    """Where a patch looks generated in an image that else does not: top, left and side, pixels; None where nowhere.

    REGION x REGION neighbouring windows, of `size` pixels, must all be above its limits, and the image's median below.
    """
    rows, columns = (sorted({corner[axis] for corner in corners}) for axis in (0, 1))
    grid = p.reshape(len(rows), len(columns))
    (low, high), verdict = seen.limits, seen.verdict
    if min(grid.shape) <= REGION or verdict.verdict == "fake" or verdict.outside or np.median(grid) >= low:
        return None
    least = np.lib.stride_tricks.sliding_window_view(grid, (REGION, REGION)).min(axis=(2, 3))
    row, column = np.unravel_index(least.argmax(), least.shape)
    if not least[row, column] >= high:
        return None
    return rows[row], columns[column], size + min(a[i + REGION - 1] - a[i] for a, i in ((rows, row), (columns, column)))


def _residual(detector: Detector, examination: Examination, image: Image.Image) -> Drawing:
    """The centre crop's residual, see `explain.residuals`, and its spectrum, beside the mean ones that the run has."""
    stage = detector.stage2 or detector.stage1
    crop = as_float(stage.cut_out(image, plan(image.height, image.width, stage.crop_size, 1)).windows)
    with torch.inference_mode():
        residual = explain.residuals(stage, crop)
    stretched = torch.from_numpy(explain.stretch(residual[0].numpy()))
    tiles = [("middle of the image", _tile(crop[0])), ("its residual", _tile(stretched))]
    spectra = {"its spectrum": explain.spectrum(residual)}
    if detector.run and (detector.run / SPECTRA).exists():
        with np.load(detector.run / SPECTRA, allow_pickle=False) as file:
            stored = {name: file[key] for name in stage.classes for key in (name, f"{name} spectrum") if key in file}
        spectra |= {name: values for name, values in stored.items() if values.shape == spectra["its spectrum"].shape}
    for name, values in spectra.items():
        low, high = np.percentile(values, (2, 99.8))
        tiles.append((name, _tile(_coloured(np.clip((values - low) / max(high - low, 1e-9), 0, 1), "viridis"))))
    return sentence("caption_residual", len(spectra), getattr(stage.model, "sees_image", True), detector.stage2), tiles


def _gradcam(detector: Detector, examination: Examination, image: Image.Image) -> Drawing:
    """Grad-CAM of stage 1 on the crops that score highest."""
    chosen = sorted(examination.crops, key=lambda crop: -crop[0])[:MAX_CAMS]
    stage, tiles = detector.stage1, []
    windows = torch.cat([cut(image, corner, stage.crop_size) for _, corner in chosen])
    heat = explain.grad_cam(stage, equalise(windows, stage.equalise_quality), stage.classes[1])
    for (p_fake, _), window, values in zip(chosen, windows, heat, strict=True):
        tiles.append((f"score {p_fake:.2f}", _tile(0.45 * window + 0.55 * _coloured(values, "inferno"))))
    return sentence("caption_gradcam"), tiles


def _nearest(detector: Detector, examination: Examination, image: Image.Image) -> Drawing:
    """The training image of each class that lies nearest by stage 1's features; its name where its file is not here."""
    stage = detector.stage1
    if stage.neighbours is None or not isinstance(stage.feature_bank, Subspace):
        return sentence("caption_nearest", []), []
    crop = as_float(stage.cut_out(image, plan(image.height, image.width, stage.crop_size, 1)).windows)
    place = stage.feature_bank.project(extract_features(stage, crop))
    distance = np.linalg.norm(stage.neighbours.float().numpy() - place, axis=1)
    names = pd.DataFrame(stage.neighbour_names, columns=["label", "source", "path"]).assign(distance=distance)
    told = names.sort_values("distance").groupby("label", sort=False).head(1)
    words = [sentence("neighbour", row) for row in told.to_dict("records")]
    return sentence("caption_nearest", words), [("the middle of the image, which is compared", _tile(crop[0]))]


KINDS = {"map": _map, "nearest": _nearest, "residual": _residual, "gradcam": _gradcam}  # and stability, by `trace`


def _coloured(values: np.ndarray, colours: str) -> Tensor:
    """(S, S) in [0, 1] through a colour map of matplotlib, (3, S, S)."""
    return torch.from_numpy(colormaps[colours](values)[..., :3]).permute(2, 0, 1)


def _tile(pixels: Tensor) -> Image.Image:
    """(3, S, S) in [0, 1] as a picture, enlarged by a whole factor."""
    image = Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
    return ImageOps.scale(image, max(1, math.ceil(TILE_SIDE / image.width)), Image.Resampling.NEAREST)


def trace(detector: Detector, examination: Examination) -> Iterator[bool]:
    """Judge the image under JPEG and rescaling, cell by cell, telling whether all is done and the picture drawn.

    It is the image, or its middle of SIDE pixels each way. A caller may stop between two cells and go on later.
    """
    assert examination.image is not None, "an examination without its image has no stability"
    image, known = examination.image, examination.stability
    width, height = (min(SIDE, length) for length in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    middle = image.crop((left, top, left + width, top + height))
    cells = [(factor, quality) for factor in FACTORS for quality in QUALITIES]
    for factor, quality in cells:
        if (factor, quality) not in known:
            chain = [("rescale", factor, {})] if factor != 1 else []
            chain += [("jpeg", quality, {})] if quality else []
            degraded = compose(to_tensor(middle), chain) if chain else middle  # not rounded to 8 bits
            first, *second = detector.scored(degraded, None, None)
            known[factor, quality] = detector.judge(None, first._replace(quality=quality or first.quality), *second)
            if len(known) == len(cells):
                caption = sentence("caption_stability", known, examination.verdict.verdict, middle.size != image.size)
                examination.pictures["stability"] = Picture(caption, [])
            yield len(known) == len(cells)
