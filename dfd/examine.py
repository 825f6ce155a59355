"""One image, one answer that can be defended: both stages' verdict in words, and what speaks for and against it.

The probe and `predict --report` show the same Examination. Its pictures are drawn apart, by `dfd.evidence`, for they
take longer than the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dfd import facts as file_facts
from dfd.credentials import plain
from dfd.facts import Facts
from dfd.inference import Detector, Verdict
from dfd.sources import Source, as_rgb
from dfd.stage import UNKNOWN, Scored, Stage

if TYPE_CHECKING:
    from pandas import DataFrame

    from dfd.evidence import Picture

LIMITS = (
    "The rates hold for images like those of the validation split. On photos of other sources the share that is called "
    "generated may be many times higher, and a generator that was not in training may pass for a photo or get a "
    "wrong name."
)


@dataclass(frozen=True)
class Crop:
    """What stage 1 says of one window."""

    top: int
    left: int
    size: int  # side, pixels
    p_fake: float  # calibrated as the image's


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
    pictures: dict[str, Picture] = field(default_factory=dict)  # filled by dfd.evidence.draw

    def without_image(self) -> Examination:
        """The same without what takes room: image and pictures."""
        return replace(self, image=None, pictures={})

    def asdict(self) -> dict[str, Any]:
        """Plain values, for JSON; without image and pictures."""
        crops = [vars(crop) for crop in self.crops]
        said = {"headline": self.headline, "sentences": list(self.sentences), "threshold": self.threshold}
        return {"name": self.name, **self.verdict.asdict(), **said, "by_crop": crops, "facts": self.facts.asdict()}


def examine(
    detector: Detector, source: Source, name: str | None = None, crops: int | None = None, mode: str | None = None
) -> Examination:
    """Judge one image, and say what the answer rests on.

    Args:
        detector: both stages.
        source: a path, a file's bytes, a PIL image, (H, W, 3) uint8 array, or (3, H, W) tensor in [0, 1].
        name: what to call it; the path's last part if there is one.
        crops, mode: as in `Stage.stream`.

    Raises:
        ImageError: a file that cannot be used, and why; `refused` makes an Examination of that.
        ValueError: pixels of another shape, type or range, or crops below 1.
        TypeError: no image.
    """
    image, found = as_rgb(source), file_facts.read(source)
    one, two = detector.scored(image, crops, mode)
    path = str(source) if isinstance(source, str | Path) else None
    verdict = detector.judge(path, one, two)
    p_crops = detector.stage1.probabilities(one.each)[:, 1].tolist()
    side = detector.stage1.crop_size
    windows = tuple(Crop(top, left, side, p) for (top, left), p in zip(one.corners, p_crops, strict=True))
    notes = _about_the_view(one)
    sentences = (
        *_about_the_score(verdict.p_fake, verdict.is_fake, detector),
        *_about_the_source(verdict, two, detector.stage2),
        _about_the_crops(windows, verdict.is_fake, detector.threshold),
        *(f"It was {note}." for note in notes),
    )
    shown = plain(name or (Path(path).name if path else "image"))
    return Examination(shown, verdict, detector.threshold, _headline(verdict), sentences, notes, windows, found, image)


def refused(name: str, reason: Exception | str) -> Examination:
    """The Examination of a file that cannot be used."""
    return Examination(plain(name), Verdict(name, error=plain(reason, 400)), headline="No answer")


def _headline(verdict: Verdict) -> str:
    if not verdict.is_fake:
        return "Called a photograph"
    return f"Called generated, by {'an unknown generator' if verdict.source == UNKNOWN else verdict.source}"


def _about_the_score(p: float, is_fake: bool, detector: Detector) -> Iterator[str]:
    side = "which it reaches" if is_fake else "which it does not reach"
    stage, cut = detector.stage1, detector.threshold
    yield f"The calibrated probability that it is generated is {p:.3f}. It is held against {cut:.3f}, {side}."
    if photos := stage.validation.get("photos"):
        yield f"That threshold calls {_share(photos, cut)} generated."
        yield f"{_share(photos, p).capitalize()} scored this high or higher."
        return
    points = stage.operating_points
    names = {"fpr_1": "at most 1 in 100", "fpr_5": "at most 1 in 20"}
    if at := next((text for key, text in names.items() if abs(points.get(key, -1) - cut) < 1e-9), None):
        yield f"That threshold calls {at} photos of the validation split generated."
    elif abs(points.get("balanced", -1) - cut) < 1e-9:
        yield "That threshold is the one that told photos and generated images of the validation split apart best."
    reached = next((text for key, text in names.items() if p >= points.get(key, np.inf)), None)
    if reached:
        yield f"{reached.capitalize()} photos of the validation split scored this high."
    elif "fpr_5" in points:
        yield "It is below the score that at most 1 in 20 photos of the validation split reach."


def _share(photos: Sequence[float], cut: float) -> str:
    """How many of these photos score at least this high: the count, and the round rate that it comes to."""
    count, total = sum(score >= cut for score in photos), len(photos)
    if count in (0, total):
        return f"{'each' if count else 'none'} of the {total} photos of the validation split"
    rate = f"1 in {total / count:.0f}" if total >= 1.5 * count else f"{min(10 * count // total, 9)} in 10"
    return f"about {rate} photos of the validation split ({count} of {total})"


def _about_the_source(verdict: Verdict, two: Scored, stage: Stage) -> Iterator[str]:
    ordered = sorted(verdict.p_source, key=verdict.p_source.get, reverse=True)
    shares = ", ".join(f"{name} {verdict.p_source[name]:.2f}" for name in ordered)
    if verdict.source == UNKNOWN:
        yield f"No training image of the known generators is near, so its generator is called unknown ({shares})."
    elif verdict.is_fake:
        near = " " if stage.strange_above is None else ", and its training images are near enough to name it "
        yield f"Of the known generators it looks most like {ordered[0]}{near}({shares})."
    else:
        yield f"Were it generated, {ordered[0]} would be the nearest of the known generators ({shares})."
    promise = "" if stage.coverage is None else f"; such a list holds the right one {stage.coverage:.0%} of the time"
    promise += ", for images like those of validation" if promise else ""
    if stage.conformal_quantile >= 1:
        yield "Validation had too few independent images to rule any generator out."
    elif len(verdict.candidates) == len(ordered):
        yield f"No generator can be ruled out{promise}."
    else:
        yield f"Generators that stay possible: {', '.join(verdict.candidates)}{promise}."


def _about_the_crops(crops: Sequence[Crop], is_fake: bool, threshold: float) -> str:
    if len(crops) == 1:
        return "It was judged on one crop, so there is no second view to compare."
    agree = sum((crop.p_fake >= threshold) == is_fake for crop in crops)
    scores = [crop.p_fake for crop in crops]
    spread = f"their scores go from {min(scores):.3f} to {max(scores):.3f}"
    much = "Its crops agree" if agree == len(crops) else f"{agree} of its {len(crops)} crops agree with the answer"
    also = f": all {len(crops)} give the same answer by themselves" if agree == len(crops) else " by themselves"
    return f"{much}{also}; {spread}."


def _about_the_view(one: Scored) -> tuple[str, ...]:
    if one.crops == one.needed:
        return ()
    return (f"scored on {one.crops} of {one.needed} crops, the limit for one image",)


def degraded(
    detector: Detector,
    source: Source,
    operator: str,
    levels: Iterable[float],
    crops: int | None = None,
    side: int | None = 1024,
) -> Iterator[dict[str, Any]]:
    """Score an image under one degradation, level by level, so that a caller may stop between two.

    Args:
        detector: both stages.
        source: as in `examine`.
        operator: none, or a name in dfd.degrade.OPERATORS.
        levels: of the operator, see `dfd.degrade.at_level`.
        crops: as in `Stage.stream`.
        side: larger images are first cut to their middle of this side, in pixels, for speed; none keeps them whole.

    Yields:
        For each level: level, p_fake, is_fake, source, and p_<generator> for each.

    Raises:
        ImageError, TypeError: as in `examine`.
        ValueError: an unknown operator or a level that it refuses, too.
    """
    from dfd.degrade import at_level, to_tensor

    image = as_rgb(source)
    if side and max(image.size) > side:
        width, height = (min(side, one) for one in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    pixels = to_tensor(image)
    for level in levels:
        given = image if operator == "none" else at_level(pixels, operator, level)
        verdict = detector.judge(None, *detector.scored(given, crops, None))
        named = {f"p_{name}": p for name, p in verdict.p_source.items()}
        said = {"p_fake": verdict.p_fake, "is_fake": verdict.is_fake, "source": verdict.source}
        yield {"level": level, **said, **named}


def under_degradation(
    detector: Detector, source: Source, operator: str, levels: Iterable[float], **options: Any
) -> DataFrame:
    """The curve of the score under one degradation: the rows of `degraded`, whose arguments it takes."""
    import pandas as pd

    return pd.DataFrame(list(degraded(detector, source, operator, levels, **options)))
