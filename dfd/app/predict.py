"""What `python -m dfd predict` does: find files, judge them as they come, and write a table, JSON, CSV and a page."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from filelock import Timeout
from PIL import Image
from tqdm import tqdm

from dfd.app.evidence import Examination, draw
from dfd.app.examine import examine_or_refuse, page
from dfd.app.metadata import sentence
from dfd.core import runs
from dfd.core.images import ImageError, load_rgb
from dfd.core.io import atomic_write, explained, write_text
from dfd.inference.detector import Detector, Verdict

STDIN = "-"  # the path that stands for standard input
MAX_PICTURED = 50  # images that a page shows pictures of; of the others it has the text only
COLUMNS = ("path", "sha256", "is_fake", "verdict", "p_fake", "source", "candidates", "crops", "crop_std", "error")


class Journal:
    """A CSV file that grows by one whole line for each image.

    One that exists is a FileExistsError unless `resume`, which leaves out the rows of images that were refused, and a
    ValueError if not written by these networks like this.
    """

    def __init__(self, path: Path, resume: bool, detector: Detector):
        networks = "-".join(stage.key for stage in detector.stages)
        self.judged_by = {"networks": networks, "threshold": repr(detector.threshold)}
        self.done, refused, before = set[str](), False, path.read_bytes() if path.exists() else b""
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
            if row["error"]:  # perhaps it can be read by now
                refused = True
                continue
            self.done.add(row["path"])
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


def run(
    folder: Path, paths: list[str], shown: str, *, as_json: bool = False, table: str | None = None,
    resume: bool = False, report: str | None = None, threshold_fpr: float | None = None,
    crops: int | None = None, crop_mode: str | None = None, given: bytes | None = None,
) -> int:  # fmt: skip
    """Judge files with the networks in a run folder, called `shown`, and print each answer as it comes.

    The content of the file - is `given`. The rest are options of the command line. Gives 0 if every image was answered,
    1 if one was refused, 130 after Ctrl-C, 143 after SIGTERM. A checkpoint that cannot be opened or lacks the
    threshold, or a table of another model, is a ValueError; what cannot be written, an OSError; a table that another
    process writes, an InUse.
    """
    if report and not os.access(Path(report).absolute().parent, os.W_OK):  # before the work, not after it
        raise FileNotFoundError(f"{Path(report).absolute().parent} is no folder that can be written to; make it first")
    detector = Detector.load(folder)
    if threshold_fpr is not None:
        detector = detector.at_fpr(threshold_fpr)
    with _journal(Path(table) if table else None, resume, detector) as journal:
        return _judge(detector, journal, paths, shown, as_json, table, report, crops, crop_mode, given)


@contextmanager
def _journal(path: Path | None, resume: bool, detector: Detector) -> Iterator[Journal | None]:
    """The table to write to, for this process alone."""
    if path is None:
        yield None
        return
    with ExitStack() as stack:
        lock = path.absolute().with_name(f".{path.name}.lock")
        try:
            stack.enter_context(runs.file_lock(lock))
        except Timeout:
            raise runs.InUse(f"{path} is written by another predict; wait for it, or take another name") from None
        except OSError as error:
            raise explained(error, path) from error
        stack.callback(lock.unlink, missing_ok=True)
        journal = Journal(path, resume, detector)
        stack.enter_context(journal.file)
        yield journal


def _judge(
    detector: Detector, journal: Journal | None, paths: list[str], shown: str, as_json: bool, table: str | None,
    report: str | None, crops: int | None, crop_mode: str | None, given: bytes | None,
) -> int:  # fmt: skip
    """What `run` does once all files that it writes are open."""
    click.echo(f"model: {shown}", err=True)
    todo = [path for path in paths if not journal or path not in journal.done]
    if len(todo) < len(paths):
        click.echo(f"{len(paths) - len(todo)} of {len(paths)} images are in {table} already", err=True)
    width = min(60, max((len(printable(path)) for path in todo), default=0))
    if todo and not as_json:
        click.echo(f"{'image':{width}}  {'verdict':7}  {'p(fake)':>7}  source")
    answered, failed = 0, 0

    def say(line: str, err: bool = True) -> None:
        with tqdm.external_write_mode():
            click.echo(line, err=err)

    def answers(examinations: Iterable[Examination]) -> Iterator[Examination]:
        """Print and write down each verdict as it passes; the last one is that in which a signal came."""
        nonlocal answered, failed
        for examination in examinations:
            verdict = examination.verdict
            if journal:  # before it is shown: a stream may fail
                journal.write(verdict)
            say(json.dumps(verdict.asdict()) if as_json else row(verdict, width), err=False)
            answered, failed = answered + 1, failed + bool(verdict.error)
            progress.update()
            yield examination
            if stop.number:
                return

    with ExitStack() as stack:
        progress = stack.enter_context(tqdm(total=len(todo), leave=False, disable=True if len(todo) < 2 else None))
        stop = stack.enter_context(runs.deferred("stopping after this image; once more ends at once", tell=say))
        try:
            if report:
                examinations = _examined(detector, todo, crops, crop_mode, given)
                write_text(Path(report), page(answers(examinations), model=shown))
            else:
                how: dict[str, Any] = {"report": lambda line: say(printable(line))}
                if given is not None:
                    how["read"] = partial(_read, given)
                verdicts = detector.predict(todo, crops, crop_mode, **how)
                if given is not None:
                    digest = hashlib.sha256(given).hexdigest()
                    verdicts = (replace(v, sha256=digest) if v.path == STDIN and not v.error else v for v in verdicts)
                deque(answers(Examination("", verdict) for verdict in verdicts), maxlen=0)
        except runs.Interrupted:  # by a second signal; stop has its number
            pass
    if stop.number and answered < len(todo):
        rest = "the same command with --resume goes on" if journal else "with --csv FILE a run can go on later"
        click.echo(f"interrupted after {answered} of {len(todo)} images; {rest}", err=True)
        return 128 + stop.number
    if failed and len(paths) > 1:
        click.echo(f"{failed} of {len(paths)} images were refused", err=True)
    return 1 if failed else 0


def _read(given: bytes | None, path: str) -> Image.Image:
    """An image, of standard input where its path says so."""
    if path != STDIN or given is None:
        return load_rgb(path)
    try:
        return load_rgb(given)
    except ImageError as error:
        raise ImageError(str(error).replace("the given bytes", STDIN, 1)) from error


def _examined(
    detector: Detector, paths: Iterable[str], crops: int | None, mode: str | None, given: bytes | None
) -> Iterator[Examination]:
    """What a page shows of each file, of the first MAX_PICTURED with pictures."""
    for number, path in enumerate(paths):
        try:
            source = given if path == STDIN and given is not None else path
            examination = examine_or_refuse(detector, source, path, crops, mode)
            if number < MAX_PICTURED and examination.image:
                draw(detector, examination)
        except runs.Interrupted:  # a second signal: the page holds what there is
            return
        yield examination if number < MAX_PICTURED else replace(examination, image=None)


def row(verdict: Verdict, width: int) -> str:
    """One line of the table of verdicts; control characters of file names are escaped."""
    name = printable(verdict.path or "")
    name = name if len(name) <= width else "…" + name[1 - width :]
    if verdict.error:
        return f"{name:{width}}  {'error':7}  {'':7}  {printable(verdict.error)}"
    return f"{name:{width}}  {verdict.verdict:7}  {verdict.p_fake:7.3f}  {sentence('source', verdict)}"


def printable(text: str) -> str:
    """Text that does nothing to a terminal."""
    return text if text.isprintable() else text.encode("unicode_escape", "surrogateescape").decode("ascii", "replace")
