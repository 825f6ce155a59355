"""What opens a notebook's page: what was run, on what data, the numbers that matter, and what they leave open."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nbformat import NotebookNode

from dfd import config
from dfd.core.io import read_json, write_text
from dfd.core.runs import elapsed
from dfd.evaluate.compare import STAGES, CompareError, Comparison, Paired, pair, read_tables
from dfd.reports import html

FEW_GROUPS = 20  # with fewer in the test split, a bootstrap over groups is crude
STAGE_TITLES = {"stage1": "Stage 1", "stage2": "Stage 2"}
NOT_SHOWN = re.compile(r"^\W*\*\*Not shown:?\*\*:?\s*(.+)$", re.MULTILINE)
WORST = "The worst of several conditions is picked after seeing them all; its interval does not allow for that."
Number = dict[str, Any]  # label, value; low and high, None where no interval is known; text: shown in place of value


def summary(notebook: Path, nb: NotebookNode) -> dict[str, Any]:
    """The content of the box at the top of a page, from the files of the notebook's run folder.

    Args:
        notebook: the executed notebook; its folder is the run folder.
        nb: its content.

    Returns:
        `run` and `data`: a sentence each, or empty; `numbers`: up to five; `caveats`: plain texts; `not_shown`:
        Markdown of the notebook's own last section. What the folder does not tell is left out.
    """
    out = notebook.parent
    record, table = read_json(out / "config.json"), _parquet(out / "manifest.parquet")
    entry = record.get("notebooks", {}).get(notebook.stem, {})
    numbers = NUMBERS[notebook.stem](out, read_json(out / "metrics.json"), entry) if notebook.stem in NUMBERS else []
    found = NOT_SHOWN.findall("\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown"))
    return {
        "run": _run(notebook.stem, nb, record, entry),
        "data": _data(table, record.get("data")),
        "numbers": numbers[:5],
        "caveats": _caveats(notebook.stem, table, numbers),
        "not_shown": found[-1] if found else "",
    }


def _run(stem: str, nb: NotebookNode, record: dict, entry: dict) -> str:
    """When, how long, which profile, and the parameters that differ from their defaults."""
    timing = nb.metadata.get("papermill", {})
    parts = []
    if timing.get("start_time"):
        parts.append(f"{datetime.fromisoformat(timing['start_time']):%Y-%m-%d %H:%M} UTC")
    if timing.get("duration"):
        parts.append(f"took {elapsed(timing['duration'])}")
    if record.get("profile"):
        parts.append(f"profile {record['profile']}")
    defaults = config.NOTEBOOKS.get(stem, config.Shared)().model_dump(mode="json")
    given = {name: value for name, value in entry.get("parameters", {}).items() if name not in ("data", "out")}
    changed = [f"{name} = {value}" for name, value in given.items() if value != defaults.get(name)]
    if given:
        parts.append(f"with {', '.join(changed)}" if changed else "every parameter at its default")
    return "; ".join(parts)


def _data(table: pd.DataFrame, folder: str | None) -> str:
    if table.empty:
        return folder or ""
    classes = ", ".join(f"{count} {label}" for label, count in table["label"].value_counts().items())
    test = table[table["split"] == "test"]
    return (
        f"{folder + ': ' if folder else ''}{len(table)} images ({classes}) in {table['group'].nunique()} groups; "
        f"{len(test)} images in {test['group'].nunique()} groups are kept for the test"
    )


def _caveats(stem: str, table: pd.DataFrame, numbers: list[Number]) -> list[str]:
    found = []
    groups = 0 if table.empty else table.loc[table["split"] == "test", "group"].nunique()
    if 0 < groups < FEW_GROUPS and stem != "00_eda":
        found.append(
            f"The test images are {groups} independent groups of pictures, so every interval on them is crude."
        )
    if stem == "03_robustness" and numbers:
        found.append(WORST)
    return found


def _audit(out: Path, metrics: dict, entry: dict) -> list[Number]:
    names = {"stage1": "Real or fake from file metadata alone: AUC", "stage2": "Generator from metadata alone: AUC"}
    audits = metrics.get("audit", {})
    found = [_number(label, audits.get(stage, {}).get("auc")) for stage, label in names.items()]
    table = _parquet(out / "manifest.parquet")
    if not table.empty:
        splits = table.groupby("split")["group"].nunique()
        found.append(_count("Images", len(table)))
        found.append(_count("Groups that share content", table["group"].nunique()))
        found.append(_count("Groups in the test split", splits.get("test", 0)))
    return _known(found)


def _stage1(out: Path, metrics: dict, entry: dict) -> list[Number]:
    test = metrics.get("stage1", {}).get("test", {})
    names = {
        "auc": "AUC on the test images",
        "accuracy": "Accuracy at 0.5",
        "real_accuracy": "Photos called photos, at the threshold",
        "fake_accuracy": "Fakes called fake, at the threshold",
        "tpr_at_fpr_5": "Fakes found at 5 % of photos called fake",
    }
    return _known(_number(label, test.get(name)) for name, label in names.items())


def _stage2(out: Path, metrics: dict, entry: dict) -> list[Number]:
    test = metrics.get("stage2", {}).get("test", {})
    names = {"accuracy": "Accuracy on the test images", "balanced_accuracy": "Balanced accuracy"}
    found = [_number(label, test.get(name)) for name, label in names.items()]
    recalls = {label: row["recall"] for label, row in test.get("by_generator", {}).items() if "recall" in row}
    if recalls:
        worst = min(recalls, key=lambda label: recalls[label]["value"])
        found.append(_number(f"Share named right of the worst generator, {worst}", recalls[worst]))
    return _known([*found, _number("Calibration error (ECE)", test.get("ece"))])


def _robustness(out: Path, metrics: dict, entry: dict) -> list[Number]:
    found = []
    table = _csv(out / "robustness.csv")
    if {"stage", "condition", "label", "metric", "value", "low", "high"} <= set(table):
        table = table[table["label"] == "all"]
        for stage, metric, what, highest in (
            ("stage1", "false_positive_rate", "Photos called fake", True),
            ("stage1", "auc", "AUC", False),
            ("stage2", "balanced_accuracy", "Balanced accuracy", False),
        ):
            rows = table[(table["stage"] == stage) & (table["metric"] == metric)].dropna(subset="value")
            if len(rows):
                row = rows.sort_values("value", ascending=not highest).iloc[0]
                found.append(_number(f"{STAGE_TITLES[stage]}, worst condition ({row['condition']}): {what}", row))
    for stage, metric, what in (
        ("stage1", "auc", "AUC"),
        ("stage2", "balanced_accuracy", "Balanced accuracy"),
        ("stage1", "real_accuracy", "Photos called photos"),
    ):
        sweep = _csv(out / f"sweep_jpeg_{stage}.csv")
        if {"quality", metric, f"{metric}_low", f"{metric}_high"} <= set(sweep):
            rows = sweep[sweep["quality"].notna()].dropna(subset=metric)
            if len(rows):
                row = rows.sort_values([metric, "quality"]).iloc[0]
                interval = {"value": row[metric], "low": row[f"{metric}_low"], "high": row[f"{metric}_high"]}
                label = f"{STAGE_TITLES[stage]}, worst JPEG (quality {row['quality']:g}): {what}"
                found.append(_number(label, interval))
    return _known(found)


def _mistakes(out: Path, metrics: dict, entry: dict) -> list[Number]:
    """Shares that are wrong; each has the interval of its metric turned round, where that is about the same images."""
    from dfd.evaluate import metrics as evaluation
    from dfd.evaluate import scores

    split = entry.get("parameters", {}).get("split", "test")
    found = []
    for stage in STAGE_TITLES:
        if not (out / f"scores_{stage}.parquet").exists():
            continue
        rows = evaluation.clean(scores.load_scores(out, stage), split)
        measured = metrics.get(stage, {}).get(split, {})
        parts = [("images wrong", rows, "accuracy")]
        if stage == "stage1":
            real = rows["label"] == "RealPhotos"
            parts = [
                ("images wrong", rows, "accuracy_at_threshold"),
                ("photos called fake", rows[real], "real_accuracy"),
                ("fakes called photos", rows[~real], "fake_accuracy"),
            ]
        for what, part, metric in parts:
            if len(part):
                wrong = len(scores.mistakes(part))
                share, right = wrong / len(part), measured.get(metric, {})
                number = {"value": share, "low": None, "high": None}
                if abs(right.get("value", -1) - (1 - share)) < 1e-6:
                    number |= {"low": 1 - right["high"], "high": 1 - right["low"]}
                found.append(_number(f"{STAGE_TITLES[stage]}: {what}, {wrong} of {len(part)}", number))
    return _known(found)


NUMBERS = {
    "00_eda": _audit,
    "01_stage1_real_fake": _stage1,
    "02_stage2_attribution": _stage2,
    "03_robustness": _robustness,
    "04_error_analysis": _mistakes,
}


def _number(label: str, measured: dict | pd.Series | None) -> Number | None:
    if measured is None or pd.isna(measured.get("value")):
        return None
    value, low, high = (measured.get(key) for key in ("value", "low", "high"))
    if (
        pd.isna(low) or pd.isna(high) or low == high
    ):  # all right or all wrong: resampling cannot tell how far that holds
        low = high = None
    return {"label": label, "value": value, "low": low, "high": high, "text": ""}


def _count(label: str, count: int) -> Number:
    return {"label": label, "value": count, "low": None, "high": None, "text": str(count)}


def _known(numbers) -> list[Number]:
    return [number for number in numbers if number]


def _parquet(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path) if path.exists() else pd.DataFrame()


def _csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path) if path.exists() and path.stat().st_size else pd.DataFrame()


SHOWN = 10  # changed verdicts in the terminal; the CSV has all
ON_PAGE = 30  # and on the page
FEW = 30  # groups below which an interval is called rough
BESIDE = 4  # runs in the index, the newest
CANDIDATES = 12  # runs beside that are opened at most, the newest
HEADLINES = {"stage1": ("auc", "accuracy_at_threshold"), "stage2": ("accuracy",)}  # in the index
DRAWS, WORK = 200, 1_000_000  # in the index: draws at most, and draws times images
NAMES = {"auc": "AUC", "tpr_at_fpr_5": "Fakes found at 5 % false alarms", "macro_f1": "Macro F1"}


def metric_name(name: str) -> str:
    """A metric in words."""
    return NAMES.get(name, name.replace("_", " ").capitalize())


def lines(found: Comparison) -> list[str]:
    """A comparison as lines for a terminal."""
    told = [f"{found.other} beside {found.base}; a difference is {found.other} minus {found.base},"]
    told += ["with its 95 % interval; * where that leaves out zero"]
    for stage, text in found.missing.items():
        told += ["", f"{STAGES[stage]}: not compared, {text}"]
    for stage, one in found.stages.items():
        cells = [_cells(name, row) for name, row in one.metrics.iterrows()]
        told += ["", f"{STAGES[stage]}: {basis(one)}", *_columns([["", found.base, found.other, "difference"], *cells])]
        told += [f"  {change_text(one)}"]
        told += _columns(one.changed.head(SHOWN)[["change", "base", "other", "path"]].to_numpy().tolist(), left=True)
        if len(one.changed) > SHOWN:
            told += [f"  … and {len(one.changed) - SHOWN} more"]
    told += ["", "What differs in how they were made:" if len(found.made) else "Made from and with the same."]
    told += _columns([["", "", found.base, found.other], *found.made.to_numpy().tolist()] * bool(len(found.made)), True)
    return told


def basis(one: Paired) -> str:
    """What a comparison of one stage rests on, in words."""
    left = "".join(f"; {count} {why}" for why, count in one.unshared.items())
    rough = "; so few groups leave the intervals rough" if one.groups < FEW else ""
    return f"{one.images} test images in {one.groups} groups{left}{rough}"


def change_text(one: Paired) -> str:
    """How many verdicts changed, in words."""
    count = len(one.changed)
    if not count:
        return "No verdict changed."
    ways = ", ".join(f"{count} {way}" for way, count in one.changes.items())
    return f"{count} verdict{'s' * (count > 1)} of {one.images} changed: {ways}."


def made_text(found: Comparison) -> str:
    """How many settings, versions and the like differ, in words."""
    counts = found.made["kind"].value_counts(sort=False).items()
    told = [kind if kind == "data" else f"{count} {kind}{'s' * (count > 1)}" for kind, count in counts]
    return f"{', '.join(told)} differ{'s' * (len(found.made) == 1)}" if told else "made from and with the same"


def clear(row: pd.Series | dict) -> bool:
    """Whether a difference's interval leaves out zero."""
    return bool(row["low"] > 0 or row["high"] < 0)


def _cells(name: str, row: pd.Series) -> list[str]:
    mark = " *" if clear(row) else ""
    return [metric_name(name), html.decimal(row["base"]), html.decimal(row["other"]), f"{difference(row)}{mark}"]


def difference(row: pd.Series | dict) -> str:
    """A signed difference with its interval; a dash where it is undefined."""
    value, low, high = row["difference"], row["low"], row["high"]
    if np.isnan(value):
        return "–"
    return f"{value:+.3f}" if np.isnan(low) else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def _columns(rows: Sequence[Sequence[Any]], left: bool = False) -> list[str]:
    """Align cells; control characters of file names are escaped."""
    safe = [[one if one.isprintable() else one.encode("unicode_escape").decode() for one in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*safe, strict=True)]
    return [
        "  " + "  ".join(f"{one:{'<' if left or not i else '>'}{widths[i]}}" for i, one in enumerate(row)).rstrip()
        for row in safe
    ]


def metric_rows(every: Sequence[Comparison]) -> pd.DataFrame:
    """All metric differences in one table, one row per pair of runs, stage and metric."""
    parts = [
        one.metrics.reset_index().assign(base_run=found.base, other_run=found.other, stage=stage, images=one.images)
        for found in every
        for stage, one in found.stages.items()
    ]
    order = ["base_run", "other_run", "stage", "metric", "base", "other", "difference", "low", "high", "images"]
    return pd.concat(parts, ignore_index=True)[order]


def changed_rows(every: Sequence[Comparison]) -> pd.DataFrame:
    """All changed verdicts in one table, one row per pair of runs, stage and image."""
    parts = [
        one.changed.assign(base_run=found.base, other_run=found.other, stage=stage)
        for found in every
        for stage, one in found.stages.items()
    ]
    order = ["base_run", "other_run", "stage", "path", "label", "base", "other", "change"]
    return pd.concat(parts, ignore_index=True)[order]


def write_page(every: Sequence[Comparison], path: Path) -> Path:
    """Write comparisons as a page that loads nothing."""
    return write_text(path, html.render("compare.html.j2", every=every, on_page=ON_PAGE, **_words()))


def _words() -> dict[str, Any]:
    functions = (metric_name, basis, change_text, clear, difference)
    return {"stages": STAGES, "decimal": html.decimal} | {one.__name__: one for one in functions}


def section(out: Path) -> dict[str, Any]:
    """Compare a run with the newest ones in the same folder that share test images: what its index says of it.

    Reads score tables and records only, of at most CANDIDATES runs; draws less often than `dfd compare`. Nothing that
    is wrong with a run stops it.

    Returns:
        beside: a row per run, the newest first, with name, page, stages (stage -> Paired, this run minus the other),
        made (what differs, in words) and command; failed: name -> why it could not be read; and what the template
        calls.
    """
    runs, failed = [], {}
    try:
        folders = [folder for folder in out.resolve().parent.iterdir() if folder != out.resolve() and _written(folder)]
        own = read_tables(out) if folders and _written(out) else {}
    except (OSError, ValueError) as error:
        return {"beside": [], "failed": {out.name: str(error)}}
    for folder in sorted(folders, key=_written, reverse=True)[: CANDIDATES if own else 0]:
        try:
            run = read_tables(folder)
            images = max(len(rows) for rows in (*own.values(), *run.values()))
            draws, only = min(DRAWS, WORK // max(images, 1)), sum(HEADLINES.values(), ())
            found = pair(run, own, (folder, out), (folder.name, out.name), resamples=max(draws, 20), only=only)
        except CompareError as error:
            if "cannot be read" in str(error):
                failed[folder.name] = str(error)
            continue
        except Exception as error:  # whatever is in that folder, this run's index is written
            failed[folder.name] = f"{type(error).__name__}: {error}"
            continue
        page = f"../{folder.name}/index.html" if (folder / "index.html").exists() else None
        command = f"python -m dfd compare {_shown(folder)} {_shown(out)}"
        entry = {"name": folder.name, "page": page, "stages": found.stages, "command": command}
        runs.append(entry | {"made": made_text(found)})
        if len(runs) == BESIDE:
            break
    return {"beside": runs, "failed": failed, **_words()}


def _shown(folder: Path) -> str:
    absolute = folder.resolve()
    return shlex.quote(os.path.relpath(absolute) if absolute.is_relative_to(Path.cwd()) else str(absolute))


def _written(folder: Path) -> float:
    """When a run's score tables were written last; 0 without any."""
    times = [path.stat().st_mtime for stage in STAGES if (path := folder / f"scores_{stage}.parquet").exists()]
    return max(times, default=0.0)
