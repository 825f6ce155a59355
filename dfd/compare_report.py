"""Comparisons of runs for reading: lines for a terminal, tables for CSV, a page, and a section of the index."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dfd import html
from dfd.compare import STAGES, CompareError, Comparison, Paired, pair, tables
from dfd.record import write_text

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
        own = tables(out) if folders and _written(out) else {}
    except (OSError, ValueError) as error:
        return {"beside": [], "failed": {out.name: str(error)}}
    for folder in sorted(folders, key=_written, reverse=True)[: CANDIDATES if own else 0]:
        try:
            run = tables(folder)
            images = max(len(rows) for rows in (*own.values(), *run.values()))
            draws, only = min(DRAWS, WORK // max(images, 1)), sum(HEADLINES.values(), ())
            found = pair(run, own, (folder, out), (folder.name, out.name), replicates=max(draws, 20), only=only)
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
