"""Runs the notebooks through papermill in order; what is done and unchanged is kept, also after an interruption."""

import contextlib
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
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import nbformat
import papermill
import psutil
import torch
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from papermill.iorw import papermill_io
from tqdm import tqdm

from dfd import __version__, config
from dfd.core import code, digest, read_json, read_table, runs, sha256_of, write_json, write_text
from dfd.data import layouts, manifest
from dfd.degrade import registry
from dfd.reports import cards, html

TRAIN = ("01_stage1_real_fake", "02_stage2_attribution")  # the profile is theirs
NOTEBOOKS = config.ROOT / "notebooks"
OWN_CODE = f"import sys; sys.path[:0] = {{{str(Path(config.__file__).parents[1])!r}}} - {{*sys.path}}"  # no other's
START = 120  # seconds that a kernel has to start
PACKAGES = "torch torchvision timm numpy pandas scikit-learn scikit-image pillow papermill nbconvert".split()
SHARES = dict(zip(config.NOTEBOOKS, (0.03, 0.25, 0.40, 0.22, 0.06, 0.04), strict=False))  # of the demo's time
INTERRUPTED = "Interrupted. What is done is kept in {}; the same command goes on from there."
Configs = Mapping[str, type[config.Shared]]


class RunError(RuntimeError):
    """A run stopped; `code` is the exit status for the shell."""

    def __init__(self, text: str, code: int = 1):
        super().__init__(text)
        self.code = code


class Kernel(AsyncKernelManager):
    """Starts `sys.executable`, whatever "python3" points to, with sockets in a folder that no one else can read."""

    transport = "ipc" if os.name == "posix" else "tcp"  # Windows has no sockets that are files
    argv = [sys.executable, "-Pc", f"{OWN_CODE}; from ipykernel.kernelapp import launch_new_instance as go; go()",
            "-f", "{connection_file}", "--IPKernelApp.ignore_cwd=True"]  # fmt: skip
    kernel_spec: Any = KernelSpec(argv=argv, display_name="Python 3", language="python", env={runs.HEADLESS: "1"})
    process: ClassVar[subprocess.Popen | None] = None  # started last; it may have ended

    def _ip_default(self) -> str:
        folder = tempfile.mkdtemp(prefix="dfd-kernel-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return f"{folder}/socket" if self.transport == "ipc" else "127.0.0.1"

    async def start_kernel(self, **options: Any) -> None:
        share = 0 if "OMP_NUM_THREADS" in os.environ else psutil.cpu_percent(0.5) / 100
        if busy := round(share * runs.cores()):  # cores; threads wait for the slowest
            threads = max(1, runs.cores() - busy)
            print(f"Other work keeps {busy} of the cores busy: threads of this notebook {threads}.")
            options["env"] = {**(options.get("env") or os.environ), "OMP_NUM_THREADS": str(threads)}
        await super().start_kernel(**options)
        Kernel.process = getattr(self.provisioner, "process", None)

    @classmethod
    def interrupt(cls) -> bool:
        """Press Ctrl-C in the kernel and what it started; False where none runs."""
        if cls.process is None or cls.process.poll() is not None:
            return False
        kill = os.killpg if os.name == "posix" else os.kill  # jupyter_client gives a kernel a session of its own
        with contextlib.suppress(ProcessLookupError):  # it ended a moment ago
            kill(cls.process.pid, signal.SIGINT)
            return True
        return False


def run(data: str = "data/sample", out: str = "reports/demo", profile: str = "demo",
        parameters: Mapping[str, Any] | None = None, notebooks: Sequence[str] = (), fresh: bool = False,
        folder: str | Path = NOTEBOOKS, configs: Configs = config.NOTEBOOKS) -> Path:  # fmt: skip
    """Run the notebooks `NN_*.ipynb` of a folder in order into `out`; write each as HTML, and `index.html` over them.

    What is finished, unchanged and there is kept, unless `fresh`. `notebooks` chooses by number, stem or path. In
    `parameters`, what differs from the profile, text is parsed to the field's type, and a name goes to every notebook
    that has it, `{"02.backbone": ...}` only to that one. ConfigError; FileNotFoundError without the data folder; InUse
    where another run works in `out`; RunError where a notebook failed or was interrupted: what was done is kept.
    """
    every, chosen = choose(folder), choose(folder, notebooks)
    given = plan([path.stem for path in every], configs, {"data": data, "out": out}, profile, parameters or {})
    for name in parameters or ():
        number, _, field = name.rpartition(".")
        if not any(number in ("", p.stem, p.stem[:2]) and field in given[p.stem] for p in chosen):
            print(f"{name} is a parameter of none of the notebooks that run, and changes nothing")
    images, target = config.resolve(data), config.resolve(out)
    if not images.is_dir():
        raise FileNotFoundError(f"no data folder {data}; `python -m dfd sample` makes one, --data names yours")
    if target.resolve().is_relative_to(images.resolve()):
        raise config.ConfigError(f"the run folder {out} lies inside the data folder {data}; choose one beside it")
    say = f"Stopping: the cell may finish its step and save, for {runs.GRACE:.0f} s; once more ends at once."
    with runs.run_lock(target), runs.deferred(say, Kernel.interrupt, runs.GRACE) as stop:
        record: dict[str, Any] = {"profile": profile} | read_json(target / "config.json") | {"data": data, "out": out}
        record |= {"profile": profile} if any(path.stem in TRAIN for path in chosen) else {}
        before, state, done = "", layouts.fingerprint(images), record.setdefault("notebooks", {})
        made_with = read_json(target / "environment.json") or environment()
        try:
            for path in every:
                entry = done.get(path.stem, {})
                sources = [cell.source for cell in nbformat.read(path, as_version=4).cells]
                model = configs.get(path.stem, config.Shared)  # its parameters may have been edited in JupyterLab
                own = next(filter(None, map(config.constants, sources)), {}).items()
                own = {name: value for name, value in own if name in model.model_fields} | given[path.stem]
                inputs = model(**own).model_dump(mode="json")
                key = digest(code(frozenset()), cells := digest(sources), inputs, state, before)
                are_there = all((target / name).exists() for name in (path.name, *entry.get("files", ())))
                same = entry.get("status") == "finished" and entry.get("key") == key and are_there
                same = same and all(sha256_of(target / name) == was for name, was in entry.get("hashes", {}).items())
                if path in chosen and same and not fresh:
                    print(f"{path.stem}  finished before with the same parameters, code and data: kept")
                    if not (target / f"{path.stem}.html").exists():  # the disk was full then
                        html.export(target / path.name)
                elif path in chosen and (reason := left_out(path.stem, target)):
                    old = {path.name, f"{path.stem}.html", *done.pop(path.stem, {}).get("files", ())}  # of several
                    of_earlier = (done.get(each.stem, {}).get("files", ()) for each in every if each < path)
                    stays = {"metrics.json", "config.json"}.union(*of_earlier)
                    for name in {*old, config.CHECKPOINTS["stage2"], "model_card_stage2.md"} - stays:
                        (target / Path(name).name).unlink(missing_ok=True)
                    rest = read_json(measured := target / "metrics.json").items()
                    write_json(measured, {name: part for name, part in rest if name != "stage2"})
                    print(f"{path.stem}  left out: {reason}")
                elif path in chosen:
                    made_with, earlier = environment(), entry.get("parameters", {})
                    if was := [f"{name} was {old}" for name, old in earlier.items() if old != inputs.get(name)]:
                        print(f"{path.stem}  made anew, for parameters are others than before: {', '.join(was)}")
                    elif entry.get("status") == "finished" and not fresh:
                        print(f"{path.stem}  made anew, for its code, data or files, or a notebook before it, changed")
                    entry = done[path.stem] = {"parameters": inputs, "code": cells, "key": key, "status": "interrupted"}
                    finish(target, record, made_with)  # what is shown while it works, or is killed, is of now
                    execute(path, target, given[path.stem], entry, stop)
                    print(f"{path.stem}  finished after {runs.elapsed(entry['seconds'])}{to_go(record, path, chosen)}")
                before += done.get(path.stem, {}).get("ended", "")
        except KeyboardInterrupt as stopped:
            raise RunError(INTERRUPTED.format(out), getattr(stopped, "code", 130)) from None
        finally:
            finish(target, record, made_with)
    return target / "index.html"


def to_go(record: Mapping[str, Any], path: Path, chosen: Sequence[Path]) -> str:
    """How long a demo's notebooks after this one will take, by what those before took of it; else nothing."""
    done, shares = record["notebooks"], SHARES if record["profile"] == "demo" else {}  # other data divide it otherwise
    place, share = chosen.index(path) + 1, lambda paths: sum(shares.get(each.stem, 0) for each in paths)
    ran = [each for each in chosen[:place] if each.stem in done]
    seconds = sum(done[each.stem].get("seconds", 0) for each in ran)
    follow = [each for each in chosen[place:] if not left_out(each.stem, config.resolve(record["out"]))]
    left = seconds / share(ran) * share(follow) if share(ran) > 0.1 else 0
    return f"; about {runs.elapsed(left)} to go" if left else ""


def left_out(stem: str, out: Path) -> str:
    """Why a notebook has nothing to do on the data of a run folder; empty where it has."""
    if stem != TRAIN[-1] or not (out / "manifest.parquet").exists():
        return ""
    table = read_table(out / "manifest.parquet", columns=["label", "is_fake"])
    text = f"all fakes are {table.loc[table['is_fake'], 'label'].max()}, and it tells generators apart"
    return "" if "stage2" in manifest.stages_of(table) else text


def execute(path: Path, out: Path, parameters: dict, entry: dict, stop: SimpleNamespace) -> None:
    """Run one notebook into `out`, and fill in its entry of the record; a RunError says which cell failed and why."""
    number = 0  # of the cell that runs

    def start(cell: dict, cell_index: int) -> None:
        nonlocal number
        number = cell_index + 1
        if stop.number:
            raise runs.Interrupted(number=stop.number)

    result, began, error = out / path.name, time.time(), None
    result.with_suffix(".html").unlink(missing_ok=True)  # of an earlier run
    whole = SimpleNamespace(write=lambda text, path: write_text(Path(path), text), pretty_path=str)
    papermill_io.register(str(result), whole)  # papermill's own way would leave half a notebook when killed
    question = html.title_and_question(nbformat.read(path, as_version=4))[0].rpartition("· ")[2]
    print(f"{path.stem}  started at {datetime.now():%H:%M:%S}: {question}")
    over_the_bar: Any = SimpleNamespace(write=lambda text: tqdm.write(text, end=""), flush=lambda: None)
    # papermill would say that a parameter is not in the parameters cell: that holds those which people change
    logging.getLogger("papermill").addFilter(lambda record: not record.getMessage().startswith("Passed unknown"))
    try:
        papermill.execute_notebook(
            path, result,
            {name: list(value) if isinstance(value, tuple) else value for name, value in parameters.items()},
            kernel_name="python3", language="python", kernel_manager_class=f"{__name__}.Kernel", start_timeout=START,
            shutdown_kernel="immediate",  # all it had to say has been written
            progress_bar=sys.stderr.isatty(), stdout_file=over_the_bar, on_cell_start=start)  # fmt: skip
    except papermill.PapermillExecutionError as failure:
        error = {"cell": failure.cell_index + 1, "text": f"{failure.ename}: {failure.evalue}"}
    except RuntimeError as failure:  # the kernel died, or did not start
        status = Kernel.process and Kernel.process.poll()
        memory = "; it was killed, most often because memory ran out" if status == -9 else ""
        error = {"cell": number, "text": f"the Python process ended with exit status {status}{memory}: {failure}"}
    if error and stop.number:
        raise runs.Interrupted(number=stop.number)
    seconds, ended = round(time.time() - began, 1), datetime.now(UTC).isoformat()
    files = sorted(each.name for each in out.glob("[!.]*") if each.is_file() and each.stat().st_mtime >= began)
    status = "failed" if error else "finished"
    hashes = {name: sha256_of(out / name) for name in {"manifest.parquet", *config.CHECKPOINTS.values()} & {*files}}
    entry |= {"status": status, "seconds": seconds, "ended": ended, "error": error, "files": files, "hashes": hashes}
    html.export(result, error)
    if error:
        last = "\n".join(f"    {line}" for line in error["text"].strip().splitlines()[-8:])
        text = f"{path.stem} failed in cell {error['cell']}:\n{last}\nThe half-run notebook is {result}."
        raise RunError(f"{text} Mend the cause, then run the same command again: what is finished is kept.")


def choose(folder: str | Path, names: Sequence[str | int] = ()) -> list[Path]:
    """The notebooks that were asked for by number (1, `01`), stem or path; all of them for no names."""
    if not (every := sorted(p for p in Path(folder).glob("[0-9][0-9]_*.ipynb") if p.stem != config.GUIDE)):
        raise config.ConfigError("no notebooks found; run from a checkout of the project")
    chosen = []
    for name in [names] if isinstance(names, str) else names:
        own, stem = Path(str(name)).resolve(), str(name).removesuffix(".ipynb")
        matches = [p for p in every if (own == p if own.is_file() else stem == p.stem or stem.zfill(2) == p.stem[:2])]
        if not matches:
            raise config.ConfigError(f"no notebook {name!r}; there are: {', '.join(p.stem for p in every)}")
        chosen += matches
    return chosen or every


def copy_notebooks(folder: Path) -> int:
    """Copy notebooks and profiles below a folder, but for those that it has; gives how many were copied."""
    names = [path for pattern in ("notebooks/*.ipynb", "configs/*.yaml") for path in config.ROOT.glob(pattern)]
    missing = [path for path in names if not (folder / path.relative_to(config.ROOT)).exists()]
    for path in missing:
        (target := folder / path.relative_to(config.ROOT)).parent.mkdir(parents=True, exist_ok=True)
        write_text(target, path.read_text("utf-8"))
    return len(missing)


def open_lab(arguments: Sequence[str]) -> int:
    """Open JupyterLab at the first notebook below the working directory; gives its exit status."""
    settings = ["--LabApp.default_url=/lab/tree/notebooks/00_eda.ipynb", "--LabApp.news_url=None"]
    settings += ["--ServerApp.tornado_settings={'websocket_max_message_size': 536870912}"]  # uploads of the probe
    command = [sys.executable, "-Pm", "jupyter", "lab", *settings, *arguments]
    return subprocess.call(command) if os.name == "nt" else os.execv(sys.executable, command)  # Ctrl-C is its own


def plan(stems: Sequence[str], configs: Configs, *given: Any) -> dict[str, dict[str, Any]]:
    """What `config.plan` gives; conditions that notebook 03 cannot read are a ConfigError too."""
    planned = config.plan(stems, configs, *given)
    try:
        for parameters in planned.values():
            registry.parse_all(parameters.get("conditions", config.CONDITIONS))
    except ValueError as error:
        raise config.ConfigError(f"conditions: {error}") from None
    return planned


def finish(out: Path, record: dict, made_with: dict) -> None:
    """Leave the run folder as its reader needs it: config.json, environment.json, cards and index.html."""
    write_json(out / "config.json", record)
    named = manifest.digest(manifest.load(out)) if (out / "manifest.parquet").exists() else None
    write_json(out / "environment.json", made_with | {"manifest": named})
    for name, why in cards.write(out).items():
        print(f"{name} was not written: {why}")
    html.write_index(out)


def environment() -> dict[str, Any]:
    """The content of a run folder's environment.json but for the manifest's hash; what cannot be told is None."""
    command = ["git", "-C", str(config.ROOT), "--git-dir=.git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or no repository
        commit = None
    return {"dfd": __version__, "commit": commit, "python": platform.python_version(), "platform": platform.platform(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu", "cpus": os.cpu_count(),
            "packages": {name: metadata.version(name) for name in PACKAGES}, "written": runs.now()}  # fmt: skip
