"""The Jupyter kernel that reports run in, always the interpreter that runs this, and how notebooks are written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from papermill.iorw import LocalHandler

from dfd import __version__, config
from dfd.core import io, runs
from dfd.core.io import atomic_write
from dfd.core.runs import HEADLESS, Progress, elapsed
from dfd.degrade import registry


class ThisPython(AsyncKernelManager):
    """Starts `sys.executable`, whatever the installed kernel specs called "python3" point to.

    `process` is the kernel that was started last, which may have ended.
    """

    transport = "tcp" if sys.platform == "win32" else "ipc"  # no port that other users of the machine could read
    process: ClassVar[subprocess.Popen | None] = None

    def _ip_default(self) -> str:
        """Where its sockets lie: a folder of its own, or two kernels that start at once could take the same names."""
        if self.transport != "ipc":
            return super()._ip_default()
        folder = tempfile.mkdtemp(prefix="dfd-kernel-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return str(Path(folder) / "socket")

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--ext=dfd.shell"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python", env={HEADLESS: "1"})

    async def start_kernel(self, **options: Any) -> None:
        """Start the process and remember it."""
        await super().start_kernel(**options)
        ThisPython.process = self.provisioner.process


class WholeFiles(LocalHandler):
    """Papermill's way of writing a notebook, every few seconds, with nothing lost by a kill in the middle."""

    def write(self, buf: str, path: str) -> None:
        """Write the notebook."""
        with atomic_write(path) as draft:
            draft.write_text(buf, "utf-8")


def interrupt() -> bool:
    """Press Ctrl-C in the kernel and what it started; False where none runs."""
    process = ThisPython.process
    if process is None or process.poll() is not None:
        return False
    os.killpg(process.pid, signal.SIGINT)  # jupyter_client gives a kernel a session of its own
    return True


def how_it_ended() -> str:
    """Why the process of the last kernel is no more."""
    status = ThisPython.process.poll()
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        return f"was killed by {name}" + ("; most often memory ran out" if name == "SIGKILL" else "")
    return "died" if status is None else f"died with exit status {status}"


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
    from dfd.reports import html

    every = sorted(Path(folder).glob("[0-9][0-9]_*.ipynb"))
    chosen = choose(every, notebooks)
    given = plan([path.stem for path in every], configs, {"data": data, "out": out}, profile, parameters or {})
    images, target = config.resolve(data), config.resolve(out)
    if not images.is_dir():
        raise FileNotFoundError(f"no data folder {data}; `python -m dfd sample` makes one, --data names yours")
    if target.resolve().is_relative_to(images.resolve()):
        raise config.ConfigError(f"the run folder {out} lies inside the data folder {data}; choose one beside it")
    about, progress = {"data": data, "out": out, "profile": profile}, Progress()
    with runs.run_lock(target), _stoppable(progress) as stop, _recorded(target, about) as kept:
        newest, state = "", runs.fingerprint(images)
        done = kept.setdefault("notebooks", {})
        for path in every:
            cls, before = configs.get(path.stem, config.Shared), done.get(path.stem, {})
            inputs = {
                "parameters": cls(**given[path.stem]).model_dump(mode="json"),
                "code": code_of(path),
                "data": state,
            }
            same = before.get("status") == "finished" and all(before.get(key) == inputs[key] for key in INPUTS)
            current = same and before["ended"] >= newest and (target / path.name).exists() and not fresh
            if path in chosen and current:
                progress.line(f"{path.stem}  finished before with the same parameters, code and data: kept")
                if not (target / f"{path.stem}.html").exists():  # the disk was full then
                    html.export(target / path.name)
            elif path in chosen:
                done[path.stem] = inputs | {"status": "running"}
                io.write_json(target / "config.json", kept)
                execute(path, target, given[path.stem], done[path.stem], progress, stop)
            newest = max(newest, done.get(path.stem, {}).get("ended", ""))
    return target / "index.html"


def execute(path: Path, out: Path, parameters: dict, entry: dict, progress: Progress, stop: runs.Stop) -> None:
    """Run one notebook into `out` and fill in its entry of the record: status, seconds, ended, error.

    Raises:
        RunError: a cell failed, or the kernel died or did not start.
        Interrupted: a signal asked to end; the cell that ran had its chance to save.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.iorw import papermill_io

    from dfd.reports import html
    from dfd.reports import runner as kernel

    def start(cell: dict, cell_index: int) -> None:
        if stop.number:
            raise runs.Interrupted(number=stop.number)
        progress.cell(cell, cell_index)

    result, began = out / path.name, time.monotonic()
    result.with_suffix(".html").unlink(missing_ok=True)  # of an earlier run
    source = nbformat.read(path, as_version=4)
    progress.start(path.stem, len(source.cells) + 1)  # papermill adds a cell with the parameters
    logging.getLogger("papermill").addFilter(_is_no_unknown_parameter)
    papermill_io.register(str(result), kernel.WholeFiles())
    status, error = "failed", None
    try:
        papermill.execute_notebook(
            path,
            result,
            {name: list(value) if isinstance(value, tuple) else value for name, value in parameters.items()},
            kernel_name="python3",
            language="python",
            kernel_manager_class="dfd.reports.runner.ThisPython",
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
        raise runs.Interrupted(number=stop.number)
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


def _is_no_unknown_parameter(record: logging.LogRecord) -> bool:
    """Whether papermill says something else than that a name is not in the parameters cell: those are in the config."""
    return not record.getMessage().startswith("Passed unknown parameter")


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
    models = {stem: configs.get(stem, config.Shared) for stem in stems}
    given = {stem: dict(shared) | config.profile(profile, stem) for stem in stems}
    known = {name for model in models.values() for name in model.model_fields}
    for name, value in parameters.items():
        number, _, field = name.rpartition(".")
        if field in shared:
            raise config.ConfigError(f"set {field} with --{field}, once for all notebooks")
        matches = [s for s in stems if field in models[s].model_fields and number in ("", s, s[:2])]
        if not matches:
            raise config.ConfigError(config.unknown_parameter(name, known))
        for stem in matches:
            given[stem][field] = value
    for stem in stems:
        checked = models[stem](**given[stem])
        given[stem] = {name: getattr(checked, name) for name in given[stem]} | dict(shared)
        try:
            if isinstance(checked, config.Robustness):
                registry.parse_all(checked.conditions)
        except registry.GridError as error:
            raise config.ConfigError(f"conditions: {error}") from None
    return given


@contextlib.contextmanager
def _recorded(out: Path, about: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The content of config.json, to fill in.

    However the run ends: write it, environment.json and index.html, and say in one line why it stopped.
    """
    kept, made_with = io.read_json(out / "config.json") | about, environment()
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
    from dfd.reports import cards, html

    for entry in kept.get("notebooks", {}).values():
        if entry["status"] == "running":
            entry["status"] = "interrupted"
    io.write_json(out / "config.json", kept)
    io.write_json(out / "environment.json", made_with | {"manifest": manifest_digest(out)})
    try:
        for name, why in cards.write(out).items():
            print(f"{name} was not written: {why}")
    finally:
        html.write_index(out)


@contextlib.contextmanager
def _stoppable(progress: Progress) -> Iterator[runs.Stop]:
    """Let SIGINT and SIGTERM end the run as soon as the kernel has had its chance to save."""
    from dfd.reports import runner as kernel

    say = f"Stopping: the cell may finish its step and save, for {runs.GRACE:.0f} s; once more ends at once."
    with runs.deferred(say, kernel.interrupt, runs.GRACE, progress.line) as stop:
        yield stop


PACKAGES = "torch torchvision timm numpy pandas scikit-learn scikit-image pillow imagehash papermill nbconvert".split()


def environment() -> dict[str, Any]:
    """The content of a run folder's environment.json but for the manifest's hash; what cannot be told is None."""
    return {
        "dfd": __version__,
        "commit": commit(config.ROOT),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device(),
        "cpus": os.cpu_count(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def commit(folder: Path) -> str | None:
    """The short hash that git has checked out, with a `+` where files differ from it; None outside a repository."""
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def device() -> str:
    """The name of the GPU that torch would use, or `cpu`."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def manifest_digest(out: Path) -> str | None:
    """The hash of the run folder's manifest, or None before there is one."""
    if not (out / "manifest.parquet").exists():
        return None
    from dfd.data import manifest

    return manifest.digest(manifest.load(out))


def code_of(notebook: Path) -> str:
    """A hash over a notebook's cells and the package's own code."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    digest = hashlib.sha256(repr([cell["source"] for cell in cells]).encode())
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:12]}"
