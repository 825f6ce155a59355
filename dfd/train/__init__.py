"""Training of both stages: one function each that reads downwards, and the loop that they share.

May import inference, data, models, losses, degrade, core and config; knows neither evaluate nor plots.
"""

from __future__ import annotations

import os
from typing import Any

import pandas as pd
import torch
from accelerate import notebook_launcher
from accelerate.state import AcceleratorState
from accelerate.utils.other import get_free_port

from dfd import config
from dfd.train.loop import OnEpoch
from dfd.train.processes import from_main_process, is_main_process
from dfd.train.stage1 import fit_stage1
from dfd.train.stage2 import fit_stage2

__all__ = ["fit", "fit_stage1", "fit_stage2", "from_main_process", "is_main_process"]


def fit(table: pd.DataFrame, cfg: config.Training, on_epoch: OnEpoch = None) -> pd.DataFrame:
    """Train the stage that the config is of, as `fit_stage1` and `fit_stage2` do.

    In a notebook on a machine with several GPUs it trains on all of them, and calls `on_epoch` once, at the end.
    """
    fit_stage: Any = fit_stage1 if isinstance(cfg, config.Stage1) else fit_stage2
    gpus = torch.cuda.device_count()
    is_used = torch.cuda.is_initialized() or bool(AcceleratorState._shared_state)
    if gpus < 2 or is_used or "WORLD_SIZE" in os.environ:
        if gpus > 1 and is_used:
            print(f"This kernel has used a GPU already, so it trains on one of {gpus}; restart it to train on all.")
        return fit_stage(table, cfg, on_epoch)
    notebook_launcher(fit_stage, (table, cfg), num_processes=gpus, use_port=str(get_free_port()))
    path = config.resolve(cfg.out) / config.CHECKPOINTS["stage1" if fit_stage is fit_stage1 else "stage2"]
    history = pd.DataFrame(torch.load(path, map_location="cpu", weights_only=True)["history"])
    if on_epoch:
        on_epoch(history)
    return history
