"""Examinations as HTML, a self-contained page or the probe's pieces: no script, nothing loaded, all escaped."""

from __future__ import annotations

import base64
import io
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from dfd import __version__, config
from dfd.app.evidence import Examination, draw
from dfd.app.examine import Stability, examine_or_refuse
from dfd.app.metadata import plain, sentence
from dfd.core.io import TEMPLATES, template, write_json, write_text
from dfd.data import layouts, manifest, sample
from dfd.inference.detector import Detector

SHEETS = {name: (TEMPLATES / f"{name}.css").read_text("utf-8") for name in ("style", "examination", "probe")}


def page(examinations: Iterable[Examination], title: str = "Real or generated?", model: str | None = None) -> str:
    """HTML of examinations with their pictures, judged by a run folder, the `model`.

    They are rendered one after another, so that no more than one image need be held at a time.
    """
    rows, articles = [], []
    for number, examination in enumerate(examinations, 1):
        rows.append(fragment("overview_row", examination, number))
        articles.append(fragment("article", examination, number))
    return template("examination.html.j2").render(
        rows=rows,
        articles=articles,
        title=title,
        model=None if model is None else plain(model),
        limits=sentence("limits"),
        style=SHEETS["style"] + SHEETS["examination"],
        version=__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
    )


def fragment(macro: str, *values: Any) -> Markup:
    """A piece of a page or of the probe: a macro of pieces.html.j2 with its values."""
    pieces = template("pieces.html.j2").make_module({"address": address, "sentence": sentence})
    return Markup(str(getattr(pieces, macro)(*values)).strip())


def style() -> str:
    """The sheet of the saved page's examinations and the probe's own, both for what has the class dfd-probe only."""
    return f"<style>.dfd-probe {{\n{SHEETS['examination']}\n}}\n{SHEETS['probe']}</style>"


def address(content: Image.Image | Path, side: int | None = None, format: str = "PNG") -> str:
    """An image, its longer side at most `side` pixels, or a file, as an address that needs no server."""
    if isinstance(content, Path):
        data, mime = content.read_bytes(), "text/html" if content.suffix == ".html" else "application/json"
    else:
        small = content.copy()
        small.thumbnail((side or content.width, side or content.height), Image.Resampling.LANCZOS)
        small.save(buffer := io.BytesIO(), format, quality=90)
        data, mime = buffer.getvalue(), f"image/{format.lower()}"
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


@dataclass(eq=False)
class Item:
    """One image that somebody gave the probe, and what is known of it so far."""

    name: str  # printable, not escaped
    source: Path | bytes = field(repr=False)
    examination: Examination | None = None
    stability: Stability | None = None  # from when it is shown; none where it was refused

    @property
    def is_judged(self) -> bool:
        """Whether there is an answer, and no refusal."""
        return self.examination is not None and self.examination.image is not None


def examples(cfg: config.Probe) -> list[Item]:
    """Test images of each class in turn, of different photos where the classes share them; else installed photos."""
    names = []
    try:
        table = manifest.load(cfg.out, cfg.data)
        rows = table[table["split"] == "test"].sort_values("path")
        classes = [paths.tolist() for _, paths in rows.groupby(["is_fake", "label"])["path"]]  # photos first
        for number in range(cfg.examples if classes else 0):
            paths = classes[number % len(classes)]
            names.append(paths[(2 * number + 1) * len(paths) // (2 * cfg.examples)])
    except (FileNotFoundError, layouts.ManifestError):
        pass
    items = [Item(name, Path(cfg.data) / name) for name in names if (Path(cfg.data) / name).is_file()]
    return items or [Item(photo.file, photo.path) for photo in sample.PHOTOS[: cfg.examples]]


def still(detector: Detector, items: Iterable[Item]) -> str:
    """The probe without widgets: the items examined, with all pictures and curves."""
    articles = []
    for item in items:
        examination = examine_or_refuse(detector, item.source, item.name)
        if examination.image:
            stability = Stability(examination.image, detector.threshold)
            deque(stability.compute(detector), maxlen=0)
            draw(detector, examination)
            examination.pictures["curve"] = stability.picture()
        articles.append(fragment("article", examination))
    return f'{style()}<div class="dfd-probe static">{"".join(articles)}</div>'


def save(folder: Path, detector: Detector, items: Iterable[Item]) -> list[Path]:
    """Write what this detector examined as `probe-<time>.html` and `.json` into a folder, and tell where they are.

    The folder is made if missing; no name of an uploaded file is ever a part of a path. Items that wait are left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    now, model = datetime.now(UTC), None if detector.run is None else str(detector.run)
    images, shown = [], []
    for item in items:
        if examination := item.examination:
            images.append(examination.asdict() | {"under_degradation": item.stability and item.stability.asdict()})
            if item.stability and item.stability.base:
                pictures = {"curve": item.stability.picture(), **examination.pictures}
                examination = replace(examination, pictures=pictures)
            shown.append(examination)
    record = {"dfd": __version__, "written": now.isoformat(timespec="seconds"), "model": model}
    path = folder / f"probe-{now:%Y%m%d-%H%M%S}.html"
    write_json(path.with_suffix(".json"), record | {"threshold": detector.threshold, "images": images})
    write_text(path, page(shown, "Probe: real or generated?", model))
    return [path, path.with_suffix(".json")]
