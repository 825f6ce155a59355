"""What one would pick instead, judged as the detector that ships: `judge_peers.py ../shared/data/GANAttributes OUT`.

The networks of benchmarks/peers.py: linear discriminants on the 8-bit CLIP's answer, and Tiny-LaDeDa, trained anew for
each draw. Draws are the card's; a crop of 224 px of at most LIMIT images of a source and label, as it is and as JPEG
75. A stopped run goes on after the tokens. A quarter of an hour on two cores.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from hold_out_baselines import DRAWS
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as TF
from tune_clip import SAME, pooled

from benchmarks.peers import CROP, encoder, tiny
from dfd.config import REAL
from dfd.core.io import atomic_write
from dfd.core.runs import bar
from dfd.data.crops import Seeded, seeds
from dfd.models import clip
from dfd.train.bank import CONDITIONS, Views
from dfd.train.heads import Discriminants, joint_hold_outs

LIMIT = 100  # images of a source and label
JUDGED = [0, 2]  # of CONDITIONS: as it is, JPEG 75
EPOCHS, BATCH, RATE, LEARNT = 4, 32, 3e-3, 64  # of Tiny-LaDeDa; pixels of a crop that it learns from
TRAINED = 12  # of the draws, in which Tiny-LaDeDa is trained: half a minute each


def views(table: pd.DataFrame) -> Tensor:
    """One crop of each image under each condition, (N, 2, 3, CROP, CROP) uint8."""
    settings: Any = SimpleNamespace(crop_size=CROP, equalise=False, equalise_quality=90, random_views=0, degrade=True)
    draws: Any = list(enumerate(seeds(len(table), 0, 2)))
    loader = DataLoader(Seeded(Views(table, settings)), 16, sampler=draws, num_workers=2)
    return torch.cat([(part[:, JUDGED] * 255).round().byte() for part in bar(loader, desc="views", unit="batch")])


@torch.inference_mode()
def answers(crops: Tensor, path: Path) -> np.ndarray:
    """What the encoder answers, (N, 2, D) float32, computed once."""
    if not path.exists():
        network = encoder()
        parts = bar(crops.split(8), desc="CLIP in 8 bits", unit="batch")
        rows = [network(TF.normalize(part.flatten(0, 1) / 255, clip.MEAN, clip.STD)) for part in parts]
        with atomic_write(path) as draft, draft.open("wb") as file:
            np.save(file, torch.cat(rows).float().numpy().reshape(len(crops), len(JUDGED), -1))
    return np.load(path)


def trained(crops: Tensor, is_fake: Tensor, weight: np.ndarray, seed: int) -> torch.nn.Module:
    """Tiny-LaDeDa after EPOCHS over these crops, which are drawn by weight; each view as often as the other."""
    torch.manual_seed(seed)
    network, steps = tiny(), EPOCHS * len(crops) // BATCH
    optimizer = torch.optim.AdamW(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    for rows in torch.multinomial(torch.from_numpy(weight), steps * BATCH, True).view(steps, BATCH):
        top, left = (int(torch.randint(CROP - LEARNT + 1, ())) for _ in range(2))
        x = crops[rows, torch.randint(len(JUDGED), (BATCH,))][..., top : top + LEARNT, left : left + LEARNT] / 255
        loss = F.binary_cross_entropy_with_logits(network(x).mean((1, 2, 3)), is_fake[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def main(data: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    table = pd.read_csv(data.parent / "provenance.csv").rename(columns={"file": "path"})
    draws = list(joint_hold_outs(table["label"].to_numpy(), table["source"].replace(SAME).to_numpy(), 40, 0))[:DRAWS]
    table = table.sample(frac=1, random_state=0).groupby(["label", "source"]).head(LIMIT).reset_index(drop=True)
    table["is_fake"], table["source"], table.attrs["root"] = table["label"] != REAL, table["source"].replace(SAME), data
    sources, is_fake = table["source"].to_numpy(), table["is_fake"].to_numpy()
    crops = views(table)
    tokens = answers(crops, out / "clip8.npy")
    heads = Discriminants(tokens, is_fake.astype(int), sources, 0.1)
    weight = 1 / table.groupby("label")["label"].transform("size").to_numpy() / np.where(is_fake, 3, 1)
    rows = []
    for number, draw in enumerate(bar(draws, desc="hold-outs", unit="draw")):
        held = np.isin(sources, list(draw.values()))
        matrix, _ = pooled(*heads.fit(set(draw.values())))
        scores = {"CLIP in 8 bits": tokens[held] @ (matrix[1] - matrix[0])}
        if number < TRAINED:
            network = trained(crops[~held], torch.from_numpy(is_fake[~held]).float(), weight[~held], number)
            with torch.inference_mode():
                parts = [network(part.flatten(0, 1) / 255).mean((1, 2, 3)) for part in crops[held].split(16)]
            scores["Tiny-LaDeDa"] = torch.cat(parts).view(-1, len(JUDGED)).numpy()
        for name, answer in scores.items():
            for view, condition in enumerate(JUDGED):
                auc = roc_auc_score(is_fake[held], answer[:, view])
                rows.append({"peer": name, "condition": CONDITIONS[condition].name, "auc": auc})
    judged = pd.DataFrame(rows)
    print(f"{len(table)} images, {len(draws)} draws")
    print(judged.groupby(["peer", "condition"])["auc"].agg(["mean", "std", "min", "size"]).round(3))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
