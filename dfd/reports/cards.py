"""Model cards and a data sheet, written from what the run folder holds.

A card for each checkpoint after Mitchell et al. 2019, arXiv:1810.03993; a data sheet for the manifest after Gebru et
al. 2021, arXiv:1803.09010. Their numbers are read or computed from the run's files; what these do not say is called
unknown.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData

from dfd import config
from dfd.config import CHECKPOINTS
from dfd.core.io import read_json, write_text
from dfd.core.runs import PROVENANCE
from dfd.data import manifest, provenance
from dfd.data.splits import SPLITS
from dfd.evaluate.metrics import clean
from dfd.evaluate.scores import at_operating_points, readable
from dfd.reports import summary

CARDS = {"stage1": "model_card_stage1.md", "stage2": "model_card_stage2.md"}
SHEET = "data_sheet.md"
SWEPT = {"stage1": ["auc", "accuracy_at_threshold", "real_accuracy"], "stage2": ["accuracy", "balanced_accuracy"]}
TITLES = {CARDS["stage1"]: "Model card, stage 1", CARDS["stage2"]: "Model card, stage 2", SHEET: "Data sheet"}


def write(out: Path) -> dict[str, str]:
    """Write the cards of the checkpoints that are there, and the sheet of the manifest; never raises.

    A card whose checkpoint or manifest is missing or cannot be read is removed, for it would be another run's.

    Returns:
        Name of each file that could not be written, though what it is about is there -> why.
    """
    failed = {}
    makers = {name: (CHECKPOINTS[stage], lambda stage=stage: model_card(out, stage)) for stage, name in CARDS.items()}
    makers[SHEET] = "manifest.parquet", lambda: data_sheet(out)
    for name, (subject, make) in makers.items():
        try:
            text = make() if (out / subject).exists() else ""
        except Exception as error:  # a run ends with what it has, whatever is wrong with one of its files
            failed[name], text = f"{type(error).__name__}: {error}".splitlines()[0], ""
        if text:
            write_text(out / name, text)
        else:
            (out / name).unlink(missing_ok=True)
    return failed


def model_card(out: Path, stage: str) -> str:
    """The card of a stage's checkpoint, as Markdown.

    Numbers of metrics.json that are not those stored in the checkpoint belong to other weights, and are left out.
    """
    checkpoint, files = out / CHECKPOINTS[stage], _files(out)
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    every = files["metrics"].get(stage, {})
    measured = every if every == content["metrics"] else {}
    table = manifest.load(out) if (out / "manifest.parquet").exists() else None
    known = table is not None and manifest.digest(table) == content["manifest_hash"]  # what it was trained on
    points, rows = None, pd.DataFrame()
    if measured and (out / f"scores_{stage}.parquet").exists():
        rows = clean(pd.read_parquet(out / f"scores_{stage}.parquet"), "test")
        if stage == "stage1" and content["operating_points"]:
            reached = at_operating_points(rows, content["operating_points"], content["temperature"])
            points = readable(reached, ["fpr", "tpr", "accuracy"])
            points.insert(0, "threshold", reached["threshold"])
    path = out / f"sweep_jpeg_{stage}.csv"
    sweep = pd.read_csv(path) if measured and path.exists() else pd.DataFrame()
    shown = [name for name in SWEPT[stage] if f"{name}_low" in sweep]
    stem = next(stem for stem, cls in config.NOTEBOOKS.items() if cls.__name__.lower() == stage)
    generators = measured.get("test", {}).get("by_generator", {})
    return _render(
        ModelCard,
        ModelCardData(library_name="dfd", pipeline_tag="image-classification", tags=["gan", "forensics", stage]),
        stage=stage,
        name=checkpoint.name,
        content=content,
        parameters=sum(tensor.numel() for tensor in content["weights"].values()),
        sha256=hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        counts=manifest.summary(table)[["images", "groups", *SPLITS, "formats"]] if known else None,
        sources=provenance.sources(table).reset_index() if known and "source" in table else None,
        measured=measured,
        by_generator=pd.DataFrame(generators).map(lambda number: cell(**number)).T if generators else None,
        stale=bool(every) and not measured,
        points=points,
        sweep=readable(sweep, shown) if shown else None,
        rows=rows,
        trained=files["record"].get("notebooks", {}).get(stem, {}),
        command=command(files["record"], stem),
        **files,
    )


def data_sheet(out: Path) -> str:
    """The data sheet of the run's manifest, as Markdown."""
    table, files, rejected = manifest.load(out), _files(out), out / "rejected.csv"
    sizes = table.melt(["label"], ["width", "height"]).groupby("label")["value"].agg(["min", "median", "max"])
    sizes.columns = ["smallest side", "median side", "largest side"]
    qualities = table.groupby("label")["jpeg_quality"].agg(["min", "max", "count"])
    splits = table.groupby("split").agg(images=("path", "size"), fakes=("is_fake", "sum"), groups=("group", "nunique"))
    splits.insert(1, "photos", splits["images"] - splits["fakes"])
    root = Path(table.attrs["root"])
    beside = sorted(path.name for path in root.iterdir() if path.is_file()) if root.is_dir() else []
    return _render(
        DatasetCard,
        DatasetCardData(task_categories=["image-classification"], tags=["gan", "forensics"]),
        digest=manifest.digest(table),
        table=table,
        summary=manifest.summary(table),
        splits=splits.reindex(list(SPLITS), fill_value=0),
        sources=provenance.sources(table).reset_index() if "source" in table else None,
        sizes=sizes.join(qualities.add_prefix("jpeg quality ")),
        rejected=pd.read_csv(rejected, dtype=str, keep_default_na=False)
        if rejected.exists()
        else pd.DataFrame(columns=["path", "reason"], dtype=str),
        documents=[name for name in beside if name.lower().startswith(("licen", "readme", PROVENANCE))],
        command=command(files["record"], "00_eda"),
        **files,
    )


def _files(out: Path) -> dict[str, Any]:
    """What both kinds of cards read: the record, its parameters of notebook 00, metrics and environment."""
    record = read_json(out / "config.json")
    metrics, environment = read_json(out / "metrics.json"), read_json(out / "environment.json")
    return {"record": record, "scan": _parameters(record, "00_eda"), "metrics": metrics, "environment": environment}


def command(record: Mapping[str, Any], stem: str) -> str:
    """The command that runs the notebooks up to this one again with the recorded parameters; empty without a record."""
    if not {"data", "out", "profile"} <= set(record):
        return ""
    words = [
        "python",
        "-m",
        "dfd",
        "run",
        *(w for name in ("data", "out", "profile") for w in (f"--{name}", record[name])),
    ]
    stems = [name for name in sorted({"00_eda", stem}) if _parameters(record, name)]
    for name in stems:
        for key, value in summary.changed(name, _parameters(record, name), record["profile"]).items():
            words += ["-p", f"{name[:2]}.{key}", json.dumps(value) if isinstance(value, list) else str(value)]
    return shlex.join([*words, *(name[:2] for name in stems)])


def _parameters(record: Mapping[str, Any], stem: str) -> dict[str, Any]:
    return record.get("notebooks", {}).get(stem, {}).get("parameters", {})


def cell(value: float | None, low: float | None, high: float | None) -> str:
    """A number with its 95 % interval as text; a dash where it is undefined."""
    interval = "" if pd.isna(low) or pd.isna(value) else f" [{low:.3f}, {high:.3f}]"
    return summary.decimal(value) + interval


def _render(card: type, card_data: Any, **values: Any) -> str:
    """Fill in the template of a kind of card."""
    name = "model_card.md.j2" if card is ModelCard else "data_sheet.md.j2"
    template = (config.PACKAGE / "templates" / name).read_text("utf-8").replace("%}\n", "%}")  # as trim_blocks does
    text = card.from_template(card_data, template_str=template, md=markdown, grid=grid, cell=cell, **values).content
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def markdown(value: Any) -> str:
    """Text that Markdown shows as it is: marks are escaped, line breaks and control characters written out."""
    text = f"{value:.3f}" if isinstance(value, float) and not value.is_integer() else str(value)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)
    text = re.sub(r"([\\`*<>|&]|(?<!\w)_|_(?!\w))", r"\\\1", text)
    return text.replace("](", "]\\(")  # a link


def grid(table: pd.DataFrame, corner: str = "") -> str:
    """A table as Markdown; with a corner its index is the first column."""
    rows = table.astype(object).where(table.notna(), "–")
    rows = rows.reset_index(names=corner) if corner else rows
    rows = rows.rename(columns=lambda name: str(name).replace("_", " "))
    lines = [list(rows), ["---"] * rows.shape[1], *([markdown(value) for value in row] for row in rows.to_numpy())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
