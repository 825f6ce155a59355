"""A parameter sweep for reading: `sweep.csv` with a row per run, and a page that says which settings do best.

Runs are chosen by validation; what the test split says stands beside, and takes no part.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dfd.core.io import read_json, write_text
from dfd.core.runs import elapsed
from dfd.evaluate import compare
from dfd.reports import html
from dfd.reports.parameter_grid import METRICS, SEED, Sweep
from dfd.reports.summary import clear, difference, metric_name

STAGES = {"stage1": ("01", "Stage 1"), "stage2": ("02", "Stage 2")}  # the notebook that measures it, and in words
SPLITS = ("val", "test")
FALLING = ("ece",)  # metrics of which less is better
COMPARED = 12  # runs beside the best, the next best ones
DRAWS, WORK = 500, 5_000_000  # of the paired bootstrap: draws at most, and draws times images
UNFINISHED = ("failed", "interrupted")


def write(sweep: Sweep, kept: Mapping[str, dict], out: Path, paired: bool = False) -> Path:
    """Write `sweep.csv` and `index.html` from what the run folders hold.

    Args:
        sweep: what was asked for.
        kept: name of a run -> its entry in `sweep.json`.
        out: the sweep's folder.
        paired: also compare the best with the others image by image, which takes a moment.

    Returns:
        The page.
    """
    frame = table(sweep, kept, out)
    write_text(out / "sweep.csv", frame.to_csv(index=False))
    metrics = [metric for metric in sweep.sort_by if frame[column(metric)].notna().any()]
    shown = metrics or list(sweep.sort_by)
    runs = [_row(sweep, out, row, shown) for row in order(frame, shown[0]).to_dict("records")]
    numbered = {run["name"]: run | {"number": number} for number, run in enumerate(runs, 1)}
    content = {
        "sweep": sweep,
        "runs": numbered,
        "metrics": [words(metric) for metric in shown],
        "counts": ", ".join(f"{count} {status}" for status, count in frame["status"].value_counts().items()),
        "seconds": elapsed(frame["seconds"].sum()),
        "best": [_best(frame, metric) for metric in metrics],
        "failed": {n: kept[n].get("last_lines", []) for n, run in numbered.items() if run["status"] in UNFINISHED},
        "figures": [figure(frame, name, metrics) for name in sweep.varying if name != SEED] if metrics else [],
        "seeds": over_seeds(sweep, frame, metrics),
        "beside": [beside(frame, metric, out) for metric in metrics] if paired else [],
    }
    names = {"clear": clear, "difference": difference, "decimal": html.decimal, "few": COMPARED}
    return write_text(out / "index.html", html.render("sweep.html.j2", **content, **names))


def table(sweep: Sweep, kept: Mapping[str, dict], out: Path) -> pd.DataFrame:
    """One row per run: run, status, seconds, what varies, and metrics with their intervals.

    The columns of a metric are `<stage>_<split>_<name>`, and the same with _low and _high; NaN where the run's last
    attempt did not measure the stage.
    """
    rows = []
    for one in sweep.runs:
        entry = kept[one.name]
        measured = _measured(out / one.name) if entry["status"] in ("finished", *UNFINISHED) else {}
        seconds = entry.get("seconds")
        row = {"run": one.name, "status": entry["status"], "seconds": np.nan if seconds is None else seconds}
        row |= {name: one.varying.get(name, "") for name in sweep.varying}
        for stage, names in METRICS.items():
            for split in SPLITS:
                for name in names:
                    found = measured.get(stage, {}).get(split, {}).get(name) or {}
                    for key, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
                        value = found.get(key)
                        row[f"{stage}_{split}_{name}{suffix}"] = np.nan if value is None else value
        rows.append(row)
    return pd.DataFrame(rows)


def _measured(folder: Path) -> dict[str, Any]:
    """What a run's metrics.json says of the stages whose notebook is finished, and made from what is there now.

    As in `report.run`: the notebooks before it are finished too, and ended earlier. Otherwise its numbers may be those
    of other settings.
    """
    done, newest = [], ""
    for stem, entry in sorted(read_json(folder / "config.json").get("notebooks", {}).items()):
        if entry["status"] != "finished" or entry.get("ended", "") < newest:
            break
        newest = entry.get("ended", "")
        done.append(stem[:2])
    metrics = read_json(folder / "metrics.json")
    return {stage: metrics.get(stage, {}) for stage, (number, _) in STAGES.items() if number in done}


def column(metric: str, split: str = "val") -> str:
    """The column of a metric such as stage1.auc."""
    stage, name = metric.split(".")
    return f"{stage}_{split}_{name}"


def words(metric: str) -> str:
    """A metric such as stage1.auc in words."""
    stage, name = metric.split(".")
    text = metric_name(name) if name != "ece" else "Calibration error"
    return f"{STAGES[stage][1]}: {text if text.isupper() else text[0].lower() + text[1:]}"


def order(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The runs, the best on validation first, those without a value last."""
    rising = metric.split(".")[1] in FALLING
    return frame.sort_values(column(metric), ascending=rising, kind="stable", na_position="last", ignore_index=True)


def headline(sweep: Sweep, folder: Path) -> str:
    """What a run reached on validation, for the line that says how it ended; empty for nothing."""
    measured, told = _measured(folder), []
    for metric in sweep.sort_by:
        stage, name = metric.split(".")
        found = measured.get(stage, {}).get("val", {}).get(name)
        told += [f"{words(metric)} {html.decimal(found['value'])}"] if found else []
    return f"  {', '.join(told)} on validation" if told else ""


def _row(sweep: Sweep, out: Path, row: dict, metrics: list[str]) -> dict[str, Any]:
    """A run as the page's table shows it."""
    cells = []
    for metric in metrics:
        for split in SPLITS:
            name = column(metric, split)
            value, low, high = (row[name + suffix] for suffix in ("", "_low", "_high"))
            interval = "" if np.isnan(value) or np.isnan(low) else f"{html.decimal(low)}–{html.decimal(high)}"
            cells.append({"value": html.decimal(value), "interval": interval})
    return {
        "name": row["run"],
        "page": f"{row['run']}/index.html" if (out / row["run"] / "index.html").exists() else None,
        "values": [row[name] for name in sweep.varying],
        "cells": cells,
        "status": row["status"],
        "label": ", ".join(f"{name} {row[name]}" for name in sweep.varying if row[name] != "") or row["run"],
        "took": "" if np.isnan(row["seconds"]) else elapsed(row["seconds"]),
    }


def _best(frame: pd.DataFrame, metric: str) -> dict[str, str]:
    row = order(frame, metric).iloc[0]
    found = {"run": row["run"], "metric": words(metric)}
    for split in SPLITS:
        value, low, high = (row[column(metric, split) + suffix] for suffix in ("", "_low", "_high"))
        found[split], found[f"{split}_interval"] = html.decimal(value), f"{html.decimal(low)} to {html.decimal(high)}"
    return found


def beside(frame: pd.DataFrame, metric: str, out: Path) -> dict[str, Any]:
    """The best run on validation against the next best ones, paired on the test images that both scored.

    Returns:
        metric in words and best; rows: name, images, base, other, difference (other minus best), low and high;
        failed: name -> why there is no row.
    """
    stage, name = metric.split(".")
    known = order(frame[frame[column(metric)].notna()], metric)["run"].tolist()
    found: dict[str, Any] = {"metric": words(metric), "best": known[0], "rows": [], "failed": {}}
    if name not in compare.COMPARED[stage]:
        found["failed"][known[0]] = "no paired comparison is offered for this metric"
        return found
    for other in known[1 : COMPARED + 1]:
        try:
            base, run = (compare.read_tables(out / one).get(stage) for one in (known[0], other))
            if base is None or run is None:
                raise compare.CompareError("a score table is missing")
            first, second, _ = compare.share(base, run, (known[0], other))
            if first.empty:
                raise compare.CompareError("no test image in common")
            draws = max(20, min(DRAWS, WORK // len(first)))
            row = compare.differences(first, second, stage, resamples=draws, only=[name]).loc[name].to_dict()
            found["rows"].append({"name": other, "images": len(first)} | row)
        except compare.CompareError as error:
            found["failed"][other] = str(error)
    return found


def over_seeds(sweep: Sweep, frame: pd.DataFrame, metrics: list[str]) -> dict[str, Any] | None:
    """What training again with other seeds does to each combination: mean, least and most on validation.

    Returns:
        names of the other parameters, metrics in words, and rows of values, seeds and cells; None without `seeds`.
    """
    if SEED not in sweep.varying or not metrics:
        return None
    names = [name for name in sweep.varying if name != SEED]
    rows = []
    for values, some in frame.groupby(names or (lambda index: 0), sort=False):
        some = some[some[column(metrics[0])].notna()]
        cells = [some[column(metric)] for metric in metrics]
        texts = [f"{one.mean():.3f} ({one.min():.3f} to {one.max():.3f})" if len(one) else "–" for one in cells]
        rows.append({"values": values if names else (), "seeds": len(some), "cells": texts})
    return {"names": names, "metrics": [words(metric) for metric in metrics], "rows": rows}


def figure(frame: pd.DataFrame, name: str, metrics: list[str]) -> dict[str, str]:
    """The metrics against one parameter: every run with its intervals, and the means on validation.

    Returns:
        name, a PNG as data address, and the means in words.
    """
    import matplotlib.pyplot as plt

    levels, numbers = _sorted(frame[name].unique())
    size = (4.6 * len(metrics), 3.4)
    drawn, axes = plt.subplots(1, len(metrics), figsize=size, squeeze=False, layout="constrained")
    told = []
    for ax, metric in zip(axes[0], metrics, strict=True):
        means = _draw(ax, frame, name, levels, metric, "-" if numbers else "")
        said = ", ".join(f"{mean:.3f} at {level or 'its default'}" for level, mean in means.items())
        told.append(f"{words(metric)}, mean on validation {said}")
    drawn.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    drawn.savefig(file := io.BytesIO(), format="png", dpi=110)
    plt.close(drawn)
    source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"name": name, "source": source, "alt": f"Metrics against {name}. {'; '.join(told)}."}


def _draw(ax, frame: pd.DataFrame, name: str, levels: list[str], metric: str, line: str) -> dict[str, float]:
    from dfd.plots.results import PALETTE

    for split, colour, shift, marker in (("val", PALETTE[0], -0.09, "o"), ("test", PALETTE[1], 0.09, "s")):
        key = column(metric, split)
        rows = frame[frame[key].notna()]
        within = rows.groupby(name).cumcount() - (rows.groupby(name)[name].transform("size") - 1) / 2
        x = rows[name].map(levels.index) + shift + 0.02 * within.clip(-3, 3)
        low, high = (rows[key] - rows[f"{key}_low"]).clip(0), (rows[f"{key}_high"] - rows[key]).clip(0)
        label = {"val": "validation", "test": "test"}[split]
        ax.errorbar(x, rows[key], [low, high], fmt=marker, color=colour, ms=5, lw=1.2, alpha=0.85, label=label)
    means = frame.groupby(name)[column(metric)].mean().reindex(levels).dropna()
    at = [levels.index(level) - 0.09 for level in means.index]
    ax.plot(at, means, color=PALETTE[0], ls=line, marker="_", ms=22, lw=1, alpha=0.6)
    shown = [str(level) or "default" for level in levels]
    ax.set_xticks(range(len(levels)), [text if len(text) < 23 else f"{text[:21]}…" for text in shown])
    ax.set(xlabel=name, title=words(metric), xlim=(-0.5, len(levels) - 0.5))
    ax.tick_params(axis="x", rotation=30 if sum(map(len, shown)) > 50 else 0)
    ax.grid(axis="y", alpha=0.3)
    return means.to_dict()


def _sorted(levels: np.ndarray) -> tuple[list[str], bool]:
    """Numbers by size, words in the order of the grid; and which of both they are."""
    try:
        return sorted(levels, key=float), True
    except ValueError:
        return list(levels), False
