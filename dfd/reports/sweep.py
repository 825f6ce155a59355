"""A parameter sweep: a YAML grid becomes many runs of the notebooks, and a page that ranks them on validation."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pydantic
import yaml
from sklearn.model_selection import ParameterGrid

from dfd import config
from dfd.core import cores, digest, elapsed, printable, read_json, runs, write_text
from dfd.evaluate.metrics import STAGE_METRICS
from dfd.reports import html, runner

LOG = "sweep.log"  # of a run, in its folder
COMMAND = (sys.executable, "-m", "dfd", "run")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
GRACE = 90.0  # seconds that a run has to save and end
METRICS = {"stage1_val_auc": "Stage 1: AUC", "stage2_val_balanced_accuracy": "Stage 2: Balanced accuracy"}  # of ranks
Settings = dict[str, str]  # parameters as words for `run -p`


class Sweep(pydantic.BaseModel, extra="forbid"):
    """What a YAML file asks for."""

    name: str = ""  # the file's
    data: str = "data/sample"
    profile: str = "demo"
    notebooks: list[str | int] = ["00", "01", "02"]
    parameters: dict[str, Any] = {}  # a list is tried value by value, each with each
    seeds: list[int] = []  # of the training; the splits stay
    runs: list[dict[str, Any]] = []  # what each run, or each product of lists, sets beside `parameters`

    def settings(self) -> dict[str, Settings]:
        """What each run sets, by its name, which is its folder's and does not depend on the order in the file."""
        axes = [self.parameters | run for run in self.runs or [{}]]
        points = [*ParameterGrid([{k: v if isinstance(v, list) else [v] for k, v in axis.items()} for axis in axes])]
        numbers = [number for number in ("01", "02") if any(str(stem).startswith(number) for stem in self.notebooks)]
        if self.seeds and not numbers:
            raise config.ConfigError("seeds needs a notebook that trains, 01 or 02, under notebooks")
        points = [p | {f"{number}.seed": seed for number in numbers} for p in points for seed in self.seeds] or points
        settings = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in point.items()} for point in points]
        named = dict(zip(map(_named, varying(settings)), settings, strict=True))
        if len(named) < len(settings):
            raise config.ConfigError("two runs are the same; a value or a run is listed twice")
        return named


def read(path: str | Path) -> Sweep:
    """Read a grid and check its runs as `dfd run` would; a FileNotFoundError or ConfigError names what is wrong."""
    path = Path(path)
    try:
        sweep = Sweep.model_validate({"name": path.stem} | (yaml.safe_load(path.read_text("utf-8")) or {}))
        if not config.resolve(sweep.data).is_dir():
            raise FileNotFoundError(f"{path}: no data folder {sweep.data}")
        stems = [notebook.stem for notebook in runner.choose(runner.NOTEBOOKS, sweep.notebooks)]
        sweep.notebooks = [*stems]
        for words in sweep.settings().values():
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
    full = ",".join(f"{key}-{value}" for key, value in sorted(differing.items())) or "run"
    name = re.sub(r"[^\w.,+-]+", "-", re.sub(r"[\[\]\"]", "", full))[:90]
    return name if name == full else f"{name}-{digest(full)[:6]}"


def entries_of(sweep: Sweep, out: str | Path) -> dict[str, dict]:
    """Status, settings and command of each run; `dfd run` itself keeps what is finished and unchanged."""
    entries = {}
    for name, settings in sweep.settings().items():
        words = [*COMMAND, "--data", sweep.data, "--out", str(Path(out) / name), "--profile", sweep.profile]
        words += [word for setting in settings.items() for word in ("-p", *setting)] + ["--", *sweep.notebooks]
        entries[name] = {"status": "waiting", "settings": settings, "command": words}
    return entries


def run(sweep: Sweep, out: str | Path, jobs: int | None = None, say: Callable[[str], None] = print) -> Path:
    """Run all, `jobs` at once (one for two cores), each in its process and a folder below `out`.

    One that fails stops no other. A RunError says which failed (code 1), or that a signal asked to end (130 or 143);
    the first lets the runs save and end, the second ends them at once, and what is done is kept.
    """
    place, jobs, started = config.resolve(str(out)), jobs or max(1, cores() // 2), []
    env = dict.fromkeys(THREADS, str(max(1, cores() // jobs))) | os.environ

    def end() -> bool:
        for process in started:
            process.terminate()
        return True

    text = f"Ending: the runs may save, for {GRACE:.0f} s; once more ends at once."
    if (place / "config.json").exists():
        raise config.ConfigError(f"{out} is the folder of a run; give the sweep another --out")
    with runs.run_lock(place), runs.deferred(text, end, GRACE, say) as stop, ThreadPoolExecutor(jobs) as pool:
        entries = entries_of(sweep, place)
        tasks = [pool.submit(_execute, place / name, entry, env, started, stop, say) for name, entry in entries.items()]
        try:
            page = index if (index := place / "index.html").exists() else write(sweep, entries, place)
            for task in as_completed(tasks):
                name, result = task.result()
                entries[name] |= result
                page = write(sweep, entries, place)
        except BaseException as error:
            stop.number = stop.number or signal.SIGTERM  # no other run starts
            for process in started:
                process.kill()
            if not isinstance(error, runs.Interrupted):
                raise
    if stop.number:
        raise runner.RunError(runner.INTERRUPTED.format(out), 128 + stop.number)
    if failed := [name for name, entry in entries.items() if entry["status"] != "finished"]:
        text = f"{len(failed)} of {len(entries)} runs did not finish: {', '.join(failed)}. Their last lines are in"
        raise runner.RunError(f"{text} {page}; mend the cause, then run the same command again.")
    return page


def _execute(folder: Path, entry: dict, env: dict, started: list, stop: Any, say: Callable) -> tuple[str, dict]:
    """Run in a session of its own, of which a signal to the sweep does not reach it twice, and wait."""
    if stop.number:
        return folder.name, {}
    folder.mkdir(exist_ok=True)
    say(f"{folder.name}  started")
    began = time.monotonic()
    with (folder / LOG).open("ab") as log:
        files = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        process = subprocess.Popen(entry["command"], **files, env=env, start_new_session=True)
    started.append(process)
    if stop.number:  # the signal came in between
        process.terminate()
    code, seconds, lines = process.wait(), round(time.monotonic() - began, 1), []
    status = "finished" if code == 0 else "interrupted" if stop.number else "failed"
    if status == "failed":
        text = click.unstyle((folder / LOG).read_text("utf-8", "replace"))
        lines = [printable(line.rstrip()) for line in text.splitlines() if line.strip()][-8:]
        if code < 0:
            lines.append(f"ended by signal {-code}; most often memory ran out")
    say("\n    ".join([f"{folder.name}  {status} after {elapsed(seconds)}", *lines]))
    return folder.name, {"status": status, "seconds": seconds, "last_lines": lines}


def write(sweep: Sweep, entries: dict[str, dict], out: Path) -> Path:
    """Write sweep.csv and index.html from what the run folders hold, where runs wait that of an earlier call."""
    rows, differing = [], varying([entry["settings"] for entry in entries.values()])
    for (name, entry), settings in zip(entries.items(), differing, strict=True):
        measured = read_json(out / name / "metrics.json") if entry["status"] in ("finished", "waiting") else {}
        pairs = zip(STAGE_METRICS, runner.TRAIN, strict=True)
        numbers = {stage: measured[stage] for stage, stem in pairs if stage in measured and stem in sweep.notebooks}
        took = [done.get("seconds", 0) for done in read_json(out / name / "config.json").get("notebooks", {}).values()]
        rows.append({"run": name, "status": entry["status"], "seconds": sum(took)} | settings | numbers)
    for parts in ([row[stage] for row in rows if stage in row] for stage in STAGE_METRICS):
        for part in parts if all("hold_outs" in part for part in parts) else ():  # whose heads learnt from val
            part["val"] = {k.replace("acc", "balanced_acc"): row for k, row in part["hold_outs"]["as it is"].items()}
    table = pd.json_normalize(rows, sep="_").rename(columns=lambda name: name.removesuffix("_value"))
    names = list(dict.fromkeys(name for settings in differing for name in settings))
    metrics = {metric: title for metric, title in METRICS.items() if metric in table}
    table = table.sort_values(list(metrics)[:1], ascending=False, kind="stable")
    write_text(out / "sweep.csv", table.to_csv(index=False))
    fixed = [name for name in names if name != "seed"]  # over the seeds of each combination of these
    groups: Any = table.fillna(dict.fromkeys(fixed, "")).groupby(fixed or (lambda row: ""), sort=False)
    spreads = {title: groups[key].agg(["count", "mean", "min", "max"]) for key, title in metrics.items() if sweep.seeds}
    return html.render(out / "index.html", "sweep.html.j2", sweep=sweep, names=names, entries=entries, metrics=metrics,
            seeds=spreads, table=table)  # fmt: skip
