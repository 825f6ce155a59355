"""What the page templates are filled with: the box on a notebook's page, words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import nbformat
import numpy as np
import pandas as pd
from nbconvert.filters import markdown2html

from dfd import config
from dfd.core.io import TEMPLATES, read_json
from dfd.core.runs import elapsed
from dfd.evaluate.compare import STAGES, Comparison
from dfd.evaluate.metrics import METRICS

NOT_SHOWN = r"(?m)^\W*\*\*Not shown:?\*\*:?\s*(.+)$"  # in a notebook's Markdown


def fill(template: str, **values: Any) -> str:
    """Fill in one of the templates; in HTML the values are escaped. What is missing in a record is undefined."""
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        trim_blocks=True,
        undefined=jinja2.ChainableUndefined,
    )
    pages.filters |= {"decimal": decimal, "elapsed": elapsed, "metric": metric_name, "printable": printable}
    pages.globals["STAGES"] = STAGES
    return pages.get_template(template).render(**values)


def decimal(value: float | None) -> str:
    """Three decimals; a dash for what is missing."""
    return "–" if value is None or np.isnan(value) else f"{value:.3f}"


def metric_name(name: str) -> str:
    """A metric in words."""
    label = METRICS[name].label if name in METRICS else name.replace("_", " ")
    return label[0].upper() + label[1:]


def printable(value: Any) -> str:
    """Text with its line breaks and control characters written out."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(value))


def box(notebook: Path, warnings: Sequence[str], error: dict | None = None) -> str:
    """The box at the top of an executed notebook's page, as HTML, from the files of its run folder."""
    out, stem, nb = notebook.parent, notebook.stem, nbformat.read(notebook, as_version=4)
    record, manifest = read_json(out / "config.json"), out / "manifest.parquet"
    parameters = record.get("notebooks", {}).get(stem, {}).get("parameters", {})
    told = pd.Series([cell.source for cell in nb.cells if cell.cell_type == "markdown"], dtype=str)
    not_shown = told.str.extract(NOT_SHOWN)[0].dropna().map(markdown2html).str.replace("</?p>", "", regex=True)
    return fill(
        "summary.html.j2",
        stem=stem,
        error=error,
        warnings=warnings,
        record=record,
        parameters=parameters,
        changed=changed(stem, parameters),
        timing=nb.metadata.get("papermill", {}),
        metrics=read_json(out / "metrics.json"),
        table=pd.read_parquet(manifest, columns=["label", "split", "group"]) if manifest.exists() else None,
        not_shown=not_shown.to_list()[-1:],
    )


def changed(stem: str, parameters: dict[str, Any], profile: str = "") -> dict[str, Any]:
    """The parameters that are not a notebook's defaults, or not those of a profile, but for the folders."""
    given = config.profile(profile, stem) if profile else {}
    usual = config.NOTEBOOKS.get(stem, config.Shared)(**given).model_dump(mode="json", exclude={"data", "out"})
    return {name: parameters[name] for name in usual if name in parameters and parameters[name] != usual[name]}


def text(comparison: Comparison) -> str:
    """A comparison for a terminal."""
    return fill("compare.txt.j2", comparison=comparison).rstrip()
