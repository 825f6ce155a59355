"""What a row of the benchmarks is, how its two sides are timed in turns, and where the rows are kept."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import PIL
import torch

from dfd import config

KEPT = config.ROOT / "benchmarks" / "history.jsonl"  # in git: runs on the project's own machine
HISTORY = config.ROOT / "reports" / "benchmarks.jsonl"  # not in git: everybody's own runs
TOLERANCE = 0.1  # share by which a ratio may fall below the last kept one
RATIOS = ("of bare", "of one")  # units: of what bounds the work; of the same with one worker


@dataclass(frozen=True)
class Row:
    """One comparison: the best seconds of the product and, where there is one, of what bounds it, in the same run."""

    what: str
    value: float  # ratio bound / product, or the quantity that `unit` names
    bar: float | None = None
    unit: str = "of bare"  # of RATIOS: at least the bar; any other unit: at most the bar
    seconds: float | None = None
    bare_seconds: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None without a bar."""
        if self.bar is None:
            return None
        return self.value >= self.bar if self.unit in RATIOS else self.value <= self.bar

    def __str__(self) -> str:
        bar = "-" if self.bar is None else f"{'>=' if self.unit in RATIOS else '<='} {self.bar:g}"
        met = {None: "", True: "met", False: "NOT MET"}[self.met]
        both = "" if self.bare_seconds is None else f"{self.seconds:.2f} s, bare {self.bare_seconds:.2f} s"
        return f"{self.what:72} {bar:>8} {self.value:10.2f} {self.unit:9} {met:8} {both}".rstrip()


def in_turns(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Seconds of the fastest of some calls of each, called one after another: other work then slows all of them.

    A call that returns a float has timed itself.
    """
    times = [[_seconds(call) for call in calls] for _ in range(repeats)]
    return [min(column) for column in zip(*times, strict=True)]


def against(what: str, product: Callable, bare: Callable, repeats: int, bar: float | None = None) -> Row:
    """Time both in turns, after one call of each that does not count."""
    in_turns([product, bare], 1)
    mine, bound = in_turns([product, bare], repeats)
    return Row(what, bound / mine, bar, seconds=mine, bare_seconds=bound)


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    found = call()
    return found if isinstance(found, float) else time.perf_counter() - started


def keep(rows: Sequence[Row], path: Path) -> None:
    """Append one line of JSON: when, on which machine, at which commit, with which versions, and the rows."""
    entry = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": machine(),
        "load": round(os.getloadavg()[0], 2),  # above the number of cores: other work disturbed this run
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
        "rows": [asdict(row) | {"met": row.met} for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def regressions(rows: Sequence[Row], path: Path = KEPT, here: str = "") -> list[str]:
    """The ratios that fell by more than TOLERANCE below the last ones kept from the same kind of machine, in words."""
    entries = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    before = {}
    for entry in entries:
        if entry["machine"] == (here or machine()):
            before |= {row["what"]: (row["value"], entry["commit"]) for row in entry["rows"] if row["unit"] in RATIOS}
    known = [(row, *before[row.what]) for row in rows if row.what in before and row.unit in RATIOS]
    return [f"{row.what}: {row.value:.2f}, at commit {commit} {value:.2f}"
            for row, value, commit in known if row.value < (1 - TOLERANCE) * value]  # fmt: skip


def machine() -> str:
    """Processor, cores, torch's threads and GPU, in words."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads, {gpu}"


def _commit() -> str:
    command = ["git", "-C", str(config.ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
