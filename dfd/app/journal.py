"""A CSV file of verdicts that grows line by line, so that a run can be stopped and gone on with."""

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dfd.core.io import atomic_write
from dfd.inference.detector import Detector, Verdict

COLUMNS = "path sha256 is_fake verdict p_fake log10_lr source candidates crops crop_std outside error".split()


class Journal:
    """A CSV file that grows by one whole line for each image.

    One that exists is a FileExistsError unless `resume`, which leaves out the rows of images that were refused or are
    not to be kept, and a ValueError if not written by these networks like this. `done` has the SHA-256 of each path.
    """

    def __init__(self, path: Path, resume: bool, detector: Detector, keep: Callable[[dict], bool] = lambda row: True):
        networks = "-".join(stage.key for stage in detector.stages)
        self.judged_by = {"networks": networks, "threshold": repr(detector.threshold)}
        self.done, refused, before = dict[str, str](), False, path.read_bytes() if path.exists() else b""
        if before and not resume:
            raise FileExistsError(f"{path} exists; add --resume to go on with it, or take another name")
        if length := before.rfind(b"\n") + 1:
            os.truncate(path, length)  # a run that was killed may have left half a line
        text = before[:length].decode("utf-8", "surrogateescape")
        kept = io.StringIO(newline="")
        lines = csv.DictReader(io.StringIO(text, newline=""))
        rows = csv.DictWriter(kept, lines.fieldnames or [])
        rows.writeheader()
        for row in lines:
            if not {"path", "error", *self.judged_by} <= row.keys():
                raise ValueError(f"{path} was not written by `predict --csv`; its columns are {', '.join(row)}")
            if any(row[name] != value for name, value in self.judged_by.items()):
                raise ValueError(f"{path} was written by other networks or at another threshold; take another name")
            if row["error"] or not keep(row):  # perhaps it can be read by now
                refused = True
                continue
            self.done[row["path"]] = row["sha256"]
            rows.writerow(row)
        if refused:
            with atomic_write(path) as draft:
                draft.write_bytes(kept.getvalue().encode("utf-8", "surrogateescape"))
        self.file = path.open("a", newline="", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
        classes = [f"p_source.{name}" for name in (detector.stage2.classes if detector.stage2 else ())]
        self.rows = csv.DictWriter(self.file, [*COLUMNS, *classes, *self.judged_by])
        if not before:
            self.rows.writeheader()

    def write(self, verdict: Verdict) -> None:
        """Add one line, on disk when this returns."""
        values = {name: getattr(verdict, name) for name in COLUMNS}
        values["candidates"] = json.dumps(verdict.candidates or ())  # a name may hold any character
        shares = {f"p_source.{name}": p for name, p in (verdict.p_source or {}).items()}
        self.rows.writerow(values | shares | self.judged_by)
        self.file.flush()


def read_verdicts(path: Path) -> list[Verdict]:
    """The verdicts that a journal holds, in order."""
    verdicts = []
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        for row in csv.DictReader(file):
            shares = {name.removeprefix("p_source."): float(p) for name, p in row.items() if p and "p_source." in name}
            values: dict[str, Any] = {name: row[name] or None for name in COLUMNS}
            values |= {name: float(row[name]) for name in ("p_fake", "log10_lr", "crop_std") if row[name]}
            values |= {"is_fake": row["is_fake"] == "True", "candidates": tuple(json.loads(row["candidates"]))}
            values |= {"crops": int(row["crops"]), "p_source": shares or None} if row["crops"] else {}
            verdicts.append(Verdict(row["path"], error=row["error"]) if row["error"] else Verdict(**values))
    return verdicts
