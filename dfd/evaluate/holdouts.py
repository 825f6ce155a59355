"""What judgements by heads that never saw an image's source say: numbers by draw, and rates by source.

Scores of different draws are of different heads: ranks are taken within a draw and never across.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dfd.config import REAL
from dfd.core.io import read_table
from dfd.degrade import registry
from dfd.inference.decide import answer, decide, logit_columns, summary
from dfd.inference.stage import Stage


def load(out: str | Path, stage: Stage) -> pd.DataFrame:
    """The judgements in a run folder that a stage was calibrated on; empty where there are none (`dfd.train.heads`)."""
    return read_table(Path(out) / f"hold_outs_{stage.stage}.parquet") if stage.is_held_out else pd.DataFrame()


def headlines(judged: pd.DataFrame) -> dict[str, Any]:
    """`summary` as a part of a stage's metrics: hold_outs -> condition -> metric -> value, deviation, worst, draws."""
    if judged.empty:
        return {}
    table = summary(judged).astype(object)
    rows = table.where(table.notna(), None).set_axis(["value", "deviation", "worst", "draws"], axis=1).to_dict("index")
    return {"hold_outs": {condition: {table.columns[0]: row} for condition, row in rows.items()}}


def by_source(judged: pd.DataFrame, stage: Stage) -> pd.DataFrame:
    """Rates of each source under each condition by a stage's decisions, the worst first.

    Stage 1: the shares called fake, real, unsure, and `wrong`, the opposite; stage 2: wrong, named another generator.
    """
    decisions = decide(judged[logit_columns(judged)].to_numpy(float), stage, judged.get("ood_score"))
    rows = judged[["label", "source", "path"]].copy()
    rows["condition"] = [*map(registry.name, judged["degradation"], judged["level"])]
    if stage.stage == "stage1":
        answers = np.array([answer(p, stage) for p in decisions.probabilities[:, 1]])
        rows["wrong"] = answers == np.where(rows["label"] == REAL, "fake", "real")
        rows = rows.assign(**{name: answers == name for name in ("fake", "real", "unsure")})
    else:
        rows["wrong"] = np.isin(decisions.prediction, stage.classes) & (decisions.prediction != rows["label"])
    groups = rows.groupby(["label", "source", "condition"], sort=False)
    table = groups.mean(numeric_only=True).assign(images=groups["path"].nunique())
    return table.sort_values("wrong", ascending=False).reset_index()
