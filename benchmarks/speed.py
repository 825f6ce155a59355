"""Speed as ratios within one run, each beside its bar: `make bench`, `make bench ARGS=--long`, `make bench ARGS=--gpu`.

Absolute times depend on the machine, ratios much less. docs/performance.md says what the rows mean and what came out.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from benchmarks import (
    engines,
    gpu,
    growth,
    measure,
    memory,
    networks,
    peers,
    pictures,
    predicting,
    scanning,
    scoring,
    starting,
    sweeping,
    training,
)
from dfd.core.runs import cores


@click.command()
@click.option("--long", is_flag=True, help="Also many files, engines, peers, growth, what compiling brings: an hour.")
@click.option(
    "--gpu", "on_gpu", is_flag=True, help="Images a second and the share of the matrix rate, on the GPU alone."
)
@click.option("--only", default="", help="Rows whose group has this name: starting, networks, predicting, scanning, …")
@click.option("--repeats", default=3, show_default=True, help="Measurements of each side; the best counts.")
@click.option("--keep", is_flag=True, help="Append to benchmarks/history.jsonl, which is in git, not to reports/.")
def main(long: bool, on_gpu: bool, only: str, repeats: int, keep: bool) -> None:
    """Print what was measured, its bar, the value and whether the bar is met; keep the rows as one line of JSON."""
    print(measure.machine())
    found = []
    with tempfile.TemporaryDirectory() as name:
        os.environ["DFD_CACHE"] = str(Path(name) / "cache")
        groups = {"gpu": gpu.rows(Path(name))} if on_gpu else _groups(Path(name), repeats, long)
        if not any(only in group for group in groups):
            raise click.BadParameter(f"no group of {only!r}; there are {', '.join(groups)}, and more with --long")
        try:
            for group, rows in groups.items():
                if only in group or group == "pictures":  # which others need
                    for row in _quietly(rows):
                        print(row, flush=True)
                        found.append(row)
        finally:  # an hour's rows are not lost for one that fails
            path, fallen = measure.KEPT if keep else measure.HISTORY, measure.regressions(found)
            measure.keep(found, path)
            print(f"kept in {path}")
    if os.getloadavg()[0] > cores() + 0.5:
        print("Other work ran beside this: ratios are not held against earlier ones.")
    elif fallen:
        raise SystemExit("\n".join(["More than 10 % below the last kept run on such a machine:", *fallen]))


def _groups(folder: Path, repeats: int, long: bool) -> dict[str, Iterator[measure.Row]]:
    small = folder / "small"
    groups = {
        "pictures": pictures.fill(small, 400),
        "starting": starting.rows(folder, repeats),
        "networks": networks.rows(repeats),
        "predicting": predicting.rows(small, 240, repeats),
        "scanning": scanning.rows(small, repeats),
        "sweeping": sweeping.rows(small, 16, repeats),
        "training": training.rows(small, repeats),
        "scoring": scoring.rows(folder),
    }
    if long:
        groups |= {
            "long scanning": scanning.long_rows(folder),
            "long memory": memory.rows(folder),
            "long networks": networks.long_rows(repeats),
            "long engines": engines.rows(folder, small, repeats),
            "long peers": peers.rows(folder),
            "long growth": growth.rows(folder),
        }
    return groups


def _quietly(rows: Iterator[measure.Row]) -> Iterator[measure.Row]:
    """What is measured prints nothing in between."""
    while True:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            row = next(rows, None)
        if row is None:
            return
        yield row


if __name__ == "__main__":
    main()
