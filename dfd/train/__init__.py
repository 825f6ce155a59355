"""Training of both stages: one function each that reads downwards, and the loop that they share.

May import inference, data, models, losses, degrade, core and config; knows neither evaluate nor plots.
"""

from typing import Any

import pandas as pd

from dfd import config
from dfd.core.runs import is_main_process
from dfd.train.heads import fit_head
from dfd.train.loop import OnEpoch
from dfd.train.processes import main_process_first
from dfd.train.stage1 import fit_stage1
from dfd.train.stage2 import fit_stage2


def fit(table: pd.DataFrame, cfg: Any, on_epoch: OnEpoch = None) -> pd.DataFrame:
    """Train the stage that the config is of, as `fit_stage1` and `fit_stage2` do, or `fit_head` on frozen features."""
    is_main_process()  # without variables that are left over of another training
    if cfg.backbone in config.CLIPS:
        of_networks = {name: type(cfg).model_fields.get(name) for name in ("ablate", "representation", "extractor")}
        if given := [name for name, field in of_networks.items() if field and getattr(cfg, name) != field.default]:
            raise config.ConfigError(f"{', '.join(given)}: only networks have it; leave it out with {cfg.backbone}")
        with main_process_first():  # which alone computes the bank and the head
            return fit_head(table, cfg, on_epoch) if is_main_process() else pd.DataFrame()
    return fit_stage1(table, cfg, on_epoch) if isinstance(cfg, config.Stage1) else fit_stage2(table, cfg, on_epoch)
