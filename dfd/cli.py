"""The command line, `dfd` or `python -m dfd`: each command parses, calls one function and prints what it gives.

Heavy libraries are imported by the commands that need them, so that `--help` answers at once.
"""

import os
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import click

from dfd import __version__

SETTINGS = {"max_content_width": 100, "help_option_names": ["-h", "--help"]}
HELP = Path(__file__).parent / "templates" / "help"
OPTIONS = tomllib.loads((HELP / "options.toml").read_text("utf-8"))
CHOICES = OPTIONS.pop("choices")  # those of dfd.config, whose import takes longer than all else here
TYPES = {"number": click.IntRange(0), "count": click.IntRange(1), "side": click.IntRange(8), "path": os.path.expanduser,
         "share": click.FloatRange(0, 1, max_open=True), "new folder": click.Path(file_okay=False, path_type=Path),
         "folder": click.Path(exists=True, file_okay=False, path_type=Path),
         **{name: click.Choice(values) for name, values in CHOICES.items()}}  # fmt: skip
EXTRAS = {module: extra for extra, modules in OPTIONS.pop("extras").items() for module in modules}


class Group(click.Group):
    """Turns expected errors into one clear line; the rest, and everything with --debug, keeps its traceback."""

    main: Any = partialmethod(click.Group.main, windows_expand_args=False)  # photo[1].jpg is a file; see `find_images`

    def invoke(self, ctx: click.Context) -> Any:
        from dfd.core.io import need_home, printable
        from dfd.core.runs import deferred

        while (closed := os.open(os.devnull, os.O_RDWR)) < 3:  # `2>&-`, by daemons
            os.set_inheritable(closed, True)
        os.close(closed)
        sys.stdin = sys.stdin or os.fdopen(0)
        sys.stdout, sys.stderr = sys.stdout or os.fdopen(1, "w"), sys.stderr or os.fdopen(2, "w")
        for stream in (sys.stdout, sys.stderr):  # what it cannot encode, of a file's name say, must not end the work
            if reconfigure := getattr(stream, "reconfigure", None):
                reconfigure(errors="backslashreplace", line_buffering=True)
        try:
            need_home()
            with deferred("", pass_on=lambda: False):  # a SIGTERM ends it as Ctrl-C does, with its own status
                return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            click.echo(f"dfd: {stopped or 'Interrupted.'}", err=True)
            raise SystemExit(getattr(stopped, "code", 130)) from None
        except BrokenPipeError:  # `... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None
        except ModuleNotFoundError as error:
            extra = EXTRAS.get((error.name or "").partition(".")[0])
            if not extra or ctx.params.get("debug"):
                raise
            click.echo(f"dfd: this needs {error.name}, which is not installed: pip install 'dfd[{extra}]'", err=True)
            raise SystemExit(2) from None
        except Exception as error:
            is_told = isinstance(error, ValueError | OSError) or type(error).__name__ == "OutOfMemoryError"  # torch's
            if not is_told and not type(error).__module__.startswith("dfd."):
                raise
            if ctx.params.get("debug"):
                traceback.print_exc()
            click.echo(printable(f"dfd: {error}", "\n"), err=True)
            raise SystemExit(getattr(error, "code", 2)) from None


def manual(name: str) -> str:
    """What templates/help/<name>.txt teaches."""
    return (HELP / f"{name}.txt").read_text("utf-8").replace("\\b\n", "\b\n")


def options(name: str) -> Iterator[click.Parameter]:
    """What options.toml has for a command, or under a name that commands share."""
    for names, given in OPTIONS[name].items():
        if names in OPTIONS and not given:
            yield from options(names)
        else:
            declare = click.Option if names.startswith("-") else click.Argument
            yield declare(names.split(), **given | {"type": TYPES.get(given.get("type"))})


def command(function: Callable) -> click.Command:
    """A command whose help is its docstring and its manual, with its options."""
    name = function.__name__
    return main.command(help=f"{function.__doc__}\n\n{manual(name)}", params=[*options(name)])(function)


@click.group(cls=Group, help=manual("dfd"), context_settings=SETTINGS)
@click.option("--debug", is_flag=True, envvar="DFD_DEBUG", help="Show the traceback of an error.")
@click.version_option(__version__, prog_name="dfd")
def main(debug: bool) -> None:
    """`python -m dfd`."""


@command
def run(notebooks: tuple[str, ...], out: str, settings: tuple, fresh: bool, **given: str | None) -> None:
    """Run the notebooks on a folder of images and write the reports."""
    from dfd.core import command_line, read_json
    from dfd.reports import html, runner

    chosen = remembered(out, given, settings)
    index = runner.run(chosen["data"], out, chosen["profile"], dict(settings), notebooks, fresh)
    told = {name: read_json(index.with_name(f"{name}.json")) for name in ("metrics", "config")}
    click.echo(html.fill("ran.txt.j2", **told, out=command_line([out]), index=shown(index)).strip())


@command
def scan(folder: str, out: str | None, group_by: str, hold_out: tuple[str, ...]) -> None:
    """Check a folder of images: classes, bad files, duplicates, splits."""
    from dfd.data import manifest, provenance

    table = manifest.scan(folder, out, group_by=group_by, hold_out=hold_out)
    click.echo(manifest.summary(table).to_string())
    if "source" in table:
        click.echo(provenance.sources(table).to_string())


@command
def notebooks(folder: Path) -> None:
    """Copy the notebooks and the profiles into a folder, to be opened and changed there."""
    from dfd.reports import runner

    count = runner.copy_notebooks(folder)
    click.echo(f"{count} files copied to {shown(folder.absolute())}; `python -m dfd lab` there opens them")


@command
def lab(arguments: tuple[str, ...]) -> None:
    """Open the notebooks in JupyterLab."""
    from dfd.reports import runner

    runner.copy_notebooks(Path())
    raise SystemExit(runner.open_lab(arguments))


@command
def sample(out: str, seed: int) -> None:
    """Make the built-in data: real photos, and simulated fakes of them."""
    from dfd.data import sample as built_in

    click.echo(f"Wrote {built_in.build(out, seed)}")


@command
def predict(model: str | None, paths: tuple[str, ...], **how: Any) -> None:
    """Judge images: real or fake, and made by which generator; - is an image on standard input."""
    folder = model_folder(model)
    if how["resume"] and not how["table"]:
        raise click.UsageError("--resume needs --csv FILE, the file to go on with")
    if not how["case"] and any(how[name] for name in "title examiner notes with_images pictures map_stride".split()):
        raise click.UsageError("--title, --examiner, --note, --with-images, --pictures, --map-stride need --case")
    if how["table"] and how["case"]:
        raise click.UsageError(f"a case has its own verdicts.csv; leave out --csv {how['table']}")
    from dfd.app import predict as predicting
    from dfd.data.layouts import find_images

    below = find_images(paths, tell=lambda line: click.echo(line, err=True))
    own = how["case"] and os.path.realpath(how["case"])  # it may lie below its images, and has pictures of its own
    images = [path for path in below if not (own and Path(os.path.realpath(path)).is_relative_to(own))]
    given = sys.stdin.buffer.read() if "-" in images else None
    raise SystemExit(predicting.run(folder, images, shown(folder), given, **how))


@command
def verify(case: Path) -> None:
    """Hash all files of a case anew, and the images that it judged, and say what changed."""
    from dfd.app.case import verify as verifying

    wrong, away = verifying(case)
    click.echo("\n".join([*wrong, *away, f"{case}: {len(wrong)} differences" if wrong else f"{case}: as it was made"]))
    raise SystemExit(1 if wrong else 0)


@command
def export(model: str | None, onnx: str) -> None:
    """Write a detector as ONNX, with an example that needs no torch."""
    folder = model_folder(model)
    from dfd.inference import Detector
    from dfd.inference.export import export as exporting

    click.echo(f"model: {shown(folder)}\nWrote {exporting(Detector.load(folder), Path(onnx))}")


@command
def card(model: str | None) -> None:
    """Print a detector's model card: how it was made, and how often it is wrong."""
    from dfd import config, core

    folder = model_folder(model)
    names = ("README.md",) if (folder / config.SUMS).exists() else ("model_card_stage1.md", "model_card_stage2.md")
    cards = [(folder / name).read_text("utf-8") for name in names if (folder / name).exists()]
    if not cards:
        raise FileNotFoundError(f"no model card in {shown(folder)}; `python -m dfd run --out {folder}` writes them")
    click.echo(core.printable("\n\n".join(cards), "\n"))


@command
def score(inputs: tuple[str, ...], out: str, model: str | None, **how: Any) -> None:
    """Judge very many images, on all CPUs, GPUs or machines, and write Parquet."""
    folder = model_folder(model)
    from dfd.scale import score as scoring

    click.echo(f"model: {shown(folder)}", err=True)
    try:
        images, refused, before = scoring.score(inputs, out, folder, scoring.Options(**how))
    except KeyboardInterrupt as stopped:
        stopped.args = ("interrupted; the parts that are written stay, and the same command goes on",)
        raise
    there = f", {before} of them before" if before else ""
    click.echo(f"{images} images in {out}{there}; {refused} were refused", err=True)
    raise SystemExit(1 if refused else 0)


@command
def compare(out: str | None, runs: tuple[str, ...]) -> None:
    """Compare runs: their metrics with paired intervals, and the verdicts that changed."""
    from dfd.evaluate import compare as comparing
    from dfd.reports import html

    comparisons = comparing.compare(runs)
    click.echo("\n\n".join(html.fill("compare.txt.j2", comparison=pair).rstrip() for pair in comparisons))
    if out:
        Path(out).absolute().parent.mkdir(parents=True, exist_ok=True)
        click.echo(f"\nOpen {shown(html.render(Path(out).absolute(), 'compare.html.j2', comparisons=comparisons))}")


@command
def sweep(grid: str, out: str | None, jobs: int | None, dry_run: bool) -> None:
    """Run the notebooks over a grid of parameters and compare."""
    from dfd.reports import sweep as sweeping

    asked = sweeping.read(grid)
    folder = out or str(Path("reports") / asked.name)
    if not dry_run:
        click.echo(f"Open {shown(sweeping.run(asked, folder, jobs, say=click.echo))}")
        return
    for name, entry in sweeping.entries_of(asked, folder).items():
        click.echo(f"{name}\n    {sweeping.runs.command_line(['python', *entry['command'][1:]])}")


@command
def train(stage: str, out: str, settings: tuple, **given: str | None) -> None:
    """Train one stage by itself; `run` trains both."""
    from dfd import config
    from dfd import train as training
    from dfd.analysis import ablation
    from dfd.core.runs import run_lock
    from dfd.data import manifest

    stem, chosen = next(stem for stem in config.NOTEBOOKS if stage in stem), remembered(out, given, settings)
    shared = {"data": chosen["data"], "out": out}
    parameters = config.plan([stem], config.NOTEBOOKS, shared, chosen["profile"], dict(settings))[stem]
    cfg: Any = config.NOTEBOOKS[stem](**parameters)
    with run_lock(cfg.out, shared=True):
        with training.main_process_first():
            try:
                table = manifest.load(cfg.out, cfg.data)
                if others := manifest.changed(table):
                    text = f"{len(others)} files are not as scanned, such as {others[0]}"
                    raise ValueError(f"{text}; run 00_eda, or `scan` with --out {out} and its options, again")
            except FileNotFoundError:
                table = manifest.scan(cfg.data, cfg.out, cfg.seed)
        training.fit(table, cfg)
        if cfg.ablate:
            click.echo(ablation.run(table, cfg).round(3).to_string())
        if stage == "stage2" and cfg.leave_out:
            click.echo(ablation.leave_out(table, cfg).round(3).to_string())


def model_folder(model: str | None) -> Path:
    """What to predict with, see `find_model`."""
    from dfd.inference.files import find_model

    return find_model(model, tell=lambda line: click.echo(line, err=True))


def remembered(out: str, given: dict[str, str | None], settings: tuple) -> dict[str, str]:
    """What was given, and for the rest what the run folder was made with, or the built-in data and the demo."""
    from dfd import config
    from dfd.core.io import read_json

    if len(dict(settings)) < len(settings):
        raise click.UsageError("-p gives a parameter twice; several values of one are written as one: -p hold_out a,b")
    known = {"data": "data/sample", "profile": "demo"} | read_json(config.resolve(out) / "config.json")
    if known["profile"] not in config.PROFILES and not given.get("profile"):
        raise ValueError(f"{out} was made with the profile {known['profile']!r}, which is gone; give --profile")
    return {name: value or known[name] for name, value in given.items()}


def shown(path: Path) -> str:
    """A path as a person here writes it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
