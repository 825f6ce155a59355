"""The pictures of a page: described in words for those who cannot see them, and small enough together."""

from __future__ import annotations

import ast
import base64
import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import nbformat
from nbconvert import HTMLExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor, Preprocessor
from nbformat import NotebookNode
from PIL import Image
from pygments.formatters import HtmlFormatter

from dfd.core.io import PART, read_json, write_text
from dfd.core.runs import elapsed, first_heading, size
from dfd.reports.summary import summary

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
    path = Path(__file__).parents[1] / "plots" / f"{module}.py"
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


TEMPLATES = Path(__file__).parents[1] / "templates"
BAR = re.compile(r"\d+%\||\d+it \[|[\d?.]+(it/s|s/it)\b")  # what a tqdm bar always shows
CURSOR = re.compile(r"\x1b\[\d*[A-LN-Z]")  # cursor moves of nested bars
DROPPED = ("application/vnd.jupyter.widget-view+json", "application/javascript")  # would need a script
KEY_NUMBERS = [  # stage, split, name, what it is called
    ("stage1", "test", "auc", "Real or fake: AUC"),
    ("stage1", "test", "accuracy", "Real or fake: accuracy"),
    ("stage2", "test", "accuracy", "Which generator: accuracy"),
    ("stage2", "test", "balanced_accuracy", "Which generator: balanced accuracy"),
    ("audit", "stage1", "auc", "Real or fake from file metadata alone: AUC"),
    ("audit", "stage2", "auc", "Which generator from file metadata alone: AUC"),
]


class Tidy(Preprocessor):
    """Drop progress bars, widgets, papermill's own error marks and the title; note each cell's section."""

    def preprocess(self, nb: NotebookNode, resources: dict) -> tuple[NotebookNode, dict]:
        nb.metadata.pop("widgets", None)
        nb.cells = [c for c in nb.cells if "papermill-error-cell-tag" not in c.metadata.get("tags", [])]
        section = ""
        for cell in nb.cells:
            section = (cell.cell_type == "markdown" and first_heading(cell.source)) or section
            cell.metadata["section"] = section
            if cell.cell_type == "markdown" and section == resources["dfd"]["title"]:
                cell.source = re.sub(r"\A\s*# .*\n?", "", cell.source)  # the template has it
            if cell.cell_type == "code":
                cell.outputs = [tidy for output in cell.outputs if (tidy := self.output(output))]
        return nb, resources

    def output(self, output: NotebookNode) -> NotebookNode | None:
        if output.output_type == "stream":
            lines = [CURSOR.sub("", line) for line in output.text.split("\n")]
            output.text = "\n".join(line for line in lines if not BAR.search(line)).strip("\n") + "\n"
            return output if output.text.strip() else None
        return None if any(kind in output.get("data", {}) for kind in DROPPED) else output


def export(notebook: Path, error: dict | None = None) -> Path:
    """Write `<stem>.html` beside an executed notebook.

    Args:
        notebook: the executed notebook.
        error: `{"cell", "text"}` of the cell that stopped it; shown at the top of the page.
    """
    nb = nbformat.read(notebook, as_version=4)
    out = notebook.parent
    exporter = HTMLExporter(
        template_name="notebook",
        extra_template_basedirs=[str(TEMPLATES)],
        embed_images=True,
        exclude_anchor_links=True,
        preprocessors=[CoalesceStreamsPreprocessor, Tidy, CoalesceStreamsPreprocessor, Pictures],
        filters={"decimal": decimal},
    )
    resources = {
        "metadata": {"name": notebook.stem, "path": str(out)},
        "dfd": {
            "style": style(),
            "title": title_and_question(nb)[0] or notebook.stem,
            "error": error,
            "summary": summary(notebook, nb),
            "warnings": warnings(read_json(out / "metrics.json"), out),
        },
    }
    page, _ = exporter.from_notebook_node(nb, resources)
    return write_text(notebook.with_suffix(".html"), with_contents(page))


def with_contents(page: str) -> str:
    """Give each heading of a page a name of its own, and put links to them where the page has its contents marks."""
    names, links = Counter(), []

    def name(heading: re.Match) -> str:
        level, words = heading.groups()
        slug = re.sub(r"\W+", "-", re.sub(r"<[^>]+>|&\w+;", "", words).lower()).strip("-") or "section"
        names[slug] += 1
        anchor = slug if names[slug] == 1 else f"{slug}-{names[slug]}"
        links.append(f'<li class="level{level}"><a href="#{anchor}">{re.sub(r"<[^>]+>", "", words)}</a></li>')
        return f'<h{level} id="{anchor}">{words}</h{level}>'

    page = re.sub(r"<h([23])>(.*?)</h\1>", name, page, flags=re.DOTALL)
    return page.replace("<!-- contents -->", "<ul>" + "".join(links) + "</ul>")


def write_index(out: Path) -> Path:
    """Write index.html from what the run folder holds: config.json, metrics.json, notebooks and other files."""
    from dfd.reports import cards
    from dfd.reports import summary as compare_report

    record, metrics, environment = (read_json(out / f"{name}.json") for name in ("config", "metrics", "environment"))
    notebooks = []
    for stem, entry in sorted(record.get("notebooks", {}).items()):
        path = out / f"{stem}.ipynb"
        title, question = title_and_question(nbformat.read(path, as_version=4)) if path.exists() else (stem, "")
        page = f"{stem}.html" if (out / f"{stem}.html").exists() else None
        took = elapsed(entry["seconds"]) if "seconds" in entry else ""
        notebooks.append(entry | {"title": title or stem, "question": question, "page": page, "took": took})
    own = {"index.html", *(f"{stem}.html" for stem in record.get("notebooks", {}))}
    files = [p for p in sorted(out.iterdir()) if p.is_file() and p.name not in own and p.suffix != PART]
    files = [p for p in files if not p.name.startswith(".")]
    text = render(
        "index.html.j2",
        name=out.name,
        record=record,
        environment=environment,
        notebooks=notebooks,
        numbers=key_numbers(metrics),
        generators=generator_table(metrics),
        warnings=warnings(metrics, out),
        cards={name: title for name, title in cards.TITLES.items() if (out / name).exists()},
        **compare_report.section(out),
        files=[{"name": p.name, "size": size(p.stat().st_size)} for p in files],
    )
    return write_text(out / "index.html", text)


def render(template: str, **values: Any) -> str:
    """Fill in one of the page templates; values are escaped."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    page = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True).get_template(template)
    return page.render(style=style(), **values)


def key_numbers(metrics: dict[str, Any]) -> list[dict[str, str]]:
    """The headline numbers with their 95 % intervals, as text; those that are missing are left out."""
    found = []
    for stage, split, name, label in KEY_NUMBERS:
        number = metrics.get(stage, {}).get(split, {}).get(name)
        if number:
            interval = f"{decimal(number.get('low'))} to {decimal(number.get('high'))}"
            found.append({"label": label, "value": decimal(number.get("value")), "interval": interval})
    return found


def generator_table(metrics: dict[str, Any]) -> tuple[list[str], dict[str, list[str]]]:
    """Both stages on the test split, by generator: column names, and for each generator the values as text."""
    rows: dict[str, dict] = {}
    for stage in ("stage1", "stage2"):
        for label, row in metrics.get(stage, {}).get("test", {}).get("by_generator", {}).items():
            rows.setdefault(label, {}).update({name: cell["value"] for name, cell in row.items()})
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    return names, {label: [decimal(row.get(name)) for name in names] for label, row in rows.items()}


def warnings(metrics: dict[str, Any], out: Path) -> list[str]:
    """What a reader must know before trusting the numbers."""
    audit = metrics.get("audit", {})
    found = [audit[stage]["warning"] for stage in ("stage1", "stage2") if audit.get(stage, {}).get("warning")]
    found += metrics.get("notes", [])
    if (out / "rejected.csv").exists():
        with (out / "rejected.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rejected = sum(1 for _ in csv.DictReader(file))
        if rejected:
            what = "1 file was" if rejected == 1 else f"{rejected} files were"
            found.append(f"{what} left out; rejected.csv names {'its' if rejected == 1 else 'each with its'} reason.")
    return found


def title_and_question(nb: NotebookNode) -> tuple[str, str]:
    """A notebook's first heading, and the first paragraph after it; empty where there is none."""
    text = next((cell.source for cell in nb.cells if cell.cell_type == "markdown" and first_heading(cell.source)), "")
    paragraphs = re.split(r"\n\s*\n", re.sub(r"^#.*$", "", text, flags=re.MULTILINE).strip())
    return first_heading(text), re.sub(r"[*_`]", "", " ".join(paragraphs[0].split()))


def style() -> str:
    """The pages' one style sheet; code colours for light and dark, chosen for their contrast, included."""
    light = HtmlFormatter(style="xcode", cssclass="highlight").get_style_defs(".highlight")
    dark = HtmlFormatter(style="zenburn", cssclass="highlight").get_style_defs(".highlight")
    own = (TEMPLATES / "style.css").read_text("utf-8")
    return f"{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}\n{own}"


def decimal(value: float | None) -> str:
    """Three decimals; a dash for what is missing."""
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"
