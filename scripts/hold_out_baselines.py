"""The baseline that every network must beat: `hold_out_baselines.py ../shared/data/GANAttributes OUT [RUN]`.

Linear discriminants on the means and deviations of four blocks of EfficientNet-Lite0, on an image and on eight times
its high-pass part, half an hour once; and, where RUN has one, on its feature bank (profile clip). They are judged by
the draws of the detector that ships, and by two splits of docs/results.md.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tune_clip import SAME, SPLITS

from dfd.config import REAL
from dfd.core.io import atomic_write, digest
from dfd.core.runs import bar
from dfd.data.crops import Seeded, seeds
from dfd.evaluate import holdouts
from dfd.models.backbones import high_pass, lite0
from dfd.train.bank import CONDITIONS, FILE, Views
from dfd.train.heads import Joint, joint_hold_outs, judge_unseen, logits_of

DRAWS = 35  # of the 40 of scripts/tune_clip.py, those that the card has
BLOCKS = range(1, 5)


@torch.inference_mode()
def statistics(network: Any, crops: Tensor) -> Tensor:
    """(B, 1024) of crops (B, 3, S, S) in [0, 1]."""
    parts = []
    for x in (2 * crops - 1, 8 * high_pass(crops)):
        x = network.bn1(network.conv_stem(x))
        for number in range(BLOCKS[-1] + 1):
            x = network.blocks[number](x)
            if number in BLOCKS:
                parts += [x.mean((2, 3)), x.std((2, 3))]
    return torch.cat(parts, 1)


def features(table: pd.DataFrame, path: Path) -> np.ndarray:
    """(N, V, 1024) float16 of the conditions and two degraded views of each image, computed once."""
    if not path.exists():
        settings: Any = SimpleNamespace(
            crop_size=128, equalise=False, equalise_quality=90, random_views=2, degrade=True
        )
        network, rows = lite0(pretrained=True).eval(), []
        draws: Any = list(enumerate(seeds(len(table), 0, 2)))
        for views in bar(DataLoader(Seeded(Views(table, settings)), 16, sampler=draws), desc="views", unit="batch"):
            rows.append(statistics(network, views.flatten(0, 1)).half().numpy().reshape(*views.shape[:2], -1))
        with atomic_write(path) as draft, draft.open("wb") as file:
            np.save(file, np.concatenate(rows))
    return np.load(path)


def judge(name: str, table: pd.DataFrame, values: np.ndarray) -> None:
    """Print how heads on features (N, V, D) do, by the card's draws, and on the splits."""
    named = table["source"].to_numpy()
    table = table.assign(source=table["source"].replace(SAME))
    sources, is_fake = table["source"].to_numpy(), table["is_fake"].to_numpy()
    draws = list(joint_hold_outs(table["label"].to_numpy(), sources, 40, 0))[:DRAWS]
    for stage, rows in (("stage1", np.arange(len(table))), ("stage2", np.flatnonzero(is_fake))):
        images = table.iloc[rows].reset_index(drop=True)
        truth = pd.Categorical(images["label"] if stage == "stage2" else images["is_fake"])
        classes = ["real", "fake"] if stage == "stage1" else list(truth.categories)
        heads = Joint(values[rows], (), truth.codes, sources[rows], 0.1)
        head = nn.Linear(values.shape[-1], 1 if stage == "stage1" else len(classes))
        judged = judge_unseen(heads, head, images, classes, draws)
        print(f"\n{name}, {stage}", holdouts.summary(judged).round(3), sep="\n")
        for split, left_out in SPLITS.items() if stage == "stage1" else ():
            held = np.isin(named, left_out)
            head = heads.head(head, set(sources[held]))
            scores = [logits_of(head, values[held, view])[:, 1] for view in range(len(CONDITIONS))]
            aucs = [round(roc_auc_score(is_fake[held], answers), 3) for answers in scores]
            print(f"{split}, {held.sum()} images, AUC of all together: {aucs}")


def main(data: Path, out: Path, run: Path | None = None) -> None:
    out.mkdir(parents=True, exist_ok=True)
    table = pd.read_csv(data.parent / "provenance.csv").rename(columns={"file": "path"})
    table["is_fake"], table.attrs["root"] = table["label"] != REAL, str(data)
    table["group"] = table["path"]  # no near-duplicates are known
    judge("Lite0", table, features(table, out / f"lite0-{digest(*table['path'])}.npy"))
    if run:
        known = pd.read_parquet(run / "manifest.parquet")
        known["source"] = known["path"].map(table.set_index("path")["source"])
        judge(run.name, known, np.load(run / FILE, mmap_mode="r"))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
