"""The pictures of a page: described in words for those who cannot see them, and small enough together."""

from __future__ import annotations

import ast
import base64
import io
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from nbconvert.preprocessors import Preprocessor
from nbformat import NotebookNode
from PIL import Image

KINDS = ("image/png", "image/jpeg")
LIMIT = 8_000_000  # characters of base64 on one page; with its text the page stays under 10 MB
SMALLER = ((88, 2400), (75, 1400), (60, 900))  # JPEG quality and longest side, pixels; the first that fits
DRAWN_BY = re.compile(r"\b(\w*plots)\.(plot_\w+)\(")


class Pictures(Preprocessor):
    """Give each picture an `alt` text, mark the wide ones, and compress the largest where all are too much.

    Reads `section` in each cell's metadata. Sets `compressed` in the resources' `dfd` where a picture was made smaller.
    """

    def preprocess(self, nb: NotebookNode, resources: dict) -> tuple[NotebookNode, dict]:
        for cell in nb.cells:
            for number, output in enumerate(pictures(cell), 1):
                output.metadata.setdefault("alt", describe(cell, number))
                width, height = opened(output).size
                output.metadata["wide"] = width > 1.8 * height  # on a phone: scrolled rather than shrunk
        resources["dfd"]["compressed"] = compress([output for cell in nb.cells for output in pictures(cell)])
        return nb, resources


def pictures(cell: NotebookNode) -> Iterator[NotebookNode]:
    """A cell's outputs that hold a picture of pixels."""
    return (output for output in cell.get("outputs", []) if any(kind in output.get("data", {}) for kind in KINDS))


def opened(output: NotebookNode) -> Image.Image:
    """An output's picture; its pixels are not decoded yet."""
    return Image.open(io.BytesIO(base64.b64decode(next(output.data[kind] for kind in KINDS if kind in output.data))))


def describe(cell: NotebookNode, number: int) -> str:
    """The section a picture stands in, and what the function that drew it says it draws; else its number there."""
    drawn = [text for module, name in DRAWN_BY.findall(cell.source) if (text := documented(module).get(name))]
    return ": ".join(
        part for part in (cell.metadata.get("section"), drawn[-1] if drawn else f"figure {number}") if part
    )


@cache
def documented(module: str) -> dict[str, str]:
    """The first sentence of each documented function of a module of this package, without importing it."""
    path = Path(__file__).with_name(f"{module}.py")
    body = ast.parse(path.read_text("utf-8")).body if path.exists() else []
    texts = {node.name: ast.get_docstring(node) for node in body if isinstance(node, ast.FunctionDef)}
    return {name: " ".join(text.split("\n\n")[0].split()).rstrip(".") for name, text in texts.items() if text}


def compress(outputs: list[NotebookNode], limit: int = LIMIT) -> bool:
    """Turn the largest pictures into JPEGs, in place, until all together have at most `limit` characters.

    Args:
        outputs: those of one page that hold a picture of pixels.
        limit: characters of base64.

    Returns:
        Whether any was changed.
    """

    def length(output: NotebookNode) -> int:
        return sum(len(output.data.get(kind, "")) for kind in KINDS)

    originals = {id(output): opened(output) for output in outputs}
    changed = False
    for quality, side in SMALLER:
        for output in sorted(outputs, key=length, reverse=True):
            if sum(map(length, outputs)) <= limit:
                return changed
            encoded = _jpeg(originals[id(output)], quality, side)
            if len(encoded) < length(output):
                for kind in KINDS:
                    output.data.pop(kind, None)
                output.data["image/jpeg"], changed = encoded, True
    return changed


def _jpeg(picture: Image.Image, quality: int, side: int) -> str:
    """A picture as a JPEG in base64, what is transparent in white."""
    seen = picture.convert("RGBA")
    flat = Image.new("RGB", picture.size, "white")
    flat.paste(seen, mask=seen)
    flat.thumbnail((side, side))
    file = io.BytesIO()
    flat.save(file, "JPEG", quality=quality)
    return base64.b64encode(file.getvalue()).decode()
