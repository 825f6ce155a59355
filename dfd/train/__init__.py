"""Training of both stages: one function each that reads downwards, and the loop that they share.

May import inference, data, models, losses, degrade, core and config; knows neither evaluate nor plots.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pandas as pd
import torch

from dfd import config
from dfd.train.processes import from_main_process, is_main_process
from dfd.train.stage1 import fit_stage1
from dfd.train.stage2 import fit_stage2

__all__ = ["fit", "fit_stage1", "fit_stage2", "from_main_process", "is_main_process"]


def fit(
    table: pd.DataFrame, cfg: config.Training, on_epoch: Callable[[pd.DataFrame], None] | None = None
) -> pd.DataFrame:
    """Train the stage that the config is of; from a notebook on all GPUs of the machine, where it has several.

    Args:
        table, cfg, on_epoch: see `fit_stage1` and `fit_stage2`; several GPUs call `on_epoch` once, at the end.

    Returns:
        The history, one row an epoch.
    """
    from accelerate import notebook_launcher
    from accelerate.state import AcceleratorState
    from accelerate.utils.other import get_free_port

    stage, fit_stage = ("stage1", fit_stage1) if isinstance(cfg, config.Stage1) else ("stage2", fit_stage2)
    gpus = torch.cuda.device_count()
    is_used = torch.cuda.is_initialized() or bool(AcceleratorState._shared_state)
    if gpus < 2 or is_used or "WORLD_SIZE" in os.environ:
        if gpus > 1 and is_used:
            print(f"This kernel has used a GPU already, so it trains on one of {gpus}; restart it to train on all.")
        return fit_stage(table, cfg, on_epoch)
    notebook_launcher(fit_stage, (table, cfg), num_processes=gpus, use_port=str(get_free_port()))
    path = config.resolve(cfg.out) / config.CHECKPOINTS[stage]
    history = pd.DataFrame(torch.load(path, map_location="cpu", weights_only=True)["history"])
    if on_epoch:
        on_epoch(history)
    return history
