"""The images that the probe can show at once, and the still view of them that a headless report gets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dfd import config, evidence, fragments, manifest, sample, stress
from dfd.examine import Examination, examine, refused
from dfd.images import ImageError
from dfd.inference import Detector

if TYPE_CHECKING:
    from IPython.display import HTML


@dataclass(eq=False)
class Item:
    """One image that somebody gave, and what is known of it so far."""

    name: str  # printable, not escaped
    source: Path | bytes = field(repr=False)
    examination: Examination | None = None
    trial: stress.Trial | None = None

    def says(self) -> str:
        """The line in the list."""
        verdict = self.examination and self.examination.verdict
        score = "" if not verdict or verdict.error else f" ({verdict.p_fake:.2f})"
        return f"{self.name}: {self.examination.headline if verdict else 'waiting'}{score}"


def gallery(cfg: config.Probe) -> list[Item]:
    """Test images of each class in turn, of different photos where the classes share them; else installed photos."""
    try:
        table = manifest.load(cfg.out, cfg.data)
        rows = table[table["split"] == "test"].sort_values("path")
        classes = {label: one["path"].tolist() for label, one in rows.groupby("label")}
        labels = sorted(classes, key=lambda label: (label != "RealPhotos", label))
        names = []
        for number in range(cfg.examples):
            paths = classes[labels[number % len(labels)]]
            names.append(paths[(2 * number + 1) * len(paths) // (2 * cfg.examples)])
        found = [Item(name, Path(cfg.data) / name) for name in names]
    except (FileNotFoundError, manifest.ManifestError):
        found = []
    found = [item for item in found if item.source.is_file()]
    return found or [Item(photo.file, photo.path) for photo in sample.PHOTOS[: cfg.examples]]


def still(detector: Detector, items: Iterable[Item]) -> HTML:
    """The examples' verdicts, evidence and curves as HTML without widgets."""
    from IPython.display import HTML

    parts = []
    for item in items:
        try:
            one = examine(detector, item.source, item.name)
        except ImageError as error:
            parts.append(fragments.answer(refused(item.name, error)))
            continue
        list(evidence.draw(detector, one))
        attempt = stress.trial(one.image, detector.threshold)
        list(stress.run(detector, attempt))
        one.pictures["curve"] = stress.picture(attempt)
        parts += [fragments.answer(one), fragments.evidence(one), fragments.facts(one)]
    return HTML(f'{fragments.style()}<div class="dfd-probe static">{"".join(parts)}</div>')
