"""Model cards and a data sheet, written from what the run folder holds.

After Mitchell et al. 2019, arXiv:1810.03993, and Gebru et al. 2021, arXiv:1803.09010. What no file says is unknown.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from huggingface_hub import DatasetCardData, ModelCardData

from dfd.config import CHECKPOINTS
from dfd.core import printable, read_json, sha256_of, write_text
from dfd.data import manifest, provenance
from dfd.reports import html

TAGS = ["gan", "forensics"]


def write(out: Path) -> dict[str, str]:
    """Write the cards of the checkpoints and the sheet of the manifest; gives name -> why of those that failed.

    One whose checkpoint or manifest is missing or cannot be read is removed, for it would be another run's.
    """
    cards = {f"model_card_{stage}.md": (file, partial(model_card, out, stage)) for stage, file in CHECKPOINTS.items()}
    cards["data_sheet.md"] = "manifest.parquet", partial(data_sheet, out)
    failed = {}
    for name, (subject, text) in cards.items():
        try:
            (out / name).unlink(missing_ok=True)
            if (out / subject).exists():
                write_text(out / name, text())
        except Exception as error:  # a run ends with what it has, whatever is wrong with one of its files
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return failed


def model_card(out: Path, stage: str) -> str:
    """A checkpoint's card, as Markdown; without numbers of metrics.json that are of other weights than its own."""
    checkpoint = out / CHECKPOINTS[stage]
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    table = manifest.load(out) if (out / "manifest.parquet").exists() else None
    if table is not None and manifest.digest(table) != content["manifest_hash"]:
        table = None  # not what it was trained on
    return _fill("model_card.md.j2", out, stage=stage, name=checkpoint.name, content=content, table=table,
                 card_data=ModelCardData(library_name="dfd", pipeline_tag="image-classification", tags=[*TAGS, stage]),
                 parameters=sum(tensor.numel() for tensor in content["weights"].values()), sha256=sha256_of(checkpoint),
                 files=[path.name for path in out.iterdir()])  # fmt: skip


def data_sheet(out: Path) -> str:
    """The data sheet of the run's manifest, as Markdown."""
    table = manifest.load(out)
    beside = sorted(path.name for path in Path(table.attrs["root"]).glob("*") if path.is_file())
    return _fill("data_sheet.md.j2", out, table=table, digest=manifest.digest(table),
                 card_data=DatasetCardData(task_categories=["image-classification"], tags=TAGS),
                 summary=manifest.summary(table).reset_index(),
                 sources=provenance.sources(table).reset_index() if "source" in table else None,
                 documents=[name for name in beside if name.lower().startswith(("licen", "readme"))],
                 rejected=pd.DataFrame(table.attrs["rejected"], columns=["path", "reason"]))  # fmt: skip


def _fill(template: str, out: Path, **values: Any) -> str:
    """Fill in a template with its own values and those of the run folder."""
    files = {name: read_json(out / f"{name}.json") for name in ("config", "metrics", "environment")}
    return re.sub(r"\n{3,}", "\n\n", html.fill(template, md=markdown, **files, **values)).strip() + "\n"


def markdown(value: Any) -> str:
    """A value that Markdown shows as it is: marks are escaped, line breaks and control characters written out."""
    text = f"{value:.3f}" if isinstance(value, float) and not value.is_integer() else str(value)
    return re.sub(r"([\\`*<>|&]|(?<!\w)_|_(?!\w))", r"\\\1", printable(text)).replace("](", "]\\(")  # last, links
