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

import jinja2
import numpy as np
import pandas as pd
import torch

from dfd import config
from dfd.config import CHECKPOINTS
from dfd.core.io import read_json, write_text
from dfd.core.runs import PROVENANCE
from dfd.data import manifest, provenance
from dfd.data.splits import SPLITS
from dfd.evaluate import metrics as metrics_module
from dfd.evaluate import scores as scores_module

TEMPLATES = Path(__file__).parents[1] / "templates"
CARDS = {"stage1": "model_card_stage1.md", "stage2": "model_card_stage2.md"}
SHEET = "data_sheet.md"
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
    for name, (about, make) in makers.items():
        try:
            if (out / about).exists():
                write_text(out / name, make())
            else:
                (out / name).unlink(missing_ok=True)
        except Exception as error:  # a run ends with what it has, whatever is wrong with one of its files
            failed[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            (out / name).unlink(missing_ok=True)
    return failed


def model_card(out: Path, stage: str) -> str:
    """The card of a stage's checkpoint, as Markdown.

    Numbers of metrics.json that are not those stored in the checkpoint belong to other weights, and are left out.

    Raises:
        FileNotFoundError: no checkpoint.
    """
    path = out / CHECKPOINTS[stage]
    content = torch.load(path, map_location="cpu", weights_only=True)
    weights = content.pop("weights")
    record, metrics, environment = (read_json(out / f"{name}.json") for name in ("config", "metrics", "environment"))
    measured = metrics.get(stage, {}) if metrics.get(stage) == content["metrics"] else {}
    table = manifest.load(out) if (out / "manifest.parquet").exists() else None
    digest = None if table is None else manifest.digest(table)
    stem = next(stem for stem, cls in config.NOTEBOOKS.items() if cls.__name__.lower() == stage)
    trained_on = table if digest == content["manifest_hash"] else None
    return _render(
        "model_card.md.j2",
        stage=stage,
        name=path.name,
        content=content,
        parameters=sum(one.numel() for one in weights.values()),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        ended=record.get("notebooks", {}).get(stem, {}).get("ended", ""),
        record=record,
        environment=environment,
        counts=None if trained_on is None else counts(trained_on),
        sources=None if trained_on is None else sources(trained_on),
        hold_out=_parameters(record, "00_eda").get("group_by", ""),
        measured=measured,
        by_generator=by_generator(measured),
        stale=bool(metrics.get(stage)) and not measured,
        points=operating_points(out, content) if stage == "stage1" and measured else None,
        sweep=jpeg_sweep(out, stage) if measured else None,
        sizes=test_sizes(out, stage) if measured else None,
        promise=_parameters(record, stem),
        audit=metrics.get("audit", {}).get(stage, {}),
        notes=metrics.get("notes", []),
        command=remake(record, stem),
    )


def data_sheet(out: Path) -> str:
    """The data sheet of the run's manifest, as Markdown.

    Raises:
        FileNotFoundError: no manifest.
    """
    table = manifest.load(out)
    record, metrics, environment = (read_json(out / f"{name}.json") for name in ("config", "metrics", "environment"))
    rejected = pd.DataFrame(columns=["path", "reason"])
    if (out / "rejected.csv").exists():
        rejected = pd.read_csv(out / "rejected.csv", dtype=str, keep_default_na=False)
    root = Path(table.attrs["root"])
    beside = sorted(path.name for path in root.iterdir() if path.is_file()) if root.is_dir() else []
    told = [name for name in beside if name.lower().startswith(("licen", "readme", PROVENANCE))]
    return _render(
        "data_sheet.md.j2",
        digest=manifest.digest(table),
        attrs=table.attrs,
        data=record.get("data", ""),
        images=len(table),
        groups=table["group"].nunique(),
        twice=int(table["sha256"].duplicated().sum()),
        summary=manifest.summary(table),
        splits=splits(table),
        sources=sources(table),
        sizes=sizes(table),
        rejected=rejected,
        reasons=rejected["reason"].str.split(":").str[0].value_counts().to_dict(),
        parameters=_parameters(record, "00_eda"),
        told=told,
        audit=metrics.get("audit", {}),
        notes=metrics.get("notes", []),
        environment=environment,
        command=remake(record, "00_eda"),
    )


def counts(table: pd.DataFrame) -> pd.DataFrame:
    """Images of each label in each split, with the formats: one row per label, real photos first."""
    return manifest.summary(table)[["images", "groups", *SPLITS, "formats"]]


def splits(table: pd.DataFrame) -> pd.DataFrame:
    """Images, photos, fakes and groups of each split."""
    found = table.groupby("split").agg(images=("path", "size"), fakes=("is_fake", "sum"), groups=("group", "nunique"))
    found.insert(1, "photos", found["images"] - found["fakes"])
    return found.reindex(list(SPLITS), fill_value=0)


def sources(table: pd.DataFrame) -> pd.DataFrame | None:
    """Images of each label and source in each split; None where the manifest names no sources."""
    return provenance.sources(table).reset_index() if "source" in table else None


def sizes(table: pd.DataFrame) -> pd.DataFrame:
    """Smallest, median and largest side in pixels, and the range of the JPEG qualities, by label; None: not JPEG."""
    rows = {}
    for label, part in table.groupby("label"):
        sides = np.concatenate([part["width"], part["height"]])
        known = part["jpeg_quality"].dropna()
        quality = f"{known.min():.0f} to {known.max():.0f} ({len(known)} files)" if len(known) else None
        rows[label] = {
            "smallest side": sides.min(),
            "median side": float(np.median(sides)),
            "largest side": sides.max(),
            "jpeg quality": quality,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def by_generator(measured: dict) -> pd.DataFrame | None:
    """The test metrics of each generator as text; None before there are any."""
    rows = measured.get("test", {}).get("by_generator", {})
    cells = {label: {name: cell(**one) for name, one in row.items()} for label, row in rows.items()}
    return pd.DataFrame.from_dict(cells, orient="index") if cells else None


def operating_points(out: Path, content: Mapping[str, Any]) -> pd.DataFrame | None:
    """What the checkpoint's thresholds do on the test images, from stage 1's score table; None without one."""
    path = out / "scores_stage1.parquet"
    if not path.exists() or not content["operating_points"]:
        return None
    rows = metrics_module.clean(pd.read_parquet(path), "test")
    found = scores_module.at_operating_points(rows, content["operating_points"], content["temperature"])
    table = scores_module.readable(found, ["fpr", "tpr", "accuracy"])
    table.insert(0, "threshold", found["threshold"])
    return table


def jpeg_sweep(out: Path, stage: str) -> pd.DataFrame | None:
    """The sweep over JPEG qualities as text; None before notebook 03 has run."""
    path = out / f"sweep_jpeg_{stage}.csv"
    if not path.exists():
        return None
    table = pd.read_csv(path)
    wanted = ("auc", "accuracy_at_threshold", "real_accuracy", "accuracy", "balanced_accuracy")
    names = [name for name in wanted if name in table and f"{name}_low" in table]
    return scores_module.readable(table, names[: 3 if stage == "stage1" else None]) if names else None


def test_sizes(out: Path, stage: str) -> dict[str, int] | None:
    """Images and groups behind the test metrics; None without a score table."""
    path = out / f"scores_{stage}.parquet"
    if not path.exists():
        return None
    rows = metrics_module.clean(pd.read_parquet(path), "test")
    return {"images": len(rows), "groups": rows["group"].nunique()}


def remake(record: Mapping[str, Any], stem: str) -> str:
    """The command that runs the notebooks up to this one again with the recorded parameters; empty without a record."""
    if not {"data", "out", "profile"} <= set(record) or record["profile"] not in config.PROFILES:
        return ""
    words = ["python", "-m", "dfd", "run", "--data", record["data"], "--out", record["out"]]
    words += ["--profile", record["profile"]]
    stems = [one for one in sorted({"00_eda", stem}) if _parameters(record, one)]
    for one in stems:
        usual = config.NOTEBOOKS[one](**config.profile(record["profile"], one)).model_dump(mode="json")
        for name, value in _parameters(record, one).items():
            if name not in ("data", "out") and value != usual.get(name):
                words += ["-p", f"{one[:2]}.{name}", _word(value)]
    return shlex.join([*words, *(one[:2] for one in stems)])


def _word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list) else str(value)


def _parameters(record: Mapping[str, Any], stem: str) -> dict[str, Any]:
    return record.get("notebooks", {}).get(stem, {}).get("parameters", {})


def cell(value: float | None, low: float | None, high: float | None) -> str:
    """A number with its 95 % interval as text; a dash where it is undefined."""
    if value is None or np.isnan(value):
        return "–"
    return f"{value:.3f}" if low is None or np.isnan(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _render(template: str, **values: Any) -> str:
    loader = jinja2.FileSystemLoader(TEMPLATES)
    pages = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    pages.filters |= {"md": markdown, "table": grid}
    text = pages.get_template(template).render(cell=cell, **values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def markdown(value: Any) -> str:
    """Text that Markdown shows as it is: marks are escaped, line breaks and control characters written out."""
    text = f"{value:.3f}" if isinstance(value, float) and not value.is_integer() else str(value)
    text = "".join(one if one.isprintable() else one.encode("unicode_escape", "replace").decode() for one in text)
    text = re.sub(r"([\\`*<>|&]|(?<!\w)_|_(?!\w))", r"\\\1", text)
    return text.replace("](", "]\\(")  # a link


def grid(table: pd.DataFrame, corner: str = "") -> str:
    """A table as Markdown; with a corner its index is the first column."""
    rows = table.astype(object).where(table.notna(), "–")
    rows = rows.reset_index(names=corner) if corner else rows
    lines = [[str(name).replace("_", " ") for name in rows], ["---"] * rows.shape[1], *rows.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(one if one == '---' else markdown(one) for one in line)} |" for line in lines)
