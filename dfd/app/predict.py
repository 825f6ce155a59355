"""What `python -m dfd predict` does: find files, judge them as they come, and write a table, JSON, CSV and a page."""

from __future__ import annotations

import csv
import glob
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from dfd.app.evidence import Examination, draw
from dfd.app.examine import examine, refused
from dfd.app.page import page
from dfd.core import runs
from dfd.core.images import ImageError
from dfd.core.io import write_text
from dfd.data.layouts import SUFFIXES
from dfd.inference.detector import Detector, Verdict

MAX_PICTURED = 50  # images that a page shows pictures of; of the others it has the text only
COLUMNS = ("path", "is_fake", "p_fake", "source", "candidates", "crops", "crop_std", "error")


class Journal:
    """A CSV file that grows by one whole line for each image, and that a later run can go on with.

    Raises:
        FileExistsError: the file exists, and resume is not set.
        ValueError: it is no such file, or was written by other networks or at another threshold.
    """

    def __init__(self, path: Path, resume: bool):
        self.path, self.done, self.failed = path, set[str](), 0
        self.judged_by: tuple[str, str] | None = None  # what judged the lines that are there: networks, threshold
        if not path.exists() or path.stat().st_size == 0:
            return
        if not resume:
            raise FileExistsError(f"{path} exists; add --resume to go on with it, or take another name")
        data = path.read_bytes()
        if length := data.rfind(b"\n") + 1:
            os.truncate(path, length)  # a run that was killed may have left half a line
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            for row in csv.DictReader(file):
                if not {"path", "error", "networks", "threshold"} <= row.keys():
                    raise ValueError(f"{path} was not written by `predict --csv`; its columns are {', '.join(row)}")
                self.done.add(row["path"])
                self.failed += bool(row["error"])
                self.judged_by = row["networks"], row["threshold"]

    def open(self, detector: Detector) -> None:
        """Get ready for this detector's verdicts."""
        networks = f"{detector.stage1.key}-{detector.stage2.key}", repr(detector.threshold)
        if self.judged_by not in (None, networks):
            raise ValueError(f"{self.path} was written by other networks or at another threshold; take another name")
        is_new, self.judged_by = self.judged_by is None, networks
        self.classes = detector.stage2.classes
        self.file = self.path.open("a", newline="", encoding="utf-8", errors="surrogateescape")
        self.rows = csv.writer(self.file)
        if is_new and not self.file.tell():
            self.rows.writerow([*COLUMNS, *(f"p_{name}" for name in self.classes), "networks", "threshold"])

    def write(self, verdict: Verdict) -> None:
        """Add one line, on disk when this returns."""
        values = verdict.asdict() | {"candidates": "|".join(verdict.candidates or ())}
        shares = [(verdict.p_source or {}).get(name) for name in self.classes]
        self.rows.writerow([*(values[name] for name in COLUMNS), *shares, *self.judged_by])
        self.file.flush()


def find_images(paths: Iterable[str]) -> list[str]:
    """The files as given; of a folder all images below it, by name; of a pattern all that it matches.

    Raises:
        FileNotFoundError: a folder without an image, or a pattern that matches nothing.
    """
    files = []
    for path in paths:
        if os.path.isdir(path):
            below = sorted(str(p) for p in Path(path).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not below:
                raise FileNotFoundError(f"no images below {path}")
            files += below
        elif glob.has_magic(path) and not os.path.lexists(path):
            matches = sorted(glob.glob(path, recursive=True))
            if not matches:
                raise FileNotFoundError(f"no file matches {path}")
            files += find_images(match for match in matches if not (os.path.isdir(match) and "**" in path))
        else:
            files.append(path)
    return files


def run(
    folder: Path,
    paths: list[str],
    journal: Journal | None,
    shown: str,
    as_json: bool,
    report: str | None,
    threshold_fpr: float | None,
    crops: int | None,
    crop_mode: str | None,
) -> int:
    """Judge the files, print each answer as it comes, and give the exit code.

    Args:
        folder: the run folder with the networks.
        paths: files.
        journal: gets a line for each answer; what it has is skipped.
        shown: how to call the folder.
        as_json: print JSON lines in place of a table.
        report: HTML page to write.
        threshold_fpr: share of the validation photos that may be called fake; none takes the model's threshold.
        crops, crop_mode: as in `Stage.stream`.

    Returns:
        0 if every image was answered, 1 if one was refused, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        ValueError: a checkpoint that cannot be opened or lacks the threshold, or a journal of another model.
        OSError: the journal or the page cannot be written.
    """
    detector = Detector.load(folder)
    if threshold_fpr is not None:
        detector = detector.at_fpr(threshold_fpr)
    click.echo(f"model: {shown}", err=True)
    left = [path for path in paths if journal is None or path not in journal.done]
    failed, answered = 0, 0
    if journal:
        failed = journal.failed
        journal.open(detector)
        if journal.done:
            click.echo(f"{len(paths) - len(left)} of {len(paths)} images are in {journal.path} already", err=True)
    width = min(60, max(map(len, map(printable, left)), default=0))
    if left and not as_json:
        click.echo(f"{'image':{width}}  {'verdict':7}  {'p(fake)':>7}  source")
    progress = tqdm(total=len(left), unit="image", leave=False, disable=True if len(left) < 2 else None)

    def say(line: str) -> None:
        with tqdm.external_write_mode():
            click.echo(printable(line), err=True)

    def answer(verdict: Verdict) -> None:
        nonlocal failed, answered
        with tqdm.external_write_mode():
            click.echo(json.dumps(verdict.asdict()) if as_json else row(verdict, width))
        if journal:
            journal.write(verdict)
        failed, answered = failed + (verdict.error is not None), answered + 1
        progress.update()

    def examinations() -> Iterator[Examination]:
        for number, path in enumerate(left):
            try:
                examination = _examined(detector, path, crops, crop_mode, say, with_pictures=number < MAX_PICTURED)
            except KeyboardInterrupt:  # a second signal: the page holds what there is
                return
            answer(examination.verdict)
            yield examination if number < MAX_PICTURED else examination.without_image()
            if stop.number:
                return

    stop = runs.Stop()
    try:
        with runs.deferred("stopping after this image; once more ends at once", tell=say) as stop:
            if report:
                write_text(Path(report), page(examinations(), model=shown))
            else:
                for verdict in detector.predict(left, crops, crop_mode, report=say):
                    answer(verdict)
                    if stop.number:
                        break
    except KeyboardInterrupt as again:
        stop.number = stop.number or getattr(again, "code", 130) - 128
    finally:
        progress.close()
        if journal:
            journal.file.close()
    if stop.number and answered < len(left):
        rest = "the same command with --resume goes on" if journal else "with --csv FILE a run can go on later"
        click.echo(f"interrupted after {answered} of {len(left)} images; {rest}", err=True)
        return 128 + stop.number
    if failed and len(paths) > 1:
        click.echo(f"{failed} of {len(paths)} images were refused", err=True)
    return 1 if failed else 0


def _examined(
    detector: Detector, path: str, crops: int | None, mode: str | None, say: Any, with_pictures: bool
) -> Examination:
    try:
        examination = examine(detector, path, crops=crops, mode=mode)
    except ImageError as error:
        return refused(path, str(error).removeprefix(f"{path}: "))
    for note in examination.notes:
        say(f"{path}: {note}")
    if with_pictures:
        for _ in draw(detector, examination):
            pass
    return examination


def row(verdict: Verdict, width: int) -> str:
    """One line of the table of verdicts; control characters of file names are escaped."""
    name = printable(verdict.path)
    name = name if len(name) <= width else "…" + name[1 - width :]
    if verdict.error:
        return f"{name:{width}}  {'error':7}  {'':7}  {printable(verdict.error)}"
    likeliest = max(verdict.p_source, key=verdict.p_source.get)
    nearest = f"{likeliest} ({verdict.p_source[likeliest]:.0%})"
    if not verdict.is_fake:
        return f"{name:{width}}  {'real':7}  {verdict.p_fake:7.3f}  if it were fake: {nearest}"
    source = nearest if verdict.source == likeliest else f"{verdict.source}, nearest {nearest}"
    others = [name for name in verdict.candidates if name != likeliest]
    possible = f", or {', '.join(others)}" if others else ""
    return f"{name:{width}}  {'fake':7}  {verdict.p_fake:7.3f}  {source}{possible}"


def printable(text: str) -> str:
    """Text that does nothing to a terminal."""
    return text if text.isprintable() else text.encode("unicode_escape", "surrogateescape").decode("ascii", "replace")
