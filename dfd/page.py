"""Examinations as one self-contained HTML page: no script, nothing loaded, everything foreign escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from dfd import __version__
from dfd.credentials import plain
from dfd.examine import LIMITS, Examination
from dfd.facts import Facts
from dfd.progress import size

TEMPLATES = Path(__file__).parent / "templates"
SHOWN = 768  # pixels; the longer side of an image on a page


def page(examinations: Iterable[Examination], title: str = "Real or generated?", model: str | None = None) -> str:
    """Render examinations one after another, so that no more than one image need be held at a time.

    Args:
        examinations: with the pictures that are to be shown.
        title: of the page.
        model: the run folder that judged.

    Returns:
        HTML, light or dark as the reader's system is.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    style = "\n".join((TEMPLATES / name).read_text("utf-8") for name in ("style.css", "examination.css"))
    return environment.get_template("examination.html.j2").render(
        sections=[section(one) for one in examinations],
        title=title,
        model=None if model is None else plain(model),
        limits=LIMITS,
        style=style,
        version=__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
    )


def section(one: Examination) -> dict[str, Any]:
    """What the template shows of one examination; its images are encoded, and may go."""
    pictures = []
    for picture in one.pictures.values():
        tiles = [{"label": label, "source": _data(image, "PNG")} for label, image in picture.tiles]
        pictures.append({"title": picture.title, "caption": picture.caption, "tiles": tiles})
    return {
        "name": one.name,
        "headline": one.headline,
        "verdict": one.verdict,
        "threshold": one.threshold,
        "sentences": one.sentences,
        "shown": None if one.image is None else _data(_smaller(one.image), "JPEG"),
        "pictures": pictures,
        "facts": _rows(one.facts),
        "details": _details(one.facts),
    }


def _rows(facts: Facts) -> list[tuple[str, str]]:
    """The facts that there are, as text."""
    rows = []
    if facts.width:
        rows.append(("Pixels", f"{facts.width} × {facts.height}, {facts.mode}"))
    if facts.format:
        frames = f", {facts.frames} frames or pages; the first was judged" if (facts.frames or 1) > 1 else ""
        rows.append(("Format", facts.format + frames))
    if facts.bytes is not None:
        rows += [("Size", size(facts.bytes)), ("SHA-256", facts.sha256)]
    if facts.jpeg_tables:
        near = "no table to tell from" if facts.jpeg_quality is None else f"nearest to libjpeg's {facts.jpeg_quality}"
        rows.append(("JPEG quality", f"{near}, chroma {facts.subsampling or 'none'}"))
    if facts.bytes is not None:
        rows.append(("EXIF", f"{len(facts.exif)} entries" if facts.exif else "none"))
    signed = facts.credentials
    rows.append(("Credentials (C2PA)", f"{signed.state.capitalize()}. {signed.reason}"))
    said = {"Signer, as it says": signed.signer, "Signed at": signed.signed_at, "Software": signed.made_with}
    rows += [(label, value) for label, value in said.items() if value]
    if signed.says:
        rows.append(("They say", "; ".join(signed.says)))
    if facts.note:
        rows.append(("Not readable", facts.note))
    return rows


def _details(facts: Facts) -> list[tuple[str, dict[str, str] | str]]:
    found: list[tuple[str, dict[str, str] | str]] = [("EXIF", facts.exif), ("Texts in the file", facts.text)]
    for name, table in facts.jpeg_tables.items():
        lines = [" ".join(f"{value:4d}" for value in table[start : start + 8]) for start in range(0, len(table), 8)]
        found.append((f"JPEG quantisation, {name}", "\n".join(lines)))
    return [(label, rows) for label, rows in found if rows]


def _smaller(image: Image.Image) -> Image.Image:
    copy = image.copy()
    copy.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
    return copy


def _data(image: Image.Image, format: str) -> str:
    """A picture as a data address."""
    image.save(buffer := io.BytesIO(), format, quality=90)
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
