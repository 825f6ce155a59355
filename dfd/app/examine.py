"""One image, one answer that can be defended: both stages' verdict in words, and whether it stands.

The probe and `predict --report` show the same Examination. Its pictures are drawn apart, by `dfd.app.evidence`: they
take longer than the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from dfd.app.evidence import FAKE_COLOUR, REAL_COLOUR, Crop, Examination, Picture
from dfd.app.metadata import lines, plain, read_metadata, sentence
from dfd.core.images import ImageError, Source, as_rgb
from dfd.degrade import DEGRADATIONS, compose, describe, to_tensor
from dfd.inference.decide import decide
from dfd.inference.detector import Detector, Verdict

SIDE = 1024  # pixels; of a larger image the middle is degraded, so that a slider answers soon


def examine(
    detector: Detector, source: Source, name: str | None = None, crops: int | None = None, mode: str | None = None
) -> Examination:
    """Judge one image, and say what the answer rests on; `name` is its path's last part unless given.

    The source is a path, a file's bytes, a PIL image, (H, W, 3) uint8 array, or (3, H, W) tensor in [0, 1]; crops and
    mode are as in `Stage.stream`. A file that cannot be used is an ImageError, pixels of another shape, type or range
    or crops below 1 a ValueError, no image a TypeError.
    """
    image, metadata = as_rgb(source), read_metadata(source)
    path = str(source) if isinstance(source, str | Path) else None
    first, second = detector.scored(image, crops, mode)
    verdict, stage = detector.judge(path, first, second), detector.stage1
    p_crops = decide(first.crop_logits.numpy(), stage).probabilities[:, 1].tolist()
    windows = [Crop(*corner, stage.crop_size, p) for corner, p in zip(first.corners, p_crops, strict=True)]
    name = plain(name or (Path(path).name if path else "image"))
    text = lines("answer", verdict, detector.threshold, stage, detector.stage2, p_crops, first.needed)
    notes = lines("note", first.crops, first.needed) if first.crops < first.needed else ()
    return Examination(name, verdict, detector.threshold, text, notes, tuple(windows), metadata, image)


def examine_or_refuse(
    detector: Detector, source: str | Path | bytes, name: str, *how: Any, errors: type[Exception] = ImageError
) -> Examination:
    """As `examine`, but where it raises one of these errors the reason stands in the Examination's verdict."""
    try:
        return examine(detector, source, name, *how)
    except errors as error:
        file = "the given bytes" if isinstance(source, bytes) else source
        reason = str(error).removeprefix(f"{file}: ")
        if not isinstance(error, ImageError):
            reason = f"it could not be examined: {type(error).__name__}: {error}"
        return Examination(plain(name), Verdict(name, error=plain(reason, 400)))


def degraded(detector: Detector, source: Source, operator: str, levels: Iterable[float]) -> Iterator[dict[str, Any]]:
    """The rows of `under_degradation`, one after another, so that a caller may stop between two."""
    image = middle(as_rgb(source))
    pixels = to_tensor(image)
    for level in levels:
        verdict = _judge(detector, image if operator == "none" else compose(pixels, [(operator, level, {})]))
        row = {"level": level, "p_fake": verdict.p_fake, "is_fake": verdict.is_fake, "source": verdict.source}
        yield row | {f"p_{name}": p for name, p in (verdict.p_source or {}).items()}


def under_degradation(detector: Detector, source: Source, operator: str, levels: Iterable[float]) -> pd.DataFrame:
    """The curve of the score under one degradation: level, p_fake, is_fake, source, and p_<generator> for each.

    The source is as in `examine`; of a large image the middle of SIDE pixels is used. Operators are none and those of
    dfd.degrade.DEGRADATIONS; an unknown one, or a level that it refuses, is a ValueError.
    """
    return pd.DataFrame(list(degraded(detector, source, operator, levels)))


def middle(image: Image.Image) -> Image.Image:
    """The image, or its middle of at most SIDE pixels each way."""
    width, height = (min(SIDE, length) for length in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _judge(detector: Detector, image: Image.Image | Tensor) -> Verdict:
    """The verdict on an image in memory, or on pixels (1, 3, H, W) in [0, 1] that no file of 8 bits has rounded."""
    return detector.judge(None, *detector.scored(image, None, None))


@dataclass(eq=False)
class Stability:
    """Does the answer stand? One image under JPEG, blur and rescaling; rows are added as they are computed."""

    image: Image.Image  # RGB; of one larger than SIDE the middle is kept
    threshold: float
    base: Verdict | None = None  # of this image as it is
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # operator -> rows of `degraded`
    now: tuple[dict[str, float], Verdict] | None = None  # where the sliders stand, and the answer there

    axes: ClassVar = tuple(DEGRADATIONS[name] for name in ("rescale", "blur", "jpeg"))  # as sliders apply them

    def __post_init__(self) -> None:
        self.is_cut = max(self.image.size) > SIDE
        self.image = middle(self.image)

    def asdict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        now = self.now and {"levels": self.now[0], **asdict(self.now[1])}
        p_fake = self.base and self.base.p_fake
        return {"middle_only": self.is_cut, "p_fake": p_fake, "curve": self.rows, "sliders": now}

    def compute(self, detector: Detector) -> Iterator[bool]:
        """Compute the curve level by level, telling whether a degradation is done; what is known is kept."""
        self.base = self.base or _judge(detector, self.image)
        yield False
        for axis in self.axes:
            known = self.rows.setdefault(axis.name, [])
            for row in degraded(detector, self.image, axis.name, axis.curve[len(known) :]):
                known.append(row)
                yield len(known) == len(axis.curve)

    def move(self, detector: Detector, levels: dict[str, float]) -> tuple[str, Image.Image]:
        """Apply the sliders' levels one after another; say what became of the answer, and give the image."""
        steps = [(axis.name, levels[axis.name], {}) for axis in self.axes if levels[axis.name] != axis.neutral]
        pixels = compose(to_tensor(self.image), steps)
        self.now = levels, _judge(detector, pixels if steps else self.image)
        image = Image.fromarray((pixels[0] * 255).round().byte().permute(1, 2, 0).numpy())
        return sentence("moved", describe(steps) if steps else "", self.now[1], self.base), image

    def picture(self) -> Picture:
        """Score by level, one panel for each degradation; drawn without pyplot, so on any thread."""
        figure = Figure((9.9, 2.7), 100, layout="constrained")
        for axis, ax in zip(self.axes, figure.subplots(1, len(self.axes), sharey=True), strict=True):
            points = [(row["level"], row["p_fake"]) for row in self.rows.get(axis.name, [])]
            if self.base:
                points.append((axis.neutral, self.base.p_fake))
            levels, scores = np.array(sorted(points)).reshape(-1, 2).T
            colours = np.where(scores[:, None] >= self.threshold, FAKE_COLOUR, REAL_COLOUR)
            ax.plot(levels, scores, color="0.6", lw=1.2, zorder=1)
            ax.scatter(levels, scores, c=colours, s=28, zorder=2)
            ax.axhline(self.threshold, color="0.3", lw=1, ls="--")
            if self.now and self.now[0][axis.name] != axis.neutral:
                marker = {"mfc": "none", "mec": "black", "mew": 1.8, "ms": 12}
                ax.plot(self.now[0][axis.name], self.now[1].p_fake, "o", **marker, zorder=3, clip_on=False)
            low, high = min(axis.steps), max(axis.steps)
            margin = 0.04 * (high - low)
            ax.set(xlim=(low - margin, high + margin), ylim=(-0.05, 1.05), xlabel=axis.axis)
            if axis.name == "jpeg":  # the best quality stands on the left, as no degradation does elsewhere
                ax.invert_xaxis()
                ax.set(xlabel=f"{axis.axis}, 100: none")
            ax.spines[["top", "right"]].set_visible(False)
        figure.axes[0].set(ylabel="score")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        return Picture("Does the answer stand?", sentence("caption_curve", self), [("", image)])
