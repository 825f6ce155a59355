"""What several commands share: the model they judge with, and how."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click

from dfd import config

CROP_MODES = ("five", "grid", "random")
CHECKPOINTS = ("best_real_fake_model.pt", "best_gfd2_model.pt")


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
    trained = [path for path in runs if all((path / name).exists() for name in CHECKPOINTS)]
    if not trained:
        where = model or "reports/"
        raise FileNotFoundError(
            f"no trained model in {where}: `make demo` or `python -m dfd run --data FOLDER` makes one"
        )
    return max(trained, key=lambda path: (path / CHECKPOINTS[-1]).stat().st_mtime)


def shown(path: Path) -> str:
    """A path as a person here writes it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
