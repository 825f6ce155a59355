"""One image, one answer that can be defended: both stages' verdict in words, and whether it stands.

The probe and `predict --report` show the same Examination. Its pictures are drawn apart, by `dfd.app.evidence`: they
take longer than the answer.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from dfd.app.evidence import FAKE_COLOUR, REAL_COLOUR, Crop, Examination, Picture
from dfd.app.metadata import plain, read_facts
from dfd.core.images import Source, as_rgb
from dfd.core.io import template
from dfd.degrade.registry import DEGRADATIONS, at_level, compose, describe, to_tensor
from dfd.inference.decide import UNKNOWN
from dfd.inference.detector import Detector, Verdict

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
    p_crops = detector.stage1.probabilities(scored1.crop_logits)[:, 1].tolist()
    side = detector.stage1.crop_size
    windows = tuple(Crop(top, left, side, p) for (top, left), p in zip(scored1.corners, p_crops, strict=True))
    notes = ()
    if scored1.crops < scored1.needed:
        notes = (f"scored on {scored1.crops} of {scored1.needed} crops, the limit for one image",)
    p_source = verdict.p_source or {}
    stage2 = detector.stage2
    text = template("sentences.txt.j2").render(
        verdict=verdict,
        threshold=detector.threshold,
        photos=detector.stage1.validation.get("photos", ()),
        ordered=[(name, f"{p_source[name]:.2f}") for name in sorted(p_source, key=p_source.__getitem__, reverse=True)],
        unknown=UNKNOWN,
        knows_unknown=stage2.ood_threshold is not None,
        coverage=stage2.coverage,
        quantile=stage2.conformal_quantile,
        scores=p_crops,
        notes=notes,
    )
    sentences = tuple(line for line in text.splitlines() if line.strip())
    if not verdict.is_fake:
        headline = "Called a photograph"
    else:
        headline = f"Called generated, by {'an unknown generator' if verdict.source == UNKNOWN else verdict.source}"
    label = plain(name or (Path(path).name if path else "image"))
    return Examination(label, verdict, detector.threshold, headline, sentences, notes, windows, facts, image)


def refused(name: str, reason: Exception | str) -> Examination:
    """The Examination of a file that cannot be used."""
    return Examination(plain(name), Verdict(name, error=plain(reason, 400)), headline="No answer")


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


AXES = tuple(DEGRADATIONS[name] for name in ("rescale", "blur", "jpeg"))  # as images meet them, and sliders apply them
AT_REST = {axis.name: axis.neutral for axis in AXES}


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
            known = self.rows.setdefault(axis.name, [])
            for row in degraded(detector, self.image, axis.name, axis.curve[len(known) :]):
                known.append(row)
                yield len(known) == len(axis.curve)

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
            rows = self.rows.get(axis.name, [])
            if len(rows) == len(axis.curve):
                changed = [f"{row['level']:g}" for row in rows if row["is_fake"] != self.base.is_fake]
                result = f"changes at {', '.join(changed)}" if changed else f"stands at all {len(rows)} levels"
                parts.append(f"{axis.label} ({axis.unit}): {result}")
        where = " Judged on the middle of the image, for it is large." if self.is_cut else ""
        return f"{'; '.join(parts)}.{where}" if parts else ""

    def plot(self) -> Figure:
        """Score by level, one panel for each degradation; drawn without pyplot, so on any thread."""
        figure = Figure((9.9, 2.7), 100, layout="constrained")
        for axis, ax in zip(AXES, figure.subplots(1, len(AXES), sharey=True), strict=True):
            points = [(row["level"], row["p_fake"]) for row in self.rows.get(axis.name, [])]
            points += [(axis.neutral, self.base.p_fake)] if self.base else []
            levels, scores = zip(*sorted(points), strict=True) if points else ((), ())
            colours = [FAKE_COLOUR if score >= self.threshold else REAL_COLOUR for score in scores]
            ax.plot(levels, scores, color="0.6", lw=1.2, zorder=1)
            ax.scatter(levels, scores, c=colours or None, s=28, zorder=2)
            ax.axhline(self.threshold, color="0.3", lw=1, ls="--")
            if self.now and self.now[0][axis.name] != axis.neutral:
                marker = {"mfc": "none", "mec": "black", "mew": 1.8, "ms": 12}
                ax.plot(self.now[0][axis.name], self.now[1].p_fake, "o", **marker, zorder=3, clip_on=False)
            low, high = min(axis.steps), max(axis.steps)
            ends = low - 0.04 * (high - low), high + 0.04 * (high - low)
            is_jpeg = axis.name == "jpeg"  # the best quality stands on the left, as no degradation does elsewhere
            ax.set(xlim=ends[::-1] if is_jpeg else ends, ylim=(-0.05, 1.05))
            ax.set(xlabel=f"{axis.label}: {axis.unit}{' (100: none)' if is_jpeg else ''}")
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
            if rows := self.rows.get(axis.name):
                parts.append(axis.label + " " + ", ".join(f"{row['level']:g}: {row['p_fake']:.2f}" for row in rows))
        if self.now:
            parts.append(f"where the sliders stand {self.now[1].p_fake:.2f}")
        return "; ".join(parts)

    def picture(self) -> Picture:
        """The curve as evidence on the saved page."""
        image = Image.open(io.BytesIO(self.png())).convert("RGB")
        return Picture("Does the answer stand?", f"{self.summary()} {self.CAPTION}".strip(), (("", image),))


def chain(levels: dict[str, float]) -> list[tuple[str, float]]:
    """The steps of dfd.degrade.registry.compose; neutral levels are left out."""
    return [(axis.name, levels[axis.name]) for axis in AXES if levels[axis.name] != axis.neutral]
