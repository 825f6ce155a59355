"""Run the notebooks through papermill, in order, and keep a record of what is done.

The run folder's `config.json` keeps for each notebook its parameters, how it ended, how long it took and what it was
made from. A notebook is run again only when one of these changed, or when one before it ran later.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import errno
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_type_hints

from dfd import config, interruption, profiles, record
from dfd.progress import Progress, elapsed

START = 120  # seconds that a kernel has to start
INPUTS = ("parameters", "code", "data")  # what a finished notebook was made from
Configs = Mapping[str, type[config.Shared]]


class RunError(RuntimeError):
    """A run stopped; `code` is the exit status for the shell."""

    def __init__(self, text: str, code: int = 1):
        super().__init__(text)
        self.code = code


def run(
    data: str = "data/sample",
    out: str = "reports/demo",
    profile: str = "demo",
    parameters: Mapping[str, Any] | None = None,
    notebooks: Sequence[str] = (),
    fresh: bool = False,
    folder: str | Path = config.ROOT / "notebooks",
    configs: Configs = config.NOTEBOOKS,
) -> Path:
    """Run the notebooks of a folder in order; write each as HTML, and `index.html` over them.

    Args:
        data: folder with the images.
        out: run folder, made if missing; running again into the same one goes on where it stopped.
        profile: a key of profiles.PROFILES.
        parameters: what differs from the profile, `{"num_epochs": "3"}`; text is parsed to the field's type. A name
            goes to every notebook that has it, `{"02.backbone": ...}` only to that one.
        notebooks: only these, by number, stem or path; all when empty.
        fresh: run also what is finished.
        folder: where the notebooks are, named `NN_*.ipynb`.
        configs: stem -> config dataclass; a notebook that is not in it gets `config.Shared`.

    Returns:
        The run folder's index.html.

    Raises:
        ConfigError: a parameter, a profile or a notebook that does not exist, or a value out of range.
        FileNotFoundError: no data folder.
        RunError: a notebook failed, the disk is full, or the run was interrupted; what was done is kept.
        InUse: another run works in the folder.
    """
    from dfd import html

    every = sorted(Path(folder).glob("[0-9][0-9]_*.ipynb"))
    chosen = choose(every, notebooks)
    given = plan([path.stem for path in every], configs, {"data": data, "out": out}, profile, parameters or {})
    images, target = config.resolve(data), config.resolve(out)
    if not images.is_dir():
        raise FileNotFoundError(f"no data folder {data}; `python -m dfd sample` makes one, --data names yours")
    if target.resolve().is_relative_to(images.resolve()):
        raise config.ConfigError(f"the run folder {out} lies inside the data folder {data}; choose one beside it")
    about, progress = {"data": data, "out": out, "profile": profile}, Progress()
    with interruption.alone(target), _stoppable(progress) as stop, _recorded(target, about) as kept:
        newest, state = "", record.fingerprint(images)
        done = kept.setdefault("notebooks", {})
        for path in every:
            cls, before = configs.get(path.stem, config.Shared), done.get(path.stem, {})
            inputs = {
                "parameters": dataclasses.asdict(cls(**given[path.stem])),
                "code": record.code_of(path),
                "data": state,
            }
            inputs = json.loads(json.dumps(inputs))  # tuples become lists, as in the record read back
            same = before.get("status") == "finished" and all(before.get(key) == inputs[key] for key in INPUTS)
            current = same and before["ended"] >= newest and (target / path.name).exists() and not fresh
            if path in chosen and current:
                progress.line(f"{path.stem}  finished before with the same parameters, code and data: kept")
                if not (target / f"{path.stem}.html").exists():  # the disk was full then
                    html.export(target / path.name)
            elif path in chosen:
                done[path.stem] = inputs | {"status": "running"}
                record.write_json(target / "config.json", kept)
                execute(path, target, given[path.stem], done[path.stem], progress, stop)
            newest = max(newest, done.get(path.stem, {}).get("ended", ""))
    return target / "index.html"


def execute(path: Path, out: Path, parameters: dict, entry: dict, progress: Progress, stop: interruption.Stop) -> None:
    """Run one notebook into `out` and fill in its entry of the record: status, seconds, ended, error.

    Raises:
        RunError: a cell failed, or the kernel died or did not start.
        Interrupted: a signal asked to end; the cell that ran had its chance to save.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.iorw import papermill_io

    from dfd import html, kernel

    def start(cell: dict, cell_index: int) -> None:
        if stop.number:
            raise interruption.Interrupted(number=stop.number)
        progress.cell(cell, cell_index)

    result, began = out / path.name, time.monotonic()
    result.with_suffix(".html").unlink(missing_ok=True)  # of an earlier run
    source = nbformat.read(path, as_version=4)
    progress.start(path.stem, len(source.cells) + 1)  # papermill adds a cell with the parameters
    papermill_io.register(str(result), kernel.WholeFiles())
    status, error = "failed", None
    try:
        papermill.execute_notebook(
            path,
            result,
            {name: list(value) if isinstance(value, tuple) else value for name, value in parameters.items()},
            kernel_name="python3",
            language="python",
            kernel_manager_class="dfd.kernel.ThisPython",
            shutdown_kernel="immediate",  # all it had to say has been written
            progress_bar=False,
            stdout_file=progress.printed,
            stderr_file=progress.bars,
            on_cell_start=start,
            start_timeout=START,
        )
        status = "finished"
    except papermill.PapermillExecutionError as failure:
        error = {"cell": failure.cell_index + 1, "text": f"{failure.ename}: {failure.evalue}"}
        section = progress.section and f", under {progress.section!r}"
        where = f"cell {error['cell']} (In [{failure.exec_count}]{section})"
    except DeadKernelError:
        error = {"cell": progress.number, "text": f"the Python process {kernel.how_it_ended()}"}
        where = f"cell {progress.number}"
    except RuntimeError as failure:
        if progress.number:
            raise
        error = {"cell": 0, "text": f"the Python process did not start: {failure}"}
        where = "its start"
    if error and stop.number:
        raise interruption.Interrupted(number=stop.number)
    seconds = round(time.monotonic() - began, 1)
    entry |= {"status": status, "seconds": seconds, "ended": datetime.now(UTC).isoformat(), "error": error}
    progress.done(f"{status} after {elapsed(seconds)}")
    try:
        if error:
            full = "\nThe disk is full; free some space first." if f"[Errno {errno.ENOSPC}]" in error["text"] else ""
            if not config.resolve(parameters["data"]).is_dir():
                full += f"\nThe data folder {parameters['data']} is gone; bring it back first."
            last = "\n".join("    " + line for line in error["text"].strip().splitlines()[-8:])
            raise RunError(
                f"{path.stem} failed in {where}:\n{last}{full}\nThe half-run notebook is {result}. "
                "Mend the cause, then run the same command again: what is finished is kept."
            )
    finally:
        html.export(result, error)


def choose(every: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """The notebooks that were asked for by number (`1`, `01`), stem or path; all of them for no names."""
    if not every:
        raise config.ConfigError("no notebooks found; run from a checkout of the project")
    chosen = []
    for name in names:
        stem = Path(name).name.removesuffix(".ipynb")
        found = [p for p in every if p.stem == stem or (stem.isdigit() and int(p.stem[:2]) == int(stem))]
        if not found:
            raise config.ConfigError(f"no notebook {name!r}; there are: {', '.join(p.stem for p in every)}")
        chosen += found
    return chosen or list(every)


def plan(
    stems: Sequence[str], configs: Configs, shared: Mapping[str, Any], profile: str, parameters: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Which parameters each notebook is given: the shared ones, the profile's, then those of the command line.

    Raises:
        ConfigError: a name that no notebook has, a value of the wrong type or out of range.
    """
    kinds = {stem: get_type_hints(configs.get(stem, config.Shared)) for stem in stems}
    given = {stem: dict(shared) | profiles.profile(profile, stem) for stem in stems}
    known = {name for hints in kinds.values() for name in hints}
    for name, value in parameters.items():
        number, _, field = name.rpartition(".")
        if field in shared:
            raise config.ConfigError(f"set {field} with --{field}, once for all notebooks")
        matches = [s for s in stems if field in kinds[s] and number in ("", s, s[:2])]
        if not matches:
            raise config.ConfigError(config.unknown_parameter(name, known))
        for stem in matches:
            given[stem][field] = parse(name, value, kinds[stem][field]) if isinstance(value, str) else value
    for stem in stems:
        configs.get(stem, config.Shared)(**given[stem])  # its own checks
    return given


def parse(name: str, text: str, kind: Any) -> Any:
    """Turn a word of the command line into a field's type: int, float, bool, str, or a tuple as `95,75,50` or `a,b`.

    Names that hold commas themselves are given as a list, `["a, b"]`.

    Raises:
        ConfigError: the text is no such value.
    """
    if kind is str:
        return text
    if kind is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() in words:
            return words[text.lower()]
        raise config.ConfigError(f"{name} must be true or false, got {text!r}")
    if kind == tuple[str, ...] and not text.startswith("["):
        return tuple(word.strip() for word in text.split(",") if word.strip())
    try:
        if kind in (int, float):
            return kind(text)
        value = ast.literal_eval(text if text[:1] in "([" else f"({text},)")
        return tuple(value)
    except (ValueError, SyntaxError, TypeError):
        words = {int: "a whole number", float: "a number", tuple[str, ...]: "names with commas between them"}
        what = words.get(kind, "numbers with commas between them")
        raise config.ConfigError(f"{name} must be {what}, got {text!r}") from None


@contextlib.contextmanager
def _recorded(out: Path, about: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The content of config.json, to fill in.

    However the run ends: write it, environment.json and index.html, and say in one line why it stopped.
    """
    kept, made_with = record.read_json(out / "config.json") | about, record.environment()
    try:
        try:
            yield kept
        finally:
            _finish(out, kept, made_with)
    except KeyboardInterrupt as stopped:
        text = f"Interrupted. What is done is kept in {out}; the same command goes on from there."
        raise RunError(text, getattr(stopped, "code", 130)) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        text = f"The disk is full. What is done is kept in {out}; free some space, then run the same command again."
        cause = error
        while cause and not isinstance(cause, RunError):  # a cell that failed first
            cause = cause.__context__
        raise RunError(f"{cause}\n{text}" if cause else text) from None


def _finish(out: Path, kept: dict, made_with: dict) -> None:
    from dfd import cards, html

    for entry in kept.get("notebooks", {}).values():
        if entry["status"] == "running":
            entry["status"] = "interrupted"
    record.write_json(out / "config.json", kept)
    record.write_json(out / "environment.json", made_with | {"manifest": record.manifest_digest(out)})
    try:
        for name, why in cards.write(out).items():
            print(f"{name} was not written: {why}")
    finally:
        html.write_index(out)


@contextlib.contextmanager
def _stoppable(progress: Progress) -> Iterator[interruption.Stop]:
    """Let SIGINT and SIGTERM end the run as soon as the kernel has had its chance to save."""
    from dfd import kernel

    say = f"Stopping: the cell may finish its step and save, for {interruption.GRACE:.0f} s; once more ends at once."
    with interruption.deferred(say, kernel.interrupt, interruption.GRACE, progress.line) as stop:
        yield stop
