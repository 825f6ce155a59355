"""Numbers and comparisons in words: what opens a notebook's page, and how a run stands beside others."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nbformat import NotebookNode

from dfd import config
from dfd.core.io import read_json
from dfd.core.runs import elapsed
from dfd.evaluate.compare import STAGES, Comparison, Paired, compare
from dfd.evaluate.metrics import METRICS

FEW_GROUPS = 20  # with fewer in the test split, a bootstrap over groups is crude
NOT_SHOWN = re.compile(r"^\W*\*\*Not shown:?\*\*:?\s*(.+)$", re.MULTILINE)
WORST = "The worst of several conditions is picked after seeing them all; its interval does not allow for that."
NUMBERS = {  # what opens each notebook's page: where in metrics.json, what it is called; `-` for one minus it
    "00_eda": {
        "audit stage1 auc": "Real or fake from file metadata alone: AUC",
        "audit stage2 auc": "Generator from metadata alone: AUC",
    },
    "01_stage1_real_fake": {
        "stage1 test auc": "AUC on the test images",
        "stage1 test accuracy": "Accuracy at 0.5",
        "stage1 test real_accuracy": "Photos called photos, at the threshold",
        "stage1 test fake_accuracy": "Fakes called fake, at the threshold",
        "stage1 test tpr_at_fpr_5": "Fakes found at 5 % of photos called fake",
    },
    "02_stage2_attribution": {
        "stage2 test accuracy": "Accuracy on the test images",
        "stage2 test balanced_accuracy": "Balanced accuracy",
        "stage2 test ece": "Calibration error (ECE)",
    },
    "03_robustness": {
        "robustness stage1_false_positive_rate worst": "Stage 1: photos called fake, worst at",
        "robustness stage1_balanced_accuracy_at_threshold worst": "Stage 1: balanced accuracy, worst at",
        "robustness stage2_balanced_accuracy worst": "Stage 2: balanced accuracy, worst at",
    },
    "04_error_analysis": {
        "- stage1 {split} accuracy_at_threshold": "Stage 1: images wrong",
        "- stage1 {split} real_accuracy": "Stage 1: photos called fake",
        "- stage1 {split} fake_accuracy": "Stage 1: fakes called photos",
        "- stage2 {split} accuracy": "Stage 2: images wrong",
    },
}


def summary(notebook: Path, nb: NotebookNode) -> dict[str, Any]:
    """The content of the box at the top of a page, from the files of the notebook's run folder.

    Args:
        notebook: the executed notebook; its folder is the run folder.
        nb: its content.

    Returns:
        `run` and `data`: a sentence each, or empty; `numbers`: label, value, low and high (None where no interval is
        known); `caveats`: plain texts; `not_shown`: Markdown of the notebook's own last section.
    """
    out, stem = notebook.parent, notebook.stem
    record = read_json(out / "config.json")
    parameters = record.get("notebooks", {}).get(stem, {}).get("parameters", {})
    shown = numbers(stem, read_json(out / "metrics.json"), parameters.get("split", "test"))
    data, caveats = record.get("data", ""), []
    if (out / "manifest.parquet").exists():
        table = pd.read_parquet(out / "manifest.parquet", columns=["label", "split", "group"])
        test, groups = table[table["split"] == "test"], table.groupby("split")["group"].nunique().get("test", 0)
        classes = ", ".join(f"{count} {label}" for label, count in table["label"].value_counts().items())
        data += f": {len(table)} images ({classes}) in {table['group'].nunique()} groups; "
        data += f"{len(test)} images in {groups} groups are kept for the test"
        if 0 < groups < FEW_GROUPS and stem != "00_eda":
            caveats = [f"The test images are {groups} independent groups, so every interval on them is crude."]
    if stem == "03_robustness" and shown:
        caveats.append(WORST)
    not_shown = NOT_SHOWN.findall("\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown"))
    return {
        "run": _run(stem, nb.metadata.get("papermill", {}), record.get("profile"), parameters),
        "data": data,
        "numbers": shown,
        "caveats": caveats,
        "not_shown": not_shown[-1] if not_shown else "",
    }


def _run(stem: str, timing: dict, profile: str | None, parameters: dict) -> str:
    """When, how long, which profile, and the parameters that differ from their defaults."""
    parts = []
    if timing.get("start_time"):
        parts.append(f"{datetime.fromisoformat(timing['start_time']):%Y-%m-%d %H:%M} UTC")
    if timing.get("duration"):
        parts.append(f"took {elapsed(timing['duration'])}")
    if profile:
        parts.append(f"profile {profile}")
    if parameters:
        differing = ", ".join(f"{name} = {value}" for name, value in changed(stem, parameters).items())
        parts.append(f"with {differing}" if differing else "every parameter at its default")
    return "; ".join(parts)


def changed(stem: str, parameters: dict[str, Any], profile: str = "") -> dict[str, Any]:
    """The parameters that are not a notebook's defaults, or not those of a profile, but for the folders."""
    given = config.profile(profile, stem) if profile else {}
    usual = config.NOTEBOOKS.get(stem, config.Shared)(**given).model_dump(mode="json", exclude={"data", "out"})
    return {name: parameters[name] for name in usual if name in parameters and parameters[name] != usual[name]}


def numbers(stem: str, metrics: dict, split: str = "test") -> list[dict[str, Any]]:
    """What opens a notebook's page, as far as it has been measured: label, value, low, high."""
    rows = []
    for place, label in NUMBERS.get(stem, {}).items():
        number, names = metrics, place.format(split=split).removeprefix("- ").split()
        for name in names:
            number = number.get(name) or {}
        if "condition" in number:
            label += f" {number['condition']}"
        rows.append(_number(label, number, turned=place.startswith("-")))
    if stem == "02_stage2_attribution":
        by_label = metrics.get("stage2", {}).get("test", {}).get("by_generator", {})
        recalls = {label: row["recall"] for label, row in by_label.items() if "recall" in row}
        worst = min(recalls, key=lambda label: recalls[label]["value"], default=None)
        rows.append(_number(f"Share named right of the worst generator, {worst}", recalls.get(worst, {})))
    return [row for row in rows if row["value"] is not None]


def _number(label: str, number: dict, turned: bool = False) -> dict[str, Any]:
    """A number to show, one minus it if turned; no interval without width: resampling cannot tell how far it holds."""
    value, low, high = (None if pd.isna(number.get(key)) else number[key] for key in ("value", "low", "high"))
    if low is None or high is None or low == high:
        low = high = None
    if turned and value is not None:
        value = 1 - value
        low, high = (1 - high, 1 - low) if low is not None else (None, None)
    return {"label": label, "value": value, "low": low, "high": high}


def by_generator(metrics: dict[str, Any]) -> pd.DataFrame:
    """Both stages' metrics on the test split: a row a generator."""
    rows: dict[str, dict] = {}
    for stage in STAGES:
        for label, row in metrics.get(stage, {}).get("test", {}).get("by_generator", {}).items():
            rows.setdefault(label, {}).update({name: number["value"] for name, number in row.items()})
    return pd.DataFrame.from_dict(rows, orient="index")


def decimal(value: float | None) -> str:
    """Three decimals; a dash for what is missing."""
    return "–" if value is None or np.isnan(value) else f"{value:.3f}"


SHOWN = 10  # changed verdicts in the terminal; the CSV has all
ON_PAGE = 30  # and on the page
FEW = 30  # groups below which an interval is called rough
BESIDE = 4  # runs in the index, the newest that share test images
CANDIDATES = 6  # run folders that are opened for it at most, the newest


def plural(count: int, noun: str) -> str:
    """1 run; 2 runs."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def metric_name(name: str) -> str:
    """A metric in words."""
    label = METRICS[name].label if name in METRICS else name.replace("_", " ")
    return label[0].upper() + label[1:]


def lines(comparison: Comparison) -> list[str]:
    """A comparison as lines for a terminal."""
    base, other = comparison.base, comparison.other
    text = [f"{other} beside {base}; a difference is {other} minus {base},"]
    text += ["with its 95 % interval; * where that leaves out zero"]
    for stage, why in comparison.missing.items():
        text += ["", f"{STAGES[stage]}: not compared, {why}"]
    for stage, paired in comparison.stages.items():
        columns = {base: paired.metrics["base"].map(decimal), other: paired.metrics["other"].map(decimal)}
        table = pd.DataFrame(columns).rename(index=metric_name)
        rows = [row for _, row in paired.metrics.iterrows()]
        table["difference"] = [difference(row) + (" *" if clear(row) else "") for row in rows]
        text += ["", f"{STAGES[stage]}: {basis(paired)}", *_indented(table.rename_axis(None))]
        text += [f"  {change_text(paired)}"]
        changed = paired.changed.head(SHOWN)[["change", "base", "other", "path"]]
        text += _indented(changed, header=False, index=False) if len(changed) else []
        if len(paired.changed) > SHOWN:
            text += [f"  … and {len(paired.changed) - SHOWN} more"]
    text += ["", "What differs in how they were made:" if len(comparison.made) else "Made from and with the same."]
    return text + (_indented(comparison.made, index=False) if len(comparison.made) else [])


def _indented(table: pd.DataFrame, **options: Any) -> list[str]:
    """A table as lines; control characters of file names are escaped."""
    safe = table.map(lambda value: "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value)))
    return ["  " + line.rstrip() for line in safe.to_string(**options).splitlines()]


def basis(paired: Paired) -> str:
    """What a comparison of one stage rests on, in words."""
    left = "".join(f"; {count} {why}" for why, count in paired.unshared.items())
    rough = "; so few groups leave the intervals rough" if paired.groups < FEW else ""
    return f"{paired.images} test images in {paired.groups} groups{left}{rough}"


def change_text(paired: Paired) -> str:
    """How many verdicts changed, in words."""
    count = len(paired.changed)
    ways = ", ".join(f"{number} {way}" for way, number in paired.changes.items())
    return f"{plural(count, 'verdict')} of {paired.images} changed: {ways}." if count else "No verdict changed."


def made_text(comparison: Comparison) -> str:
    """How many settings, versions and the like differ, in words."""
    counts = comparison.made["kind"].value_counts(sort=False).items()
    kinds = [kind if kind == "data" else plural(count, kind) for kind, count in counts]
    verb = "differs" if len(comparison.made) == 1 else "differ"
    return f"{', '.join(kinds)} {verb}" if kinds else "made from and with the same"


def clear(row: pd.Series | dict) -> bool:
    """Whether a difference's interval leaves out zero."""
    return bool(row["low"] > 0 or row["high"] < 0)


def difference(row: pd.Series | dict) -> str:
    """A signed difference with its interval; a dash where it is undefined."""
    value, low, high = row["difference"], row["low"], row["high"]
    if np.isnan(value):
        return "–"
    return f"{value:+.3f}" if np.isnan(low) else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def metric_rows(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """All metric differences in one table, one row per pair of runs, stage and metric."""
    return _stacked(comparisons, lambda paired: paired.metrics.reset_index().assign(images=paired.images))


def changed_rows(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """All changed verdicts in one table, one row per pair of runs, stage and image."""
    return _stacked(comparisons, lambda paired: paired.changed)


def _stacked(comparisons: Sequence[Comparison], table_of: Callable[[Paired], pd.DataFrame]) -> pd.DataFrame:
    tables = {(c.base, c.other, stage): table_of(paired) for c in comparisons for stage, paired in c.stages.items()}
    return pd.concat(tables, names=["base_run", "other_run", "stage"]).reset_index(level=[0, 1, 2])


def beside(out: Path) -> dict[str, Any]:
    """Compare a run with the newest ones in the same folder that share test images; nothing wrong with these stops it.

    Returns:
        beside: comparison (this run minus the other), page and command for each run, the newest first; failed: name ->
        why it could not be read.
    """
    own, rows, failed = out.resolve(), [], {}
    runs = sorted(filter(_written, own.parent.glob("*/")), key=_written, reverse=True)
    for folder in [run for run in runs if run != own][:CANDIDATES] if own in runs else []:
        try:
            (comparison,) = compare([folder, own])
        except Exception as error:  # whatever is in that folder, this run's index is written
            if "cannot be compared" not in str(error):  # no test image in common
                failed[folder.name] = f"{type(error).__name__}: {error}"
            continue
        names = [os.path.relpath(run) if run.is_relative_to(Path.cwd()) else str(run) for run in (folder, own)]
        command = shlex.join(["python", "-m", "dfd", "compare", *names])
        page = f"../{folder.name}/index.html" if (folder / "index.html").exists() else None
        rows.append({"comparison": comparison, "page": page, "command": command})
    return {"beside": rows[:BESIDE], "failed": failed}


def _written(folder: Path) -> float:
    """When a run's score tables were written last; 0 without any."""
    paths = (folder / f"scores_{stage}.parquet" for stage in STAGES)
    return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)
