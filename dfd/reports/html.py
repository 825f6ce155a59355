"""Templates and the pages of them: an executed notebook's, a run's index. They load nothing; the index sorts."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import jinja2
import nbformat
import pandas as pd
from nbconvert import HTMLExporter, filters, preprocessors
from PIL import Image
from pygments.formatters import HtmlFormatter

from dfd import config, core, plots
from dfd.core import PART, TEMPLATES, elapsed, read_json, read_table, write_text
from dfd.evaluate.compare import STAGES
from dfd.evaluate.metrics import FEWEST, METRICS, units

BAR = re.compile(r"\d+%\||\d+it \[|[\d?.]+(it/s|s/it)\b")  # what a tqdm bar always shows
CURSOR = re.compile(r"\x1b\[\d*[A-LN-Z]")  # cursor moves of nested bars
DROPPED = ("application/vnd.jupyter.widget-view+json", "application/javascript")  # would need a script
NOT_SHOWN = r"(?m)^\W*\*\*Not shown:?\*\*:?\s*(.+)$"  # in a notebook's Markdown
PAGES = core.template("page.html.j2").environment.overlay(undefined=jinja2.ChainableUndefined)
PAGES.filters |= {"elapsed": elapsed, "metric": lambda name: (
    text := METRICS[name].label if name in METRICS else name.replace("_", " "))[0].upper() + text[1:]}  # fmt: skip
PAGES.filters["decimal"] = lambda value: "–" if pd.isna(value) else f"{value:.3f}"
PAGES.globals |= {"STAGES": STAGES, "fewest": FEWEST, "units": units}


def fill(template: str, **values: Any) -> str:
    """Fill in one of the templates; in HTML the values are escaped. What is missing in a record is undefined."""
    return PAGES.get_template(template).render(**values)


def render(path: Path, template: str, **values: Any) -> Path:
    """Write a page from its template."""
    return write_text(path, fill(template, style=style(), **values))


def style() -> str:
    """The pages' one style sheet; code colours for light and dark, chosen for their contrast, included."""
    light, dark = (HtmlFormatter(style=name).get_style_defs(".highlight") for name in ("xcode", "zenburn"))
    own = (TEMPLATES / "style.css").read_text("utf-8")
    return f"{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}\n{own}"


def export(notebook: Path, error: dict | None = None) -> Path:
    """Write `<stem>.html` beside an executed notebook; `error`, of the cell that stopped it, has `cell` and `text`."""
    nb = nbformat.read(notebook, as_version=4)
    steps = [preprocessors.CoalesceStreamsPreprocessor, tidy, preprocessors.CoalesceStreamsPreprocessor]
    template = {"template_name": "notebook", "extra_template_basedirs": [str(TEMPLATES)]}
    exporter = HTMLExporter(embed_images=True, preprocessors=steps, **template)
    title = title_and_question(nb)[0] or notebook.stem
    page = {"style": style(), "title": title, "error": error, "box": box(notebook, error), "stems": [*config.NOTEBOOKS]}
    resources = {"metadata": {"name": notebook.stem, "path": str(notebook.parent)}, "dfd": page}
    return write_text(notebook.with_suffix(".html"), exporter.from_notebook_node(nb, resources)[0])


def box(notebook: Path, error: dict | None = None) -> str:
    """The box at the top of an executed notebook's page, as HTML, from the files of its run folder."""
    out, stem, nb = notebook.parent, notebook.stem, nbformat.read(notebook, as_version=4)
    manifest = out / "manifest.parquet"
    told = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    not_shown = [re.sub("</?p>", "", filters.markdown2html(text)) for text in re.findall(NOT_SHOWN, told)]
    return fill("summary.html.j2", stem=stem, error=error, warnings=warnings(out), not_shown=not_shown[-1:],
                record=read_json(out / "config.json"), metrics=read_json(out / "metrics.json"),
                usual=config.NOTEBOOKS.get(stem, config.Shared)().model_dump(mode="json", exclude={"data", "out"}),
                table=read_table(manifest) if manifest.exists() else None,
                timing=nb.metadata.get("papermill", {}))  # fmt: skip


def tidy(nb: nbformat.NotebookNode, resources: dict) -> tuple[nbformat.NotebookNode, dict]:
    """Drop what a page cannot show, papermill's own error marks and the title; note sections, contents and pictures."""
    nb.metadata.pop("widgets", None)
    nb.cells = [cell for cell in nb.cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])]
    section, page = "", resources["dfd"]
    page["contents"] = []
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            section = first_heading(cell.source) or section
            if section == page["title"]:
                cell.source = re.sub(r"\A\s*# .*\n?", "", cell.source)  # the template has it
            page["contents"] += re.findall(r'<h([23]) id="(.*?)">(.*?)<a', filters.markdown2html(cell.source))
        cell.metadata["section"] = section
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _shown(output)]
            pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
            for number, picture in enumerate(pictures, 1):
                width = Image.open(io.BytesIO(base64.b64decode(picture.data["image/png"]))).width
                picture.metadata["wide"] = width > 750  # pixels; on a phone: scrolled rather than shrunk
                picture.metadata.setdefault("alt", describe(cell, number))
    return nb, resources


def _shown(output: nbformat.NotebookNode) -> bool:
    """Whether anything is left of an output for a page; progress bars are taken out of its text."""
    if output.output_type != "stream":
        return not any(kind in output.get("data", {}) for kind in DROPPED)
    lines = [CURSOR.sub("", line) for line in output.text.split("\n")]
    output.text = "\n".join(line for line in lines if not BAR.search(line)).strip("\n") + "\n"
    return bool(output.text.strip())


def describe(cell: nbformat.NotebookNode, number: int) -> str:
    """The section a picture stands in, and what the function that drew it says it draws; else its number there."""
    names = re.findall(r"\b(plot_\w+)\(", cell.source)
    drawn = [getattr(plots, name).__doc__ for name in names if hasattr(plots, name)]
    texts = [" ".join(text.replace("`", "").split("\n\n")[0].split()).rstrip(".") for text in drawn]
    return ": ".join(filter(None, (cell.metadata.get("section"), texts[-1] if texts else f"figure {number}")))


def first_heading(markdown: str) -> str:
    """The first heading's words, or an empty string."""
    return next(iter(re.findall(r"(?m)^#+\s+(.+?)\s*#*$", markdown)), "")


def title_and_question(nb: nbformat.NotebookNode) -> tuple[str, str]:
    """A notebook's first heading, and the first paragraph after it; empty where there is none."""
    text = next((cell.source for cell in nb.cells if cell.cell_type == "markdown" and first_heading(cell.source)), "")
    paragraphs = re.split(r"\n\s*\n", re.sub(r"^#.*$", "", text, flags=re.MULTILINE).strip())
    return first_heading(text), re.sub(r"[*_`]", "", " ".join(paragraphs[0].split()))


def picture(notebook: Path) -> dict[str, str]:
    """What stands on the index of an executed notebook, as address and text: of a cell with the tag `index`, if any."""
    section = ""
    for cell in nbformat.read(notebook, as_version=4).cells if notebook.exists() else ():
        section = (first_heading(cell.source) if cell.cell_type == "markdown" else "") or section
        for output in cell.get("outputs", ()) if "index" in cell.metadata.get("tags", ()) else ():
            if image := output.get("data", {}).get("image/png"):
                cell.metadata["section"] = section
                return {"address": f"data:image/png;base64,{image.strip()}", "alt": describe(cell, 1)}
    return {}


def warnings(out: Path) -> list[str]:
    """What a reader must know before trusting the numbers of a run folder."""
    metrics, rejected = read_json(out / "metrics.json"), out / "rejected.csv"
    texts = [metrics.get("audit", {}).get(stage, {}).get("warning") for stage in STAGES] + metrics.get("notes", [])
    if count := len(read_table(rejected, dtype=str)) if rejected.exists() else 0:
        texts.append(f"Left out: {count} file{'s' * (count > 1)}; rejected.csv names each with its reason.")
    return [text for text in texts if text]


def write_index(out: Path) -> Path:
    """Write index.html from what the run folder holds: config.json, metrics.json, notebooks and other files."""
    record, metrics = read_json(out / "config.json"), read_json(out / "metrics.json")
    for stem, entry in record.get("notebooks", {}).items():
        path = out / f"{stem}.ipynb"
        title, question = title_and_question(nbformat.read(path, as_version=4)) if path.exists() else ("", "")
        entry |= {"title": title or stem, "question": question, "page": f"{stem}.html", "picture": picture(path)}
    by_stage = [metrics.get(stage, {}).get("test", {}).get("by_generator", {}) for stage in STAGES]
    files = [path for path in sorted(out.glob("[!.]*")) if path.is_file() and path.suffix != PART]
    generators, path = [pd.DataFrame(rows).T for rows in by_stage], out / "manifest.parquet"
    return render(out / "index.html", "index.html.j2", name=out.name, record=record, metrics=metrics,
                  generators=pd.concat(generators, axis=1), warnings=warnings(out),
                  environment=read_json(out / "environment.json"),
                  table=read_table(path, columns=["label", "split"]) if path.exists() else None,
                  files={path.name: path.stat().st_size for path in files})  # fmt: skip
