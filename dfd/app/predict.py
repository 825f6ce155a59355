"""What `python -m dfd predict` does: judge files as they come, and write a table, JSON, CSV or a case."""

import hashlib
import json
import sys
from collections import deque
from collections.abc import Generator
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from dfd.app.case import RECORD, Case, Journal, opened
from dfd.app.metadata import sentence
from dfd.core import load_rgb, printable, read_json, runs, sha256_of
from dfd.inference.detector import Detector, Verdict

STDIN = "-"  # the path that stands for standard input


def run(folder: Path, paths: list[str], shown: str, given: bytes | None, as_json: bool, table: str | None, resume: bool,
        case: str | None, threshold_fpr: float | None, **about: Any) -> int:  # fmt: skip
    """Judge files with the networks in a run folder, called `shown`, and print each answer as it comes.

    The content of the file - is `given`. The rest are options of the command line; `about` is told to `case.opened`.
    Gives 0 if every image was answered, 1 if one was refused, 130 after Ctrl-C, 143 after SIGTERM. A checkpoint that is
    damaged or lacks the threshold, or a table of another model, is a ValueError; a table or case in use, an InUse.
    """
    detector, paths = Detector.load(folder), [*dict.fromkeys(paths)]
    detector = detector if threshold_fpr is None else detector.at_fpr(threshold_fpr)
    with ExitStack() as stack:
        about |= {"paths": {*paths}, "notes": [*about["notes"], *read_json(folder / "metrics.json").get("notes", ())]}
        made = stack.enter_context(opened(Path(case), detector, about)) if case else None
        journal = None
        if table:  # which is for this process alone
            lock = Path(table).absolute().with_name(f".{Path(table).name}.lock")
            stack.enter_context(runs.file_lock(lock, f"another predict writes {table}; wait, or take another name"))
            stack.callback(lambda: sys.platform == "win32" or lock.unlink(missing_ok=True))  # there none can go yet
            journal = Journal(Path(table), resume, detector, about)
            stack.enter_context(journal.file)
        done = made.journal.done if made else journal.done if journal else {}
        own = None if given is None else hashlib.sha256(given).hexdigest()  # of another image on standard input: other
        todo = [p for p in paths if not (made.has(p) if made else p in done) or (p == STDIN and done[p] != own)]
        if len(todo) < len(paths):
            click.echo(f"{len(paths) - len(todo)} of {len(paths)} images are in {case or table} already", err=True)
        click.echo(f"model: {shown}", err=True)
        if made:
            verdicts, rest = _examined(detector, made, todo, given), "the same command goes on"
        else:
            verdicts = _judged(detector, journal, todo, given, about["crops"], about["crop_mode"])
            rest = "the same command with --resume goes on" if table else "with --csv FILE a run can go on later"
        code = _show(verdicts, todo, as_json, rest)
        if made:
            click.echo(f"Open {made.finish()}\nSHA-256 of case.json: {sha256_of(made.folder / RECORD)}", err=True)
        return code


def _judged(detector: Detector, journal: Journal | None, paths: list[str], given: bytes | None,
        *how: Any) -> Generator[Verdict, None, None]:  # fmt: skip
    """The verdict on each file, which is in the table before it is shown: a stream may fail."""
    read: dict[str, Any] = {} if given is None else {"read": lambda path: load_rgb(given if path == STDIN else path)}
    for verdict in detector.predict(paths, *how, report=lambda line: _say(printable(line)), **read):
        if journal:
            journal.write(verdict)
        yield verdict


def _examined(detector: Detector, case: Case, paths: list[str], given: bytes | None) -> Generator[Verdict, None, None]:
    """The verdict on each file, which is in the case before it is shown, the first ones with pictures."""
    from dfd.app.evidence import draw, trace  # here: without a case none of it is needed, and it takes a second
    from dfd.app.examine import examine_or_refuse

    pictures = 12 if (asked := case.about["pictures"]) is None else asked
    for path in paths:
        source = given if path == STDIN and given is not None else path
        examination = examine_or_refuse(detector, source, path, case.about["crops"], case.about["crop_mode"])
        if pictures > 0 and examination.image and not case.page_of(examination.verdict.sha256 or "").exists():
            examination = replace(examination, stride=case.about["map_stride"])
            draw(detector, examination)
            deque(trace(detector, examination), maxlen=0)
            pictures -= 1
        yield case.add(examination)


def _show(verdicts: Generator[Verdict, None, None], todo: list[str], as_json: bool, rest: str) -> int:
    """Print each verdict as it comes, until a signal, after which `rest` says how to go on."""
    width = min(60, max((len(printable(path)) for path in todo), default=0))
    if todo and not as_json:
        click.echo(f"{'image':{width}}  {'verdict':7}  {'p(fake)':>7}  source")
    answered, failed = 0, 0
    with (
        tqdm(total=len(todo), leave=False, disable=True if len(todo) < 2 else None) as progress,
        runs.deferred("stopping after this image; once more ends at once", tell=_say) as stop,
        suppress(runs.Interrupted),  # of a second signal; stop has its number
        closing(verdicts),
    ):
        for verdict in verdicts:
            _say(json.dumps(asdict(verdict)) if as_json else row(verdict, width), err=False)
            answered, failed = answered + 1, failed + bool(verdict.error)
            progress.update()
            if stop.number:
                break
    if stop.number and answered < len(todo):
        click.echo(f"interrupted after {answered} of {len(todo)} images; {rest}", err=True)
        return 128 + stop.number
    if failed and len(todo) > 1:
        click.echo(f"{failed} of {len(todo)} images were refused", err=True)
    return 1 if failed else 0


def _say(line: str, err: bool = True) -> None:
    with tqdm.external_write_mode():
        click.echo(line, err=err)


def row(verdict: Verdict, width: int) -> str:
    """One line of the table of verdicts; control characters of file names are escaped."""
    name = printable(verdict.path or "")
    name = name if len(name) <= width else "…" + name[1 - width :]
    if verdict.error:
        return f"{name:{width}}  {'error':7}  {'':7}  {printable(verdict.error)}"
    return f"{name:{width}}  {verdict.verdict:7}  {verdict.p_fake:7.3f}  {printable(sentence('source', verdict))}"
