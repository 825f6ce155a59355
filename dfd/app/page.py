"""Examinations as one self-contained HTML page: no script, nothing loaded, everything foreign escaped."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from dfd import __version__
from dfd.app import examine
from dfd.app.evidence import Examination
from dfd.app.examine import LIMITS
from dfd.app.metadata import Facts, plain
from dfd.core.io import write_json, write_text
from dfd.core.runs import size
from dfd.inference.detector import Detector

TEMPLATES = Path(__file__).parents[1] / "templates"
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


FRAGMENT_TEMPLATES = Path(__file__).parents[1] / "templates"
THUMB = 192  # pixels; shown at half of it


@cache
def _macros():
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FRAGMENT_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("probe.html.j2").module


def style() -> str:
    """The sheet of the saved page's examinations and the probe's own, both for what has the class dfd-probe only."""
    shared = (FRAGMENT_TEMPLATES / "examination.css").read_text("utf-8")
    return f"<style>.dfd-probe {{\n{shared}\n}}\n{(FRAGMENT_TEMPLATES / 'probe.css').read_text('utf-8')}</style>"


def status(kind: str, text: str) -> str:
    """The line that says what goes on; kind is empty, working, done, stopped or failed."""
    return str(_macros().status(kind, text))


def answer(one: Examination) -> str:
    """Image, verdict, sentences; or why there is no answer."""
    return str(_macros().answer(section(_without_pictures(one)), LIMITS))


def nothing(text: str) -> str:
    """The place of an answer before there is one."""
    return str(_macros().nothing(text))


def evidence(one: Examination, waiting: Iterable[str] = ()) -> str:
    """The pictures drawn so far, and places kept for those whose titles are in `waiting`."""
    return str(_macros().evidence(section(one), list(waiting)))


def facts(one: Examination) -> str:
    """What the file says of itself."""
    return str(_macros().facts(section(_without_pictures(one))))


def saved(path: Path, data: Path) -> str:
    """Links that download the written page and JSON; both are in the links, so that no server need find them."""
    kinds = {"page": (path, "text/html"), "data": (data, "application/json")}
    links = {
        name: {"name": file.name, "source": _address(file.read_bytes(), mime)} for name, (file, mime) in kinds.items()
    }
    return str(_macros().saved(**links, folder=str(path.parent)))


def thumb(image: Image.Image, alt: str) -> str:
    """A small square picture, cut from the middle."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    small = image.crop((left, top, left + side, top + side)).resize((THUMB, THUMB), Image.Resampling.LANCZOS)
    return str(_macros().thumb(_address(encoded(small, "JPEG"), "image/jpeg"), alt))


def picture(png: bytes | None, alt: str, kind: str) -> str:
    """A picture in a place of fixed size, preview or curve; where there is none, the words stand in its place."""
    return str(_macros().picture(png and _address(png, "image/png"), alt, kind))


def sentence(text: str) -> str:
    """A line of text in a place that stays when it is empty."""
    return str(_macros().sentence(text))


def encoded(image: Image.Image, format: str = "PNG") -> bytes:
    """The bytes of an image file."""
    image.save(buffer := io.BytesIO(), format, quality=90)
    return buffer.getvalue()


def _without_pictures(one: Examination) -> Examination:
    return dataclasses.replace(one, pictures={})


def _address(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


Pair = tuple[Examination, examine.Trial | None]


def write(folder: Path, detector: Detector, pairs: Sequence[Pair]) -> tuple[Path, Path]:
    """Write `probe-<time>.html` and `.json` into a folder, which is made if missing.

    Args:
        folder: no name of an uploaded file is ever a part of a path.
        detector: the one that judged.
        pairs: examinations with the pictures that are to be shown, and their curves where there are any.

    Returns:
        Where the page is, and the JSON.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    now, model = datetime.now(UTC), None if detector.run is None else str(detector.run)
    path = folder / f"probe-{now:%Y%m%d-%H%M%S}.html"
    found = [
        one | {"under_degradation": trial and trial.asdict()} for one, trial in ((o.asdict(), t) for o, t in pairs)
    ]
    made = {"dfd": __version__, "written": now.isoformat(timespec="seconds"), "model": model}
    write_json(path.with_suffix(".json"), made | {"threshold": detector.threshold, "images": found})
    write_text(path, page([_with_curve(*pair) for pair in pairs], "Probe: real or generated?", model))
    return path, path.with_suffix(".json")


def _with_curve(one: Examination, trial: examine.Trial | None) -> Examination:
    if trial is None or trial.base is None:
        return one
    return dataclasses.replace(one, pictures={"curve": examine.picture(trial), **one.pictures})
