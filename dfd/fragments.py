"""The parts of an examination as pieces of HTML, for the probe: everything foreign escaped, nothing loaded."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import jinja2
from PIL import Image

from dfd import page
from dfd.examine import LIMITS, Examination

TEMPLATES = Path(__file__).parent / "templates"
THUMB = 192  # pixels; shown at half of it


@cache
def _macros():
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("probe.html.j2").module


def style() -> str:
    """The sheet of the saved page's examinations and the probe's own, both for what has the class dfd-probe only."""
    shared = (TEMPLATES / "examination.css").read_text("utf-8")
    return f"<style>.dfd-probe {{\n{shared}\n}}\n{(TEMPLATES / 'probe.css').read_text('utf-8')}</style>"


def status(kind: str, text: str) -> str:
    """The line that says what goes on; kind is empty, working, done, stopped or failed."""
    return str(_macros().status(kind, text))


def answer(one: Examination) -> str:
    """Image, verdict, sentences; or why there is no answer."""
    return str(_macros().answer(page.section(_without_pictures(one)), LIMITS))


def nothing(text: str) -> str:
    """The place of an answer before there is one."""
    return str(_macros().nothing(text))


def evidence(one: Examination, waiting: Iterable[str] = ()) -> str:
    """The pictures drawn so far, and places kept for those whose titles are in `waiting`."""
    return str(_macros().evidence(page.section(one), list(waiting)))


def facts(one: Examination) -> str:
    """What the file says of itself."""
    return str(_macros().facts(page.section(_without_pictures(one))))


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
