"""A parameter sweep: a YAML grid becomes many runs of the notebooks, and a page that ranks them on validation."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import click
import pandas as pd
import pydantic
import seaborn as sns
import yaml
from matplotlib import pyplot as plt
from sklearn.model_selection import ParameterGrid

from dfd import __version__, config
from dfd.core import runs
from dfd.core.io import digest, read_json, write_json, write_text
from dfd.core.runs import cores, elapsed
from dfd.evaluate.compare import CompareError, compare
from dfd.evaluate.metrics import METRICS, STAGE_METRICS
from dfd.reports import html, runner

RECORD, LOG, COMPARISON = "sweep.json", "sweep.log", "compare.html"
COMMAND = (sys.executable, "-m", "dfd", "run")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
GRACE = 90.0  # seconds that a run has to save and end
COMPARED = 4  # runs that are compared with the best, image by image
METRIC_NAMES = [f"{stage}.{name}" for stage, names in STAGE_METRICS.items() for name in names]
ENDS = {"value": "", "low": "_low", "high": "_high"}  # of a metric's columns
Metric = Annotated[str, pydantic.Field(pattern=f"^({'|'.join(METRIC_NAMES)})$")]
Words = Sequence[str]
Settings = dict[str, str]  # parameters as words for `run -p`


class Sweep(pydantic.BaseModel, extra="forbid"):
    """What a YAML file asks for."""

    name: str = ""  # the file's
    data: str = "data/sample"
    profile: str = "demo"
    notebooks: list[str | int] = ["00", "01", "02"]
    parameters: dict[str, Any] = {}  # a list is tried value by value, each with each
    seeds: list[int] = []  # of the training; the splits stay
    runs: list[dict[str, Any]] = []  # in place of lists: what each run sets
    sort_by: list[Metric] = ["stage1.auc", "stage2.accuracy"]  # on validation

    def settings(self) -> dict[str, Settings]:
        """What each run sets, by its name, which is its folder's and does not depend on the order in the file."""
        axes = {key: values if isinstance(values, list) else [values] for key, values in self.parameters.items()}
        if self.runs and any(len(values) > 1 for values in axes.values()):
            raise config.ConfigError("several values under parameters beside runs; a product of lists, or single runs")
        points = [point | single for single in self.runs or [{}] for point in ParameterGrid(axes)]
        numbers = [number for number in ("01", "02") if any(str(stem).startswith(number) for stem in self.notebooks)]
        if self.seeds and not numbers:
            raise config.ConfigError("seeds needs a notebook that trains, 01 or 02, under notebooks")
        if self.seeds:
            points = [p | {f"{number}.seed": seed for number in numbers} for p in points for seed in self.seeds]
        settings = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in point.items()} for point in points]
        named = dict(zip(map(_named, varying(settings)), settings, strict=True))
        if len(named) < len(settings):
            raise config.ConfigError("two runs are the same; a value or a run is listed twice")
        return named


def read(path: str | Path, limit: int = 100) -> Sweep:
    """Read a grid, and check every run of it as `dfd run` would; the sweep is named after the file.

    A FileNotFoundError names the file or the data folder, a ConfigError what is wrong, such as more than `limit` runs.
    """
    path = Path(path)
    try:
        sweep = Sweep.model_validate({"name": path.stem} | (yaml.safe_load(path.read_text("utf-8")) or {}))
        if not config.resolve(sweep.data).is_dir():
            raise FileNotFoundError(f"{path}: no data folder {sweep.data}")
        stems = [notebook.stem for notebook in runner.choose(runner.NOTEBOOKS, sweep.notebooks)]
        sweep.notebooks = [*stems]
        settings = sweep.settings()
        if len(settings) > limit:
            raise config.ConfigError(f"asks for {len(settings)} runs; `--limit {len(settings)}` runs them all")
        for words in settings.values():
            runner.plan(stems, config.NOTEBOOKS, {"data": sweep.data, "out": "reports"}, sweep.profile, words)
        return sweep
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise config.ConfigError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (ValueError, TypeError, yaml.YAMLError) as error:  # of a parameter, or a file that is no text or no YAML
        raise config.ConfigError(f"{path}: {' '.join(str(error).split())}") from None


def varying(settings: Sequence[Settings]) -> list[Settings]:
    """Of what each run sets, that which tells it from the others; the seed of all notebooks is one."""
    keys = dict.fromkeys(key for words in settings for key in words)
    differing = [key for key in keys if len({words.get(key) for words in settings}) > 1]
    names = {key: "seed" if key in ("01.seed", "02.seed") else key for key in differing}
    return [{name: words[key] for key, name in names.items() if key in words} for words in settings]


def _named(differing: Settings) -> str:
    """A folder's name; what no name can show has a digest of it instead."""
    parts = []
    for key, value in sorted(differing.items()):
        shown = re.sub(r"[^\w.+-]+", "-", value).strip("-")
        parts.append(f"{key}-{shown}" + (f"-{digest(value)[:6]}" if shown != value else ""))
    name = ",".join(parts) or "run"
    return name if len(name) <= 100 else f"{name[:90]}-{digest(name)[:6]}"


def entries_of(sweep: Sweep, out: str | Path, command: Words = COMMAND) -> dict[str, dict]:
    """What is known of each run: status, settings, command; finished while all it was made from is what it was."""
    place, entries = config.resolve(str(out)), {}
    known = read_json(place / RECORD).get("runs", {})
    cells = [runner.cells_of(runner.NOTEBOOKS / f"{stem}.ipynb") for stem in sweep.notebooks]
    made_from = (__version__, sweep.profile, runs.fingerprint(config.resolve(sweep.data)), cells)
    for name, settings in sweep.settings().items():
        options = {"--data": sweep.data, "--out": str(Path(out) / name), "--profile": sweep.profile}
        words = [*command, *(word for option in options.items() for word in option)]
        words += [word for setting in settings.items() for word in ("-p", *setting)] + ["--", *sweep.notebooks]
        entry = {"status": "waiting", "settings": settings, "key": digest(settings, *made_from), "command": words}
        before = known.get(name, {})
        done = before.get("status") == "finished" and before["key"] == entry["key"]
        entries[name] = before if done and (place / name / "index.html").exists() else entry
    return entries


def run(
    sweep: Sweep,
    out: str | Path,
    jobs: int | None = None,
    command: Words = COMMAND,
    say: Callable[[str], None] = print,
) -> Path:
    """Run what is not finished, `jobs` at once (one for two cores), each in its process and a folder below `out`.

    One that fails stops no other. A RunError says which failed (code 1), or that a signal asked to end (130 or 143);
    the first lets the runs save and end, the second ends them at once, and what is done is kept.
    """
    place, jobs, processes = config.resolve(str(out)), jobs or max(1, cores() // 2), []
    threads = max(1, cores() // jobs)

    def end() -> bool:
        for process in processes:
            process.terminate()
        return True

    text = f"Ending: the runs may save, for {GRACE:.0f} s; once more ends at once."
    with runs.run_lock(place), runs.deferred(text, end, GRACE, say) as stop, ThreadPoolExecutor(jobs) as pool:
        entries = entries_of(sweep, place, command)
        waiting = {name: entry for name, entry in entries.items() if entry["status"] != "finished"}
        say(f"{len(entries) - len(waiting)} of {len(entries)} runs finished before.")
        tasks = [
            pool.submit(_execute, entry["command"], place / name, threads, processes, stop, say)
            for name, entry in waiting.items()
        ]
        try:
            page = write(sweep, entries, place)
            for task in as_completed(tasks):
                name, result = task.result()
                entries[name] |= result
                write_json(place / RECORD, {"name": sweep.name, "runs": entries})
                page = write(sweep, entries, place)
        except BaseException as error:
            stop.number = stop.number or signal.SIGTERM  # no other run starts
            for process in processes:
                process.kill()
            if not isinstance(error, runs.Interrupted):
                raise
    if stop.number:
        text = f"Interrupted. What is done is kept in {out}; the same command goes on from there."
        raise runner.RunError(text, 128 + stop.number)
    failed = [name for name, entry in entries.items() if entry["status"] != "finished"]
    if failed:
        text = f"{len(failed)} of {len(entries)} runs did not finish: {', '.join(failed)}. Their last lines are in"
        raise runner.RunError(f"{text} {page}; mend the cause, then run the same command again.")
    return page


def _execute(
    words: Words, folder: Path, threads: int, processes: list[subprocess.Popen], stop: runs.Stop, say: Callable
) -> tuple[str, dict]:
    """Run in a session of its own, of which a signal to the sweep does not reach it twice, and wait."""
    if stop.number:
        return folder.name, {}
    folder.mkdir(exist_ok=True)
    say(f"{folder.name}  started")
    began, variables = time.monotonic(), dict.fromkeys(THREADS, str(threads)) | os.environ
    with (folder / LOG).open("wb") as log:
        files = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        process = subprocess.Popen(words, **files, env=variables, start_new_session=True)
    processes.append(process)
    if stop.number:  # the signal came in between
        process.terminate()
    code, seconds, lines = process.wait(), round(time.monotonic() - began, 1), []
    status = "finished" if code == 0 else "interrupted" if stop.number else "failed"
    if status == "failed":
        text = click.unstyle((folder / LOG).read_text("utf-8", "replace"))
        lines = [html.printable(line.rstrip()) for line in text.splitlines() if line.strip()][-8:]
        if code < 0:
            lines.append(f"ended by signal {-code}; most often memory ran out")
    say("\n    ".join([f"{folder.name}  {status} after {elapsed(seconds)}", *lines]))
    return folder.name, {"status": status, "seconds": seconds, "last_lines": lines}


def write(sweep: Sweep, entries: dict[str, dict], out: Path) -> Path:
    """Write sweep.csv and index.html from what the run folders hold; at the end also compare the best by image."""
    rows, differing = [], varying([entry["settings"] for entry in entries.values()])
    for (run, entry), settings in zip(entries.items(), differing, strict=True):
        row = {"run": run, "status": entry["status"], "seconds": entry.get("seconds")} | settings
        measured = read_json(out / run / "metrics.json") if entry["status"] == "finished" else {}
        for metric, split in product(METRIC_NAMES, ("val", "test")):
            stage, name = metric.split(".")
            number = measured.get(stage, {}).get(split, {}).get(name, {})
            row |= {column(metric, split) + end: number[key] for key, end in ENDS.items() if key in number}
        rows.append(row)
    table, names = pd.DataFrame(rows), list(dict.fromkeys(name for settings in differing for name in settings))
    metrics = [metric for metric in sweep.sort_by if column(metric) in table]
    if metrics:
        table = rank(table, column(metrics[0]), metrics[0])
    write_text(out / "sweep.csv", table.to_csv(index=False))
    if not (table["status"] == "waiting").any():
        with contextlib.suppress(CompareError):  # fewer than two with score tables
            html.render(
                out / COMPARISON,
                "compare.html.j2",
                comparisons=compare([out / run for run in table["run"][: COMPARED + 1]]),
            )
    settings = [name for name in names if name != "seed"]
    return html.render(
        out / "index.html",
        "sweep.html.j2",
        sweep=sweep,
        names=names,
        settings=settings,
        runs=table.astype(object).where(table.notna(), None).to_dict("records"),
        entries=entries,
        metrics={metric: title(metric) for metric in metrics},
        best={metric: rank(table, column(metric), metric).iloc[0] for metric in metrics},
        seeds={title(metric): over_seeds(table, settings, metric) for metric in metrics if "seed" in names},
        figures={name: figure(table, name, metrics) for name in settings if metrics},
        compared=(out / COMPARISON).exists(),
        column=column,
    )


def column(metric: str, split: str = "val") -> str:
    """The column of a metric such as stage1.auc."""
    return metric.replace(".", f"_{split}_")


def title(metric: str) -> str:
    """A metric such as stage1.auc in words."""
    return f"Stage {metric[5]}: {html.metric_name(metric[7:])}"


def rank(table: pd.DataFrame, by: str, metric: str) -> pd.DataFrame:
    """A table's rows, the best first, those without a value last."""
    rising = not METRICS[metric.partition(".")[2]].higher_is_better
    return table.sort_values(by, ascending=rising, kind="stable", na_position="last")


def over_seeds(table: pd.DataFrame, settings: list[str], metric: str) -> pd.DataFrame:
    """Mean, least and most on validation over the seeds of each combination of settings, the best mean first."""
    groups = table.fillna(dict.fromkeys(settings, "")).groupby(settings or (lambda row: ""), sort=False)
    return rank(groups[column(metric)].agg(["count", "mean", "min", "max"]), "mean", metric)


def figure(table: pd.DataFrame, name: str, metrics: list[str]) -> str:
    """The metrics against one parameter, means and ranges over all else that varies: a PNG as data address."""
    pairs = product(metrics, ("val", "test"))
    parts = [table.assign(value=table[column(*pair)], split=pair[1], metric=title(pair[0])) for pair in pairs]
    rows = pd.concat(parts, ignore_index=True).fillna({name: "default"})
    with contextlib.suppress(ValueError):  # words stay in the order of the grid
        rows = rows.sort_values(name, key=lambda values: values.astype(float))
    options = {"col": "metric", "hue": "split", "kind": "point", "errorbar": ("pi", 100), "linestyle": "none"}
    drawn = sns.catplot(rows, x=name, y="value", dodge=0.2, sharey=False, height=3.4, **options)
    drawn.set_titles("{col_name}").savefig(file := io.BytesIO(), format="png", dpi=110)
    plt.close(drawn.figure)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
