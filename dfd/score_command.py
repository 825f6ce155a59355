"""`python -m dfd score`."""

from __future__ import annotations

from typing import Any

import click

from dfd import interruption
from dfd.options import find_model, judging_options, shown


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
        with interruption.terminable():
            _score(inputs, model, part_size, **options)
    except KeyboardInterrupt as stopped:
        click.echo("interrupted; the parts that are written stay, and the same command goes on", err=True)
        raise SystemExit(getattr(stopped, "code", 130)) from None


def _score(inputs: tuple[str, ...], model: str | None, part_size: int | None, **options: Any) -> None:
    folder = find_model(model)
    from dfd import scoring
    from dfd.inputs import Inputs

    taken = {name: options.pop(name) for name in ("crops", "crop_mode", "batch_size", "threads")}
    read = Inputs(inputs, *(options.pop(name) for name in ("column", "names", "root")))
    out = options.pop("out")
    job = scoring.Job(out, part_size or scoring.part_size_of(out), **taken)
    click.echo(f"model: {shown(folder)}", err=True)
    outcome = scoring.run(folder, read, job, **options)
    there = f", {outcome.before} of them before" if outcome.before else ""
    click.echo(f"{outcome.images} images in {out}{there}; {outcome.refused} were refused", err=True)
    raise SystemExit(1 if outcome.refused else 0)
