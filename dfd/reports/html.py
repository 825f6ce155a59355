"""The pages: an executed notebook, the index over a run folder, comparisons and sweeps. They load and run nothing."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat import NotebookNode
from PIL import Image
from pygments.formatters import HtmlFormatter
from tqdm import tqdm

from dfd import config, plots
from dfd.core.io import PART, TEMPLATES, read_json, write_text
from dfd.evaluate.compare import Comparison
from dfd.reports import summary
from dfd.reports.cards import CARDS

KINDS = ("image/png", "image/jpeg")
LIMIT = 8_000_000  # characters of base64 on one page; with its text the page stays under 10 MB
SMALLER = ((88, 2400), (75, 1400), (60, 900))  # JPEG quality and longest side, pixels; the first that fits
BAR = re.compile(r"\d+%\||\d+it \[|[\d?.]+(it/s|s/it)\b")  # what a tqdm bar always shows
CURSOR = re.compile(r"\x1b\[\d*[A-LN-Z]")  # cursor moves of nested bars
DROPPED = ("application/vnd.jupyter.widget-view+json", "application/javascript")  # would need a script


def export(notebook: Path, error: dict | None = None) -> Path:
    """Write `<stem>.html` beside an executed notebook; `error`, of the cell that stopped it, has `cell` and `text`."""
    nb = nbformat.read(notebook, as_version=4)
    exporter = HTMLExporter(
        template_name="notebook",
        extra_template_basedirs=[str(TEMPLATES)],
        embed_images=True,
        preprocessors=[CoalesceStreamsPreprocessor, tidy, CoalesceStreamsPreprocessor, picture_texts],
    )
    page = {
        "style": style(),
        "title": title_and_question(nb)[0] or notebook.stem,
        "error": error,
        "box": summary.box(notebook, warnings(notebook.parent), error),
    }
    resources = {"metadata": {"name": notebook.stem, "path": str(notebook.parent)}, "dfd": page}
    return write_text(notebook.with_suffix(".html"), exporter.from_notebook_node(nb, resources)[0])


def write_index(out: Path) -> Path:
    """Write index.html from what the run folder holds: config.json, metrics.json, notebooks and other files."""
    record, metrics = read_json(out / "config.json"), read_json(out / "metrics.json")
    notebooks, own = [], {"index.html"}
    for stem, entry in sorted(record.get("notebooks", {}).items()):
        path, page = out / f"{stem}.ipynb", f"{stem}.html"
        title, question = title_and_question(nbformat.read(path, as_version=4)) if path.exists() else ("", "")
        shown = {"title": title or stem, "question": question, "page": page if (out / page).exists() else None}
        notebooks.append(entry | shown)
        own.add(page)
    by_stage = [metrics.get(stage, {}).get("test", {}).get("by_generator", {}) for stage in config.CHECKPOINTS]
    values = [pd.DataFrame(rows).map(lambda number: number["value"]).T for rows in by_stage]
    files = [path for path in sorted(out.glob("[!.]*")) if path.is_file() and path.name not in own]
    return render(
        out / "index.html",
        "index.html.j2",
        name=out.name,
        record=record,
        metrics=metrics,
        generators=pd.concat(values, axis=1),
        environment=read_json(out / "environment.json"),
        notebooks=notebooks,
        warnings=warnings(out),
        cards={name: title for name, (title, _) in CARDS.items() if (out / name).exists()},
        files={p.name: tqdm.format_sizeof(p.stat().st_size, "B") for p in files if p.suffix != PART},
    )


def write_comparison(comparisons: Sequence[Comparison], path: Path) -> Path:
    """Write comparisons of runs as a page."""
    return render(path, "compare.html.j2", comparisons=comparisons)


def render(path: Path, template: str, **values: Any) -> Path:
    """Write a page from its template."""
    return write_text(path, summary.fill(template, style=style(), **values))


def tidy(nb: NotebookNode, resources: dict) -> tuple[NotebookNode, dict]:
    """Drop progress bars, widgets, papermill's own error marks and the title; note sections and the page's contents."""
    nb.metadata.pop("widgets", None)
    nb.cells = [cell for cell in nb.cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])]
    section, page = "", resources["dfd"]
    page["contents"] = []
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            section = first_heading(cell.source) or section
            if section == page["title"]:
                cell.source = re.sub(r"\A\s*# .*\n?", "", cell.source)  # the template has it
            page["contents"] += re.findall(r'<h([23]) id="(.*?)">(.*?)<a', markdown2html(cell.source))
        cell.metadata["section"] = section
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _shown(output)]
    return nb, resources


def _shown(output: NotebookNode) -> bool:
    """Whether anything is left of an output for a page; progress bars are taken out of its text."""
    if output.output_type != "stream":
        return not any(kind in output.get("data", {}) for kind in DROPPED)
    lines = [CURSOR.sub("", line) for line in output.text.split("\n")]
    output.text = "\n".join(line for line in lines if not BAR.search(line)).strip("\n") + "\n"
    return bool(output.text.strip())


def picture_texts(nb: NotebookNode, resources: dict) -> tuple[NotebookNode, dict]:
    """Give each picture an `alt` text, mark the wide ones, and compress the largest where all are too much."""
    pictures = []
    for cell in nb.cells:
        outputs = [o for o in cell.get("outputs", []) if any(kind in o.get("data", {}) for kind in KINDS)]
        for number, output in enumerate(outputs, 1):
            output.metadata.setdefault("alt", describe(cell, number))
            width, height = open_picture(output).size
            output.metadata["wide"] = width > 1.8 * height  # on a phone: scrolled rather than shrunk
        pictures += outputs
    resources["dfd"]["compressed"] = compress(pictures)
    return nb, resources


def describe(cell: NotebookNode, number: int) -> str:
    """The section a picture stands in, and what the function that drew it says it draws; else its number there."""
    drawn = [getattr(plots, name, None) for name in re.findall(r"\b(plot_\w+)\(", cell.source)]
    texts = [" ".join(plot.__doc__.split("\n\n")[0].split()).rstrip(".") for plot in drawn if plot and plot.__doc__]
    return ": ".join(filter(None, (cell.metadata.get("section"), texts[-1] if texts else f"figure {number}")))


def open_picture(output: NotebookNode) -> Image.Image:
    """An output's picture; its pixels are not decoded yet."""
    return Image.open(io.BytesIO(base64.b64decode(next(output.data[kind] for kind in KINDS if kind in output.data))))


def compress(outputs: list[NotebookNode], limit: int = LIMIT) -> bool:
    """Turn pictures into JPEGs, in place, the largest first, until all have at most `limit` characters of base64."""

    def length(output: NotebookNode) -> int:
        return sum(len(output.data.get(kind, "")) for kind in KINDS)

    originals, changed = {id(output): open_picture(output) for output in outputs}, False
    for quality, side in SMALLER:
        for output in sorted(outputs, key=length, reverse=True):
            if sum(map(length, outputs)) <= limit:
                return changed
            layer, file = originals[id(output)].convert("RGBA"), io.BytesIO()
            flat = Image.new("RGB", layer.size, "white")
            flat.paste(layer, mask=layer)
            flat.thumbnail((side, side))
            flat.save(file, "JPEG", quality=quality)
            encoded = base64.b64encode(file.getvalue()).decode()
            if len(encoded) < length(output):
                output.data = NotebookNode({"image/jpeg": encoded})
                changed = True
    return changed


def warnings(out: Path) -> list[str]:
    """What a reader must know before trusting the numbers of a run folder."""
    metrics, rejected = read_json(out / "metrics.json"), out / "rejected.csv"
    audits = [metrics.get("audit", {}).get(stage, {}).get("warning") for stage in config.CHECKPOINTS]
    count = len(pd.read_csv(rejected, dtype=str)) if rejected.exists() else 0
    left_out = f"Left out: {count} {'file' if count == 1 else 'files'}; rejected.csv names each with its reason."
    return [*filter(None, audits), *metrics.get("notes", []), *([left_out] if count else [])]


def first_heading(markdown: str) -> str:
    """The first heading's words, or an empty string."""
    match = re.search(r"^#+\s+(.+?)\s*#*$", markdown, re.MULTILINE)
    return match.group(1) if match else ""


def title_and_question(nb: NotebookNode) -> tuple[str, str]:
    """A notebook's first heading, and the first paragraph after it; empty where there is none."""
    text = next((cell.source for cell in nb.cells if cell.cell_type == "markdown" and first_heading(cell.source)), "")
    paragraphs = re.split(r"\n\s*\n", re.sub(r"^#.*$", "", text, flags=re.MULTILINE).strip())
    return first_heading(text), re.sub(r"[*_`]", "", " ".join(paragraphs[0].split()))


def style() -> str:
    """The pages' one style sheet; code colours for light and dark, chosen for their contrast, included."""
    light, dark = (HtmlFormatter(style=name).get_style_defs(".highlight") for name in ("xcode", "zenburn"))
    own = (TEMPLATES / "style.css").read_text("utf-8")
    return f"{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}\n{own}"
