"""Does an answer stand? One image under JPEG, blur and rescaling: the levels, the curve of the score, the words."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from dfd.degrade import compose, describe, to_tensor
from dfd.evidence import FAKE, REAL, Picture
from dfd.examine import degraded
from dfd.inference import Detector, Verdict

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

    operator: str  # a name in dfd.degrade.OPERATORS
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
    """The steps of dfd.degrade.compose; neutral levels are left out."""
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
