"""The command `sweep`. Heavy libraries are imported when it runs."""

from __future__ import annotations

from pathlib import Path

import click

from dfd import interruption
from dfd.machine import cores
from dfd.options import shown


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
    with interruption.terminable():
        _sweep(grid, out, jobs, limit, dry_run, ray, address)


def _sweep(
    grid: str, out: str | None, jobs: int | None, limit: int | None, dry_run: bool, ray: bool, address: str | None
) -> None:
    from dfd import parameter_grid, parameter_sweep

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
