"""What `python -m dfd predict` does: judge files as they come, and write a table, JSON, CSV or a case."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from filelock import Timeout
from PIL import Image
from tqdm import tqdm

from dfd.app.case import Case, opened
from dfd.app.evidence import Examination, draw, trace
from dfd.app.examine import examine_or_refuse
from dfd.app.journal import Journal
from dfd.app.metadata import sentence
from dfd.core import runs
from dfd.core.images import ImageError, load_rgb
from dfd.core.io import explained
from dfd.inference.detector import Detector, Verdict

STDIN = "-"  # the path that stands for standard input
PICTURES = 12  # images of a case whose pages have pictures; of the others they have the text and the table


def run(
    folder: Path, paths: list[str], shown: str, *, as_json: bool = False, table: str | None = None,
    resume: bool = False, case: str | None = None, about: Mapping[str, Any] | None = None, pictures: int = PICTURES,
    threshold_fpr: float | None = None, crops: int | None = None, crop_mode: str | None = None,
    given: bytes | None = None,
) -> int:  # fmt: skip
    """Judge files with the networks in a run folder, called `shown`, and print each answer as it comes.

    The content of the file - is `given`. The rest are options of the command line; `about` is told to `case.opened`.
    Gives 0 if every image was answered, 1 if one was refused, 130 after Ctrl-C, 143 after SIGTERM. A checkpoint that
    cannot be opened or lacks the threshold, or a table of another model, is a ValueError; what cannot be written, an
    OSError; a table or case that another process writes, an InUse.
    """
    detector = Detector.load(folder)
    if threshold_fpr is not None:
        detector = detector.at_fpr(threshold_fpr)
    how = {"crops": crops, "crop_mode": crop_mode}
    with ExitStack() as stack:
        made = stack.enter_context(opened(Path(case), detector, {**(about or {}), **how})) if case else None
        journal = (
            made.journal if made else stack.enter_context(_journal(Path(table) if table else None, resume, detector))
        )
        todo = [path for path in paths if not journal or path not in journal.done]
        if made and journal:  # what was changed since is judged again
            todo = [path for path in paths if not made.has(path)]
        if len(todo) < len(paths):
            click.echo(f"{len(paths) - len(todo)} of {len(paths)} images are in {case or table} already", err=True)
        click.echo(f"model: {shown}", err=True)
        code = _judge(detector, made, journal, todo, as_json, pictures, given, **how)
        if made:
            click.echo(f"Open {made.finish()}", err=True)
        return code


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
    detector: Detector, case: Case | None, journal: Journal | None, todo: list[str], as_json: bool, pictures: int,
    given: bytes | None, crops: int | None, crop_mode: str | None,
) -> int:  # fmt: skip
    """What `run` does once all files that it writes are open."""
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
            if case:  # before it is shown: a stream may fail
                case.add(examination)
            elif journal:
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
            if case:
                deque(answers(_examined(detector, case, todo, pictures, given, crops, crop_mode)), maxlen=0)
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
        rest = "the same command goes on" if case else rest
        click.echo(f"interrupted after {answered} of {len(todo)} images; {rest}", err=True)
        return 128 + stop.number
    if failed and len(todo) > 1:
        click.echo(f"{failed} of {len(todo)} images were refused", err=True)
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
    detector: Detector, case: Case, paths: Iterable[str], pictures: int, given: bytes | None, *how: Any
) -> Iterator[Examination]:
    """What a case holds of each file, of the first ones with pictures."""
    for path in paths:
        try:
            examination = examine_or_refuse(
                detector, given if path == STDIN and given is not None else path, path, *how
            )
            if pictures > 0 and examination.image:
                examination = replace(examination, stride=case.about.get("map_stride"))
                draw(detector, examination)
                deque(trace(detector, examination), maxlen=0)
                pictures -= 1
        except runs.Interrupted:  # a second signal: the case holds what there is
            return
        yield examination


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
