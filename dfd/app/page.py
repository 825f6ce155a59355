"""Examinations as HTML, a self-contained page or the probe's pieces: no script, nothing loaded, all escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from dfd import __version__
from dfd.app.evidence import Examination
from dfd.app.examine import LIMITS, Stability
from dfd.app.metadata import plain
from dfd.core.io import TEMPLATES, template, write_json, write_text
from dfd.inference.detector import Detector

IMAGE_SIDE = 768  # pixels; the longer side of an image on a page
THUMB_SIDE = 192  # pixels; shown at half of it


def page(examinations: Iterable[Examination], title: str = "Real or generated?", model: str | None = None) -> str:
    """Render examinations one after another, so that no more than one image need be held at a time.

    Args:
        examinations: with the pictures that are to be shown.
        title: of the page.
        model: the run folder that judged.

    Returns:
        HTML, light or dark as the reader's system is.
    """
    return template("examination.html.j2").render(
        sections=[section(examination) for examination in examinations],
        title=title,
        model=None if model is None else plain(model),
        limits=LIMITS,
        style="\n".join((TEMPLATES / name).read_text("utf-8") for name in ("style.css", "examination.css")),
        version=__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
    )


def fragment(macro: str, *values: Any) -> str:
    """A piece of the probe: a macro of probe.html.j2 with its values; an Examination stands for its `section`.

    answer and facts do not show the pictures, so their images are not encoded for them.
    """
    given = []
    for value in values:
        if isinstance(value, Examination):
            value = section(value if macro == "evidence" else replace(value, pictures={}))
        given.append(value)
    return str(getattr(template("probe.html.j2").module, macro)(*given))


def style() -> str:
    """The sheet of the saved page's examinations and the probe's own, both for what has the class dfd-probe only."""
    shared, own = ((TEMPLATES / name).read_text("utf-8") for name in ("examination.css", "probe.css"))
    return f"<style>.dfd-probe {{\n{shared}\n}}\n{own}</style>"


def section(examination: Examination) -> dict[str, Any]:
    """What a template shows of one examination; its images are encoded, and may go."""
    pictures = []
    for picture in examination.pictures.values():
        tiles = [{"label": label, "source": data_address(encoded(image, "PNG"))} for label, image in picture.tiles]
        pictures.append({"title": picture.title, "caption": picture.caption, "tiles": tiles})
    image = examination.image and encoded(smaller(examination.image, IMAGE_SIDE), "JPEG")
    texts = {name: getattr(examination, name) for name in ("name", "headline", "verdict", "threshold", "sentences")}
    return texts | {
        "facts": examination.facts,
        "shown": image and data_address(image, "image/jpeg"),
        "pictures": pictures,
    }


def smaller(image: Image.Image, side: int) -> Image.Image:
    """A copy whose longer side is at most `side` pixels."""
    copy = image.copy()
    copy.thumbnail((side, side), Image.Resampling.LANCZOS)
    return copy


def encoded(image: Image.Image, format: str = "PNG") -> bytes:
    """The bytes of an image file."""
    image.save(buffer := io.BytesIO(), format, quality=90)
    return buffer.getvalue()


def data_address(data: bytes | None, mime: str = "image/png") -> str | None:
    """A file's bytes as an address that needs no server."""
    return data and f"data:{mime};base64,{base64.b64encode(data).decode()}"


def thumb(image: Image.Image, alt: str) -> str:
    """A small square picture, cut from the middle."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    small = image.crop((left, top, left + side, top + side)).resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.LANCZOS)
    return fragment("thumb", data_address(encoded(small, "JPEG"), "image/jpeg"), alt)


def save(folder: Path, detector: Detector, pairs: Sequence[tuple[Examination, Stability | None]]) -> tuple[Path, Path]:
    """Write `probe-<time>.html` and `.json` into a folder, which is made if missing, and tell where they are.

    Args:
        folder: no name of an uploaded file is ever a part of a path.
        detector: the one that judged.
        pairs: examinations with the pictures that are to be shown, and their curves where there are any.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    now, model = datetime.now(UTC), None if detector.run is None else str(detector.run)
    path = folder / f"probe-{now:%Y%m%d-%H%M%S}.html"
    images, shown = [], []
    for examination, stability in pairs:
        images.append(examination.asdict() | {"under_degradation": stability and stability.asdict()})
        if stability and stability.base:
            examination = replace(examination, pictures={"curve": stability.picture(), **examination.pictures})
        shown.append(examination)
    record = {"dfd": __version__, "written": now.isoformat(timespec="seconds"), "model": model}
    write_json(path.with_suffix(".json"), record | {"threshold": detector.threshold, "images": images})
    write_text(path, page(shown, "Probe: real or generated?", model))
    return path, path.with_suffix(".json")
