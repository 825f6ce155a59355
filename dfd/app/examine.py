"""One image, one answer that can be defended: both stages' verdict in words, and whether it stands.

The probe and `predict --report` show the same Examination. Its pictures are drawn apart, by `dfd.app.evidence`, for they
take longer than the answer.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from dfd.app.evidence import FAKE_COLOUR, REAL_COLOUR, Crop, Examination, Picture
from dfd.app.metadata import plain, read_facts
from dfd.core.images import Source, as_rgb
from dfd.degrade.registry import at_level, compose, describe, to_tensor
from dfd.inference.detector import Detector, Verdict
from dfd.inference.stage import UNKNOWN, Scored, Stage

LIMITS = (
    "The rates hold for images like those of the validation split. On photos of other sources the share that is called "
    "generated may be many times higher, and a generator that was not in training may pass for a photo or get a "
    "wrong name."
)


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
    image, facts = as_rgb(source), read_facts(source)
    scored1, scored2 = detector.scored(image, crops, mode)
    path = str(source) if isinstance(source, str | Path) else None
    verdict = detector.judge(path, scored1, scored2)
    p_crops = detector.stage1.probabilities(scored1.each)[:, 1].tolist()
    side = detector.stage1.crop_size
    windows = tuple(Crop(top, left, side, p) for (top, left), p in zip(scored1.corners, p_crops, strict=True))
    notes = ()
    if scored1.crops < scored1.needed:
        notes = (f"scored on {scored1.crops} of {scored1.needed} crops, the limit for one image",)
    sentences = (
        *_about_the_score(verdict.p_fake, verdict.is_fake, detector),
        *_about_the_source(verdict, scored2, detector.stage2),
        _about_the_crops(windows, verdict.is_fake, detector.threshold),
        *(f"It was {note}." for note in notes),
    )
    if not verdict.is_fake:
        headline = "Called a photograph"
    else:
        headline = f"Called generated, by {'an unknown generator' if verdict.source == UNKNOWN else verdict.source}"
    label = plain(name or (Path(path).name if path else "image"))
    return Examination(label, verdict, detector.threshold, headline, sentences, notes, windows, facts, image)


def refused(name: str, reason: Exception | str) -> Examination:
    """The Examination of a file that cannot be used."""
    return Examination(plain(name), Verdict(name, error=plain(reason, 400)), headline="No answer")


def _about_the_score(p_fake: float, is_fake: bool, detector: Detector) -> Iterator[str]:
    threshold = detector.threshold
    side = "which it reaches" if is_fake else "which it does not reach"
    held = f"It is held against {threshold:.3f}, {side}."
    yield f"The calibrated probability that it is generated is {p_fake:.3f}. {held}"
    if photos := detector.stage1.validation.get("photos"):
        yield f"That threshold calls {_share(photos, threshold)} generated."
        yield f"{_share(photos, p_fake).capitalize()} scored this high or higher."


def _share(photos: Sequence[float], threshold: float) -> str:
    """How many of these photos score at least this high: the count, and the round rate that it comes to."""
    count, total = sum(score >= threshold for score in photos), len(photos)
    if count in (0, total):
        return f"{'each' if count else 'none'} of the {total} photos of the validation split"
    rate = f"1 in {total / count:.0f}" if total >= 1.5 * count else f"{min(10 * count // total, 9)} in 10"
    return f"about {rate} photos of the validation split ({count} of {total})"


def _about_the_source(verdict: Verdict, scored: Scored, stage: Stage) -> Iterator[str]:
    ordered = sorted(verdict.p_source, key=verdict.p_source.get, reverse=True)
    shares = ", ".join(f"{name} {verdict.p_source[name]:.2f}" for name in ordered)
    if verdict.source == UNKNOWN:
        yield f"No training image of the known generators is near, so its generator is called unknown ({shares})."
    elif verdict.is_fake:
        near = " " if stage.ood_threshold is None else ", and its training images are near enough to name it "
        yield f"Of the known generators it looks most like {ordered[0]}{near}({shares})."
    else:
        yield f"Were it generated, {ordered[0]} would be the nearest of the known generators ({shares})."
    promise = ""
    if stage.coverage is not None:
        promise = (
            f"; such a list holds the right one {stage.coverage:.0%} of the time, for images like those of validation"
        )
    if stage.conformal_quantile >= 1:
        yield "Validation had too few independent images to rule any generator out."
    elif len(verdict.candidates) == len(ordered):
        yield f"No generator can be ruled out{promise}."
    else:
        yield f"Generators that stay possible: {', '.join(verdict.candidates)}{promise}."


def _about_the_crops(crops: Sequence[Crop], is_fake: bool, threshold: float) -> str:
    if len(crops) == 1:
        return "It was judged on one crop, so there is no second view to compare."
    scores = [crop.p_fake for crop in crops]
    spread = f"their scores go from {min(scores):.3f} to {max(scores):.3f}"
    agree = sum((score >= threshold) == is_fake for score in scores)
    if agree == len(crops):
        return f"Its crops agree: all {len(crops)} give the same answer by themselves; {spread}."
    return f"{agree} of its {len(crops)} crops agree with the answer by themselves; {spread}."


SIDE = 1024  # pixels; of a larger image the middle is degraded, so that a slider answers soon


def middle(image: Image.Image, side: int = SIDE) -> Image.Image:
    """The image, or its middle of at most `side` pixels each way."""
    width, height = (min(side, length) for length in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def degraded(detector: Detector, source: Source, operator: str, levels: Iterable[float]) -> Iterator[dict[str, Any]]:
    """Score the middle of an image under one degradation, level by level, so that a caller may stop between two.

    Args:
        detector: both stages.
        source: as in `examine`; the middle of SIDE pixels is used.
        operator: none, or a name in dfd.degrade.registry.OPERATORS.
        levels: of the operator, see `dfd.degrade.registry.at_level`.

    Yields:
        For each level: level, p_fake, is_fake, source, and p_<generator> for each.

    Raises:
        ImageError, TypeError: as in `examine`.
        ValueError: an unknown operator or a level that it refuses, too.
    """
    image = middle(as_rgb(source))
    pixels = to_tensor(image)
    for level in levels:
        view = image if operator == "none" else at_level(pixels, operator, level)
        verdict = detector.judge(None, *detector.scored(view, None, None))
        row = {"level": level, "p_fake": verdict.p_fake, "is_fake": verdict.is_fake, "source": verdict.source}
        yield row | {f"p_{name}": p for name, p in verdict.p_source.items()}


def under_degradation(detector: Detector, source: Source, operator: str, levels: Iterable[float]) -> pd.DataFrame:
    """The curve of the score under one degradation: the rows of `degraded`, whose arguments it takes."""
    return pd.DataFrame(list(degraded(detector, source, operator, levels)))


@dataclass(frozen=True)
class Axis:
    """One degradation: its slider and its part of the curve."""

    operator: str  # a name in dfd.degrade.registry.OPERATORS
    name: str
    unit: str
    neutral: float  # the level that stands for an image as it is
    levels: tuple[float, ...]  # of the curve
    steps: tuple[float, ...]  # of the slider, neutral among them

    def options(self) -> list[tuple[str, float]]:
        """What the slider offers: what is shown, and the level."""
        return [("none" if step == self.neutral else f"{step:g}", float(step)) for step in self.steps]


AXES = (
    Axis("rescale", "Rescale", "factor", 1.0, (0.5, 0.75, 1.25, 1.5, 2.0), tuple(np.arange(5, 41) / 20)),
    Axis("blur", "Blur", "sigma, pixels", 0.0, (0.5, 1.0, 1.5, 2.0, 3.0), tuple(np.arange(0, 31) / 10)),
    Axis("jpeg", "JPEG", "quality", 100.0, (95, 85, 75, 65, 50, 30), (100.0, *range(95, 9, -1))),
)  # in the order in which images meet them, and the sliders apply them
AT_REST = {axis.operator: axis.neutral for axis in AXES}


@dataclass(eq=False)
class Stability:
    """Does the answer stand? One image under JPEG, blur and rescaling; rows are added as they are computed."""

    image: Image.Image  # RGB, at most SIDE pixels a side
    is_cut: bool
    threshold: float
    base: Verdict | None = None  # of this image as it is
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # operator -> rows of `degraded`
    now: tuple[dict[str, float], Verdict] | None = None  # where the sliders stand, and the answer there

    CAPTION = (
        "Dots: the score after one degradation alone, orange where it is called generated. Dashed: the threshold. "
        "Ring: where a moved slider stands, with the score after all of them."
    )

    @classmethod
    def of(cls, image: Image.Image, threshold: float) -> Stability:
        """Begin with an RGB image; of one larger than SIDE the middle is taken."""
        return cls(middle(image), max(image.size) > SIDE, threshold)

    def asdict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        now = None if self.now is None else {"levels": self.now[0], **self.now[1].asdict()}
        p_fake = self.base and self.base.p_fake
        return {"middle_only": self.is_cut, "p_fake": p_fake, "curve": self.rows, "sliders": now}

    def compute(self, detector: Detector) -> Iterator[bool]:
        """Compute the curve level by level, telling whether a degradation is done; what is known is kept."""
        if self.base is None:
            self.base = detector.judge(None, *detector.scored(self.image, None, None))
            yield False
        for axis in AXES:
            known = self.rows.setdefault(axis.operator, [])
            for row in degraded(detector, self.image, axis.operator, axis.levels[len(known) :]):
                known.append(row)
                yield len(known) == len(axis.levels)

    def judge_at(self, detector: Detector, levels: dict[str, float]) -> tuple[Verdict, Image.Image]:
        """Apply the sliders' levels one after another; give the answer, and what the image became."""
        pixels = compose(to_tensor(self.image), chain(levels))
        verdict = detector.judge(None, *detector.scored(pixels, None, None))
        return verdict, Image.fromarray((pixels[0] * 255).round().byte().permute(1, 2, 0).numpy())

    def sentence(self, levels: dict[str, float], verdict: Verdict) -> str:
        """What became of the answer under these levels."""
        steps = chain(levels)
        if not steps:
            return f"Sliders at rest: the score is {verdict.p_fake:.3f}. Move one to see whether the answer stands."
        called = f"generated, by {verdict.source}" if verdict.is_fake else "a photograph"
        stands = ""
        if self.base is not None:
            stands = " The answer stands." if verdict.is_fake == self.base.is_fake else " The answer changes."
        return f"After {describe(steps)}: score {verdict.p_fake:.3f}, called {called}.{stands}"

    def summary(self) -> str:
        """At which levels the answer of stage 1 stays, in words, for the degradations that are done."""
        parts = []
        for axis in AXES:
            rows = self.rows.get(axis.operator, [])
            if len(rows) == len(axis.levels):
                changed = [f"{row['level']:g}" for row in rows if row["is_fake"] != self.base.is_fake]
                result = f"changes at {', '.join(changed)}" if changed else f"stands at all {len(rows)} levels"
                parts.append(f"{axis.name} ({axis.unit}): {result}")
        where = " Judged on the middle of the image, for it is large." if self.is_cut else ""
        return f"{'; '.join(parts)}.{where}" if parts else ""

    def plot(self) -> Figure:
        """Score by level, one panel for each degradation; drawn without pyplot, so on any thread."""
        figure = Figure((9.9, 2.7), 100, layout="constrained")
        for axis, ax in zip(AXES, figure.subplots(1, len(AXES), sharey=True), strict=True):
            points = [(row["level"], row["p_fake"]) for row in self.rows.get(axis.operator, [])]
            points += [(axis.neutral, self.base.p_fake)] if self.base else []
            levels, scores = zip(*sorted(points), strict=True) if points else ((), ())
            colours = [FAKE_COLOUR if score >= self.threshold else REAL_COLOUR for score in scores]
            ax.plot(levels, scores, color="0.6", lw=1.2, zorder=1)
            ax.scatter(levels, scores, c=colours or None, s=28, zorder=2)
            ax.axhline(self.threshold, color="0.3", lw=1, ls="--")
            if self.now and self.now[0][axis.operator] != axis.neutral:
                marker = {"mfc": "none", "mec": "black", "mew": 1.8, "ms": 12}
                ax.plot(self.now[0][axis.operator], self.now[1].p_fake, "o", **marker, zorder=3, clip_on=False)
            low, high = min(axis.steps), max(axis.steps)
            ends = low - 0.04 * (high - low), high + 0.04 * (high - low)
            is_jpeg = axis.operator == "jpeg"  # the best quality stands on the left, as no degradation does elsewhere
            ax.set(xlim=ends[::-1] if is_jpeg else ends, ylim=(-0.05, 1.05))
            ax.set(xlabel=f"{axis.name}: {axis.unit}{' (100: none)' if is_jpeg else ''}")
            ax.spines[["top", "right"]].set_visible(False)
        figure.axes[0].set(ylabel="score")
        return figure

    def png(self) -> bytes:
        """The curve as a PNG file."""
        self.plot().savefig(buffer := io.BytesIO(), format="png")
        return buffer.getvalue()

    def alt(self) -> str:
        """The curve in words, for who does not see it."""
        parts = [f"Score by degradation; threshold {self.threshold:.3f}"]
        if self.base:
            parts.append(f"as it is {self.base.p_fake:.2f}")
        for axis in AXES:
            if rows := self.rows.get(axis.operator):
                parts.append(axis.name + " " + ", ".join(f"{row['level']:g}: {row['p_fake']:.2f}" for row in rows))
        if self.now:
            parts.append(f"where the sliders stand {self.now[1].p_fake:.2f}")
        return "; ".join(parts)

    def picture(self) -> Picture:
        """The curve as evidence on the saved page."""
        image = Image.open(io.BytesIO(self.png())).convert("RGB")
        return Picture("Does the answer stand?", f"{self.summary()} {self.CAPTION}".strip(), (("", image),))


def chain(levels: dict[str, float]) -> list[tuple[str, float]]:
    """The steps of dfd.degrade.registry.compose; neutral levels are left out."""
    return [(axis.operator, levels[axis.operator]) for axis in AXES if levels[axis.operator] != axis.neutral]
