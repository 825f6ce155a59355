"""The command line: `python -m dfd`. Heavy libraries are imported by the commands that need them."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dfd import __version__, config
from dfd.config import CHECKPOINTS, CROP_MODES
from dfd.core import runs as runs_module
from dfd.core.runs import cores


def judging_options(command: Callable) -> Callable:
    """Give a command --model, --threshold-fpr, --crops and --crop-mode."""
    for option in (
        click.option("--crop-mode", type=click.Choice(CROP_MODES), help="Where they lie.  [default: the model's]"),
        click.option(
            "--crops",
            type=click.IntRange(1),
            help="Crops per image at most; more is slower and steadier.  [default: the model's, or 256 for --crop-mode "
            "grid, the most there are]",
        ),
        click.option(
            "--threshold-fpr",
            type=click.FloatRange(0, 1, max_open=True),
            metavar="SHARE",
            help="Call at most this share of the validation photos fake: 0.01, for instance.  [default: the model's "
            "threshold]",
        ),
        click.option("--model", help="Run folder with the trained stages; the newest below reports/ by default."),
    ):
        command = option(command)
    return command


def find_model(model: str | None) -> Path:
    """The run folder to predict with.

    Raises:
        FileNotFoundError: there is none; the text says how to get one.
    """
    runs = [Path(model)] if model else list(config.resolve("reports").glob("*/"))
    trained = [path for path in runs if all((path / name).exists() for name in CHECKPOINTS.values())]
    if not trained:
        where = model or "reports/"
        raise FileNotFoundError(
            f"no trained model in {where}: `make demo` or `python -m dfd run --data FOLDER` makes one"
        )
    return max(trained, key=lambda path: (path / CHECKPOINTS["stage2"]).stat().st_mtime)


def shown(path: Path) -> str:
    """A path as a person here writes it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


@click.command()
@click.option("--out", help="Folder of the sweep, with a run folder for each.  [default: reports/ and the grid's name]")
@click.option("--jobs", type=click.IntRange(1), help="Runs at once.  [default: half of the cores]")
@click.option("--limit", type=click.IntRange(1), help="How many runs the grid may ask for.  [default: 100]")
@click.option("--dry-run", is_flag=True, help="List the runs and start none.")
@click.option("--ray", is_flag=True, help="Run on Ray: on this machine, or where --address says.")
@click.option("--address", help="A Ray cluster's, or auto for the one that this machine belongs to; with --ray.")
@click.argument("grid", metavar="GRID.yaml")
def sweep(
    grid: str,
    out: str | None,
    jobs: int | None,
    limit: int | None,
    dry_run: bool,
    ray: bool,
    address: str | None,
) -> None:
    """Run the notebooks over a grid of parameters and compare.

    Every combination of the values is a run; names are those of `run -p`. Several run at once, each a process of its
    own with its share of the cores. The same command again goes on; what is finished is kept. A run that fails does not
    stop the others. Runs are ranked by their metrics on validation; test is shown beside.

    \b
    data: data/mine                  # the rest as for `run`
    profile: quick
    notebooks: [00, 01, 02]
    parameters:
      01.lr_gc: [0.0003, 0.001]      # each with each
      crop_size: [64, 96]
      num_epochs: 4                  # the same for all
    seeds: [0, 1, 2]                 # of the training; the splits stay
    sort_by: stage1.auc

    In place of several values, `runs:` may list each run, such as - {01.lr_gc: 0.001, 01.batch_size: 16}. A parameter
    that is a list itself takes a list of lists: 03.conditions: [[jpeg 75, blur 1]].

    With --ray, each run asks Ray for cores divided by --jobs, and for a GPU where there is one. All machines need the
    same files at the same place: this checkout, its environment, the data and --out.

    Ends with 0 if every run finished, 1 if one failed, 2 if nothing could start, 130 after Ctrl-C and 143 after
    SIGTERM.

    \b
    python -m dfd sweep grid.yaml --dry-run
    python -m dfd sweep grid.yaml
    python -m dfd sweep grid.yaml --out reports/rates --jobs 4
    python -m dfd sweep grid.yaml --ray --address auto
    """
    if address and not ray:
        raise click.UsageError("--address needs --ray")
    with runs_module.terminable():
        _sweep(grid, out, jobs, limit, dry_run, ray, address)


def _sweep(
    grid: str, out: str | None, jobs: int | None, limit: int | None, dry_run: bool, ray: bool, address: str | None
) -> None:
    from dfd.reports import parameter_grid, parameter_sweep

    asked = parameter_grid.read(grid, limit)
    folder = out or str(Path("reports") / asked.name)
    if dry_run:
        for line in parameter_sweep.listing(asked, folder):
            click.echo(line)
        return
    if ray:
        from dfd import ray_runs

        threads = max(1, cores() // (jobs or parameter_sweep.default_jobs()))
        with ray_runs.on_ray(address, threads) as launch:
            page = parameter_sweep.run(asked, folder, len(asked.runs), launch, threads, say=click.echo)
    else:
        page = parameter_sweep.run(asked, folder, jobs, say=click.echo)
    click.echo(f"Open {shown(page)}")


@click.command()
@click.option("--out", required=True, metavar="ADDRESS", help="Folder for the Parquet parts; the same one goes on.")
@click.option("--column", help="Column of a table: paths, or bytes of images.  [default: path, url, image, ...]")
@click.option("--names", metavar="COLUMN", help="Column that says what images kept as bytes are called.")
@click.option("--root", metavar="ADDRESS", help="What relative paths in lists and tables are relative to.")
@click.option("--workers", type=click.IntRange(1), help="Processes.  [default: one a GPU, or all CPUs]")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of each worker, on the CPU.")
@click.option(
    "--gpus", type=click.FloatRange(0), help="Of each worker: 0.5 puts two on one, 0 uses none.  [default: 1 if any]"
)
@click.option("--batch-size", type=click.IntRange(1), help="Crops per forward pass; more for a GPU.  [default: 64]")
@click.option("--part-size", type=click.IntRange(1), help="Images in a part.  [default: the folder's, or 256]")
@click.option("--address", metavar="ADDRESS", help="A Ray cluster that runs, or auto.  [default: start one here]")
@click.option("--retry", is_flag=True, help="Score again the parts in which an image was refused.")
@judging_options
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
def score(inputs: tuple[str, ...], model: str | None, part_size: int | None, **options: Any) -> None:
    """Judge very many images, on all CPUs, GPUs or machines, and write Parquet.

    The answers are those of `predict`, one row an image. An INPUT, or --out, is a path here or an address that fsspec
    knows: s3://, gs://, hf://, https:// (some need a package, and the error says which). It is one of these:

    \b
    an image    photo.jpg
    a folder    all images and tar shards below it
    a pattern   "s3://bucket/shards/*.tar", in quotes
    a shard     .tar, .tar.gz as WebDataset packs them; a row is called shard.tar/file.jpg
    a list      .txt, one path or address a line
    a table     .parquet with a column of paths, or of bytes as Hugging Face keeps them; see --column

    Columns: path, is_fake, p_fake, source, p_<generator> for each, candidates, crops, crop_std, error. An image that
    cannot be used, or a shard that is damaged, is a row with error and nulls. To read it all, pandas.read_parquet(OUT).

    A part is there whole or not at all, so the same command goes on after any interruption, and a worker that dies is
    started anew: one row an image in the end. The folder belongs to one model, threshold, part size and set of images;
    a second run in it is refused, but for a store, which has no locks.

    \b
    python -m dfd score my/folder --out reports/scores
    python -m dfd score my/folder --out reports/scores --retry
    python -m dfd score images.parquet --column file --root /data --out scores --workers 8 --threads 2

    S3 takes keys and server from the usual variables (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...), which go to all
    workers. On a cluster, dfd has to be installed on each machine; the networks are sent there. All paths, --out too,
    must be on a file system that all machines share, as s3:// is.

    \b
    python -m dfd score "s3://bucket/shards/*.tar" --out s3://bucket/scores --address auto --batch-size 512

    Ends with 0 if every image was answered, 1 if one was refused, 2 if nothing could start, 130 after Ctrl-C and 143
    after SIGTERM.
    """
    try:
        with runs_module.terminable():
            _score(inputs, model, part_size, **options)
    except KeyboardInterrupt as stopped:
        click.echo("interrupted; the parts that are written stay, and the same command goes on", err=True)
        raise SystemExit(getattr(stopped, "code", 130)) from None


def _score(inputs: tuple[str, ...], model: str | None, part_size: int | None, **options: Any) -> None:
    folder = find_model(model)
    from dfd.scale import scoring
    from dfd.scale.inputs import Inputs

    taken = {name: options.pop(name) for name in ("crops", "crop_mode", "batch_size", "threads")}
    read = Inputs(inputs, *(options.pop(name) for name in ("column", "names", "root")))
    out = options.pop("out")
    job = scoring.Job(out, part_size or scoring.part_size_of(out), **taken)
    click.echo(f"model: {shown(folder)}", err=True)
    outcome = scoring.run(folder, read, job, **options)
    there = f", {outcome.before} of them before" if outcome.before else ""
    click.echo(f"{outcome.images} images in {out}{there}; {outcome.refused} were refused", err=True)
    raise SystemExit(1 if outcome.refused else 0)


SHOWN = {"max_content_width": 100, "help_option_names": ["-h", "--help"]}


class Group(click.Group):
    """Turns expected errors into one clear line; the rest, and everything with --debug, keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt as stopped:
            click.echo(f"dfd: {stopped or 'Interrupted.'}", err=True)
            raise SystemExit(getattr(stopped, "code", 130)) from None
        except BrokenPipeError:  # `... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None
        except Exception as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            elif not isinstance(error, ValueError | OSError) and not type(error).__module__.startswith("dfd."):
                raise
            click.echo(f"dfd: {error}", err=True)
            raise SystemExit(getattr(error, "code", 2)) from None


@click.group(cls=Group, context_settings=SHOWN)
@click.option("--debug", is_flag=True, envvar="DFD_DEBUG", help="Show the traceback of an error.")
@click.version_option(__version__, prog_name="dfd")
def main(debug: bool) -> None:
    """Tell real photos from GAN images, and name the generator.

    \b
    See it work:      python -m dfd sample && python -m dfd run
    On your images:   python -m dfd run --data my/images --out reports/mine --profile quick
    One picture:      python -m dfd predict photo.jpg
    A million:        python -m dfd score s3://bucket/images --out s3://bucket/scores
    """


data_option = click.option("--data", help="Folder with the images.  [default: the run folder's, else data/sample]")
profile_option = click.option(
    "--profile",
    type=click.Choice(list(config.PROFILES)),
    help="How much work.  [default: the run folder's, else demo]",
)
setting_option = click.option(
    "-p", "settings", nargs=2, multiple=True, metavar="NAME VALUE", help="Set a parameter; may be repeated."
)
main.add_command(sweep)


@main.command()
@data_option
@click.option("--out", default="reports/demo", show_default=True, help="Run folder; the same one goes on.")
@profile_option
@setting_option
@click.option("--fresh", is_flag=True, help="Run also what is finished.")
@click.argument("notebooks", nargs=-1)
def run(
    data: str | None, out: str, profile: str | None, settings: tuple, fresh: bool, notebooks: tuple[str, ...]
) -> None:
    """Run the notebooks on a folder of images and write the reports.

    The folder holds RealPhotos and one folder for each generator. Name NOTEBOOKS by number to run only those; the
    same command again goes on where it stopped. The parameters are the fields in dfd/config.py.

    \b
    python -m dfd run --data my/images --out reports/mine --profile quick
    python -m dfd run --data my/images --out reports/mine -p num_epochs 20 -p 02.backbone resnet18
    python -m dfd run --out reports/mine 03 04
    """
    from dfd.reports import runner as report

    chosen = remembered(out, data=data, profile=profile)
    index = report.run(chosen["data"], out, chosen["profile"], dict(settings), notebooks, fresh)
    click.echo(f"Open {shown(index)}")


@main.command()
@click.argument("folder")
@click.option("--out", help="Also write manifest.parquet, manifest.csv and rejected.csv there.")
@click.option("--group-by", metavar="COLUMN", help="Split by this column of provenance.csv: test holds whole sources.")
@click.option("--hold-out", multiple=True, metavar="NAME", help="A source for test; may be repeated.")
def scan(folder: str, out: str | None, group_by: str | None, hold_out: tuple[str, ...]) -> None:
    """Check a folder of images: classes, bad files, duplicates, splits.

    \b
    python -m dfd scan my/images
    python -m dfd scan my/images --out reports/mine

    provenance.csv (file, relative to the folder, and a column such as source) lies in the folder or the one above it.
    With --group-by the sources are listed too, and those that can be held out. To train without each in turn:

    \b
    python -m dfd scan my/images --group-by source | sed -n 's/^can be held out: //p' |
    while read -r name; do
      python -m dfd run --data my/images --out "reports/without ${name//[^A-Za-z0-9]/-}" \\
        -p group_by source -p hold_out "$name" </dev/null
    done
    """
    from dfd.data import manifest, provenance

    options = {"group_by": group_by, "hold_out": hold_out} if group_by or hold_out else {}
    table = manifest.scan(folder, out, **options)
    click.echo(manifest.summary(table).to_string())
    if group_by:
        click.echo(provenance.sources(table).to_string())
        for (name,) in provenance.leave_one_source_out(table):
            click.echo(f"can be held out: {name}")


@main.command()
@click.option("--out", default="data/sample", show_default=True, help="Where to write it.")
@click.option("--seed", default=0, show_default=True)
def sample(out: str, seed: int) -> None:
    """Make the built-in data: real photos, and simulated fakes of them.

    \b
    python -m dfd sample
    """
    from dfd.data import sample as built_in

    click.echo(f"Wrote {built_in.build(out, seed)}")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line and an image.")
@click.option("--csv", "table", metavar="FILE", help="Write the answers there too, line by line; see --resume.")
@click.option("--resume", is_flag=True, help="Skip the images that the file of --csv has, and go on with it.")
@click.option("--report", metavar="FILE", help="Write an HTML page that shows what each answer rests on; slower.")
@judging_options
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
def predict(model: str | None, paths: tuple[str, ...], resume: bool, table: str | None, **options: Any) -> None:
    """Judge images: real or fake, and made by which generator.

    A folder stands for all images below it; a pattern in quotes, such as "a/**/*.jpg", for what it matches. Nothing is
    resized: windows are cut at full resolution and the networks' answers averaged.

    \b
    five    the centre, the corners, then ever finer grids: quick, for an image that is of one kind throughout
    grid    rows and columns that cover the whole image, unless --crops is lower: for an image that may be
            fake in part only; crop_std of --json is then large
    random  drawn places, always the same for one size: to check that the answer does not hang on places

    A line on standard error names each image that is too large for all its crops. A fake that is like none of the
    generators has the source unknown; names after "or" stay possible too (--json: candidates). What stage 2 makes of an
    image that stage 1 calls real is marked as such.

    Ends with 0 if every image was answered, 1 if one was refused, 2 if nothing could start, 130 after Ctrl-C and 143
    after SIGTERM.

    \b
    python -m dfd predict photo.jpg
    python -m dfd predict --crop-mode grid large.jpg
    python -m dfd predict --json --model reports/mine my/folder > verdicts.jsonl
    python -m dfd predict --csv verdicts.csv --resume my/folder
    python -m dfd predict --report page.html --threshold-fpr 0.01 photo.jpg
    """
    folder = find_model(model)
    if resume and not table:
        raise click.UsageError("--resume needs --csv FILE, the file to go on with")
    from dfd.app import predict as predicting

    found = predicting.find_images(paths)
    journal = predicting.Journal(Path(table), resume) if table else None
    raise SystemExit(predicting.run(folder, found, journal, shown=shown(folder), **options))


main.add_command(score)


@main.command()
@click.option("--out", metavar="PAGE.html", help="Write the comparison as a page.")
@click.option("--csv", metavar="FILE", help="Write all metric differences as a table.")
@click.option("--changed", metavar="FILE", help="Write all images whose verdict changed as a table.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...")
def compare(out: str | None, csv: str | None, changed: str | None, runs: tuple[str, ...]) -> None:
    """Compare runs: metrics, verdicts, and what differs in their making.

    Each run folder is compared with the first, on the test images that both scored as they are: same path, label and
    content. A difference is the later run minus the first; its 95 % interval is a paired bootstrap over groups, and a
    star marks those that leave out zero. No model is loaded.

    \b
    python -m dfd compare reports/demo reports/mine
    python -m dfd compare reports/demo reports/mine --out compare.html --changed changed.csv
    """
    from dfd.evaluate import compare as comparing
    from dfd.reports import summary as compare_report

    found = comparing.compare(runs)
    click.echo("\n\n".join("\n".join(compare_report.lines(one)) for one in found))
    for path, table in ((csv, compare_report.metric_rows), (changed, compare_report.changed_rows)):
        if path:
            table(found).to_csv(path, index=False)
    if out:
        click.echo(f"\nOpen {shown(compare_report.write_page(found, Path(out).absolute()))}")


@main.group()
def train() -> None:
    """Train one part by itself; `run` trains both stages.

    A stage can be trained on several GPUs, also of several machines (`accelerate launch --help`): each takes its part
    of every batch. Only the first writes; the manifest is made first if it is missing.

    
    accelerate launch --multi_gpu --num_processes 4 -m dfd train stage1 --data my/images --out reports/mine
    """


def stage_command(stage: str, text: str) -> None:
    @train.command(stage, help=f"{text}\n\n\b\npython -m dfd train {stage} --data my/images --out reports/mine")
    @data_option
    @click.option("--out", default="reports/demo", show_default=True, help="Run folder for the checkpoint.")
    @profile_option
    @setting_option
    def command(data: str | None, out: str, profile: str | None, settings: tuple) -> None:
        from dfd.core import runs as interruption
        from dfd.reports import runner as report

        stem, cls = next((s, c) for s, c in config.NOTEBOOKS.items() if c.__name__.lower() == stage)
        chosen = remembered(out, data=data, profile=profile)
        shared = {"data": chosen["data"], "out": out}
        given = report.plan([stem], config.NOTEBOOKS, shared, chosen["profile"], dict(settings))[stem]
        cfg = cls(**given)
        with interruption.run_lock(cfg.out), interruption.terminable():
            train_stage(cfg)


def train_stage(cfg: config.Training) -> None:
    from dfd import train as training
    from dfd.analysis import ablation

    table = training.from_main_process(lambda: manifest_of(cfg))
    training.fit(table, cfg)
    if getattr(cfg, "ablate", False):
        click.echo(ablation.run(table, cfg).round(3).to_string())
    if getattr(cfg, "leave_out", False):
        click.echo(ablation.leave_out(table, cfg).round(3).to_string())


stage_command("stage1", "Train the real/fake detector; with -p ablate true also its variants, and compare them.")
stage_command(
    "stage2",
    "Train the network that names the generator; with -p ablate true also its variants and baselines, with "
    "-p leave_out true also without each generator in turn.",
)


@train.command()
@click.option("--photos", required=True, help="Folder with photographs, searched with its subfolders.")
@click.option("--out", default="data/simulators", show_default=True, help="Where to write the weights.")
def simulators(photos: str, out: str) -> None:
    """Remake the three simulated generators from photographs.

    \b
    python -m dfd train simulators --photos photos

    data/simulators/README.md lists the photographs that the committed weights come from.
    """
    from dfd import simulators_training

    simulators_training.train(photos=photos, out=out)


def manifest_of(cfg: config.Shared) -> Any:
    """The manifest in the run folder, or that of a scan, which it then has."""
    from dfd.data import manifest

    try:
        return manifest.load(cfg.out, cfg.data)
    except FileNotFoundError:
        return manifest.scan(cfg.data, cfg.out, cfg.seed)


def remembered(out: str, **given: str | None) -> dict[str, str]:
    """What was given, and for the rest what the run folder was made with, or the built-in data and the demo."""
    from dfd.core import runs as record

    kept = {"data": "data/sample", "profile": "demo"} | record.read_json(config.resolve(out) / "config.json")
    return {name: value or kept[name] for name, value in given.items()}
