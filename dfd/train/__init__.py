"""Training of both stages: one function each that reads downwards, and the loop that they share.

May import inference, data, models, losses, degrade, core and config; knows neither evaluate nor plots.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch

from dfd import config
from dfd.train.loop import Trainer, free_gpus, worker_count
from dfd.train.stage1 import fit_stage1
from dfd.train.stage2 import fit_stage2

__all__ = ["Trainer", "fit", "fit_stage1", "fit_stage2", "worker_count"]


def fit(
    table: pd.DataFrame,
    cfg: config.Training,
    on_epoch: Callable[[pd.DataFrame], None] | None = None,
    processes: int | None = None,
) -> pd.DataFrame:
    """Train the stage that the config is of; from a notebook on all GPUs of the machine, where it has several.

    Args:
        table, cfg, on_epoch: see `fit_stage1` and `fit_stage2`; several processes call `on_epoch` once, at the end.
        processes: how many; none starts one for each GPU.

    Returns:
        The history, one row an epoch.
    """
    stage, fit_stage = ("stage1", fit_stage1) if isinstance(cfg, config.Stage1) else ("stage2", fit_stage2)
    if processes is None:
        processes = free_gpus()
    if processes < 2:
        return fit_stage(table, cfg, on_epoch)
    from accelerate import notebook_launcher

    notebook_launcher(fit_stage, (table, cfg), num_processes=processes, use_port="0")
    path = config.resolve(cfg.out) / config.CHECKPOINTS[stage]
    history = pd.DataFrame(torch.load(path, map_location="cpu", weights_only=True)["history"])
    if on_epoch:
        on_epoch(history)
    return history
