"""One image, one answer that can be defended: both stages' verdict in words, and what speaks for and against it.

The probe and `predict --report` show the same Examination. Its pictures are drawn apart, by `dfd.app.evidence`, for they
take longer than the answer.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from dfd.app import metadata
from dfd.app.evidence import FAKE, REAL, Crop, Examination, Picture
from dfd.app.metadata import plain
from dfd.core.images import Source, as_rgb
from dfd.degrade.registry import compose, describe, to_tensor
from dfd.inference.detector import Detector, Verdict
from dfd.inference.stage import UNKNOWN, Scored, Stage

if TYPE_CHECKING:
    from pandas import DataFrame

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
    image, found = as_rgb(source), metadata.read_facts(source)
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
        near = " " if stage.ood_threshold is None else ", and its training images are near enough to name it "
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
        operator: none, or a name in dfd.degrade.registry.OPERATORS.
        levels: of the operator, see `dfd.degrade.registry.at_level`.
        crops: as in `Stage.stream`.
        side: larger images are first cut to their middle of this side, in pixels, for speed; none keeps them whole.

    Yields:
        For each level: level, p_fake, is_fake, source, and p_<generator> for each.

    Raises:
        ImageError, TypeError: as in `examine`.
        ValueError: an unknown operator or a level that it refuses, too.
    """
    from dfd.degrade.registry import at_level, to_tensor

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


SIDE = 1024  # pixels; of a larger image the middle is used, so that a slider answers soon
PREVIEW = 384  # pixels; the longer side of the picture beside the sliders
CURVE_INCHES, CURVE_DPI = (9.9, 2.7), 100
CAPTION = (
    "Dots: the score after one degradation alone, orange where it is called generated. Dashed: the threshold. Ring: "
    "where a moved slider stands, with the score after all of them."
)


@dataclass(frozen=True)
class Axis:
    """One degradation: its slider and its part of the curve."""

    operator: str  # a name in dfd.degrade.registry.OPERATORS
    name: str
    unit: str
    neutral: float  # the level that stands for an image as it is
    levels: tuple[float, ...]  # of the curve
    steps: tuple[float, ...]  # of the slider, neutral among them


AXES = (
    Axis("rescale", "Rescale", "factor", 1.0, (0.5, 0.75, 1.25, 1.5, 2.0), tuple(np.arange(5, 41) / 20)),
    Axis("blur", "Blur", "sigma, pixels", 0.0, (0.5, 1.0, 1.5, 2.0, 3.0), tuple(np.arange(0, 31) / 10)),
    Axis("jpeg", "JPEG", "quality", 100.0, (95, 85, 75, 65, 50, 30), (100.0, *range(95, 9, -1))),
)  # in the order in which images meet them, and the sliders apply them
Levels = Mapping[str, float]  # operator -> level


@dataclass(eq=False)
class Trial:
    """What is known of one image under degradation; rows are added as they are computed."""

    image: Image.Image  # RGB, at most SIDE pixels a side
    is_cut: bool
    threshold: float
    base: Verdict | None = None  # of this image as it is
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # operator -> rows of `degraded`
    now: tuple[dict[str, float], Verdict] | None = None  # where the sliders stand, and the answer there

    def asdict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        now = None if self.now is None else {"levels": self.now[0], **self.now[1].asdict()}
        return {
            "middle_only": self.is_cut,
            "p_fake": self.base and self.base.p_fake,
            "curve": self.rows,
            "sliders": now,
        }


def trial(image: Image.Image, threshold: float) -> Trial:
    """Begin a trial of an RGB image; of one larger than SIDE the middle is taken."""
    width, height = (min(SIDE, side) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    is_cut = (width, height) != image.size
    return Trial(image.crop((left, top, left + width, top + height)) if is_cut else image, is_cut, threshold)


def run(detector: Detector, one: Trial) -> Iterator[str]:
    """Compute the curve, level by level, and name each degradation when it is done; what is known is kept."""
    if one.base is None:
        one.base = detector.judge(None, *detector.scored(one.image, None, None))
        yield ""
    for axis in AXES:
        known = one.rows.setdefault(axis.operator, [])
        for row in degraded(detector, one.image, axis.operator, axis.levels[len(known) :], side=None):
            known.append(row)
            yield axis.name if len(known) == len(axis.levels) else ""


def at(detector: Detector, image: Image.Image, levels: Levels) -> tuple[Verdict, Image.Image]:
    """Apply the sliders' levels to an image one after another; give the answer, and what the image became."""
    pixels = compose(to_tensor(image), chain(levels))
    verdict = detector.judge(None, *detector.scored(pixels, None, None))
    values = (pixels[0] * 255).round().byte().permute(1, 2, 0).numpy()
    return verdict, Image.fromarray(values)


def chain(levels: Levels) -> list[tuple[str, float]]:
    """The steps of dfd.degrade.registry.compose; neutral levels are left out."""
    return [(axis.operator, levels[axis.operator]) for axis in AXES if levels[axis.operator] != axis.neutral]


def words(levels: Levels, verdict: Verdict, base: Verdict | None) -> str:
    """What became of the answer under these levels, in a sentence."""
    what = describe(chain(levels))
    if what == "unchanged":
        return f"Sliders at rest: the score is {verdict.p_fake:.3f}. Move one to see whether the answer stands."
    said = "generated" if verdict.is_fake else "a photograph"
    stands = (
        "" if base is None else (" The answer stands." if verdict.is_fake == base.is_fake else " The answer changes.")
    )
    named = f", by {verdict.source}" if verdict.is_fake else ""
    return f"After {what}: score {verdict.p_fake:.3f}, called {said}{named}.{stands}"


def summary(one: Trial) -> str:
    """At which levels the answer of stage 1 stays, in words, for the degradations that are done."""
    said = []
    for axis in AXES:
        rows = one.rows.get(axis.operator, [])
        if len(rows) == len(axis.levels):
            changed = [f"{row['level']:g}" for row in rows if row["is_fake"] != one.base.is_fake]
            told = f"changes at {', '.join(changed)}" if changed else f"stands at all {len(rows)} levels"
            said.append(f"{axis.name} ({axis.unit}): {told}")
    where = " Judged on the middle of the image, for it is large." if one.is_cut else ""
    return f"{'; '.join(said)}.{where}" if said else ""


def plot(one: Trial) -> Figure:
    """Score by level, one panel for each degradation; drawn without pyplot, so on any thread."""
    figure = Figure(CURVE_INCHES, CURVE_DPI, layout="constrained")
    for axis, ax in zip(AXES, figure.subplots(1, len(AXES), sharey=True), strict=True):
        points = [(row["level"], row["p_fake"]) for row in one.rows.get(axis.operator, [])]
        points += [(axis.neutral, one.base.p_fake)] if one.base else []
        levels, scores = zip(*sorted(points), strict=True) if points else ((), ())
        colours = [FAKE if score >= one.threshold else REAL for score in scores]
        ax.plot(levels, scores, color="0.6", lw=1.2, zorder=1)
        ax.scatter(levels, scores, c=colours or None, s=28, zorder=2)
        ax.axhline(one.threshold, color="0.3", lw=1, ls="--")
        if one.now and one.now[0][axis.operator] != axis.neutral:
            marker = {"mfc": "none", "mec": "black", "mew": 1.8, "ms": 12}
            ax.plot(one.now[0][axis.operator], one.now[1].p_fake, "o", **marker, zorder=3, clip_on=False)
        low, high = min(axis.steps), max(axis.steps)
        ends = low - 0.04 * (high - low), high + 0.04 * (high - low)
        ax.set(xlim=ends[:: -1 if axis.operator == "jpeg" else 1], ylim=(-0.05, 1.05))
        ax.set(xlabel=f"{axis.name}: {axis.unit}{' (100: none)' if axis.operator == 'jpeg' else ''}")
        ax.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set(ylabel="score")
    return figure


def png(one: Trial) -> bytes:
    """The curve as a PNG file."""
    plot(one).savefig(buffer := io.BytesIO(), format="png")
    return buffer.getvalue()


def small(image: Image.Image) -> bytes:
    """A picture for the place beside the sliders, as a PNG file."""
    shown = image.copy()
    shown.thumbnail((PREVIEW, PREVIEW), Image.Resampling.LANCZOS)
    shown.save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def alt(one: Trial) -> str:
    """The curve in words, for who does not see it."""
    parts = [f"Score by degradation; threshold {one.threshold:.3f}"]
    if one.base:
        parts.append(f"as it is {one.base.p_fake:.2f}")
    for axis in AXES:
        if rows := one.rows.get(axis.operator):
            parts.append(axis.name + " " + ", ".join(f"{row['level']:g}: {row['p_fake']:.2f}" for row in rows))
    if one.now:
        parts.append(f"where the sliders stand {one.now[1].p_fake:.2f}")
    return "; ".join(parts)


def picture(one: Trial) -> Picture:
    """The curve as evidence on the saved page."""
    image = Image.open(io.BytesIO(png(one))).convert("RGB")
    return Picture("curve", "Does the answer stand?", f"{summary(one)} {CAPTION}".strip(), (("", image),))


def rest() -> dict[str, float]:
    """The levels of sliders that nobody moved."""
    return {axis.operator: axis.neutral for axis in AXES}


def options(axis: Axis) -> Sequence[tuple[str, float]]:
    """What the slider of an axis offers: what is shown, and the level."""
    return [("none" if step == axis.neutral else f"{step:g}", float(step)) for step in axis.steps]
