"""Removing the traces on purpose: which fakes does stage 1 still find, once somebody has worked against it?"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dfd.analysis import ablation
from dfd.config import CHECKPOINTS
from dfd.core.runs import bar
from dfd.degrade.operators import jpeg
from dfd.inference.decide import decide
from dfd.inference.stage import BATCH, Stage, sample_crops
from dfd.losses import real_fake_loss
from dfd.models.networks import UNetRes
from dfd.train.stage1 import equalised

BOUND = 0.03  # largest change of a pixel, in units of the [0, 1] range: what the launderer of a training may change
PGD_STEPS, LEARNT, TRIED = 10, 400, 60  # along the gradient; training, and test fakes of a generator
QUALITIES = (95, 75, 50)


def measure(out: str | Path, table: pd.DataFrame, steps: int, seed: int = 0) -> pd.DataFrame:
    """Shares of test fakes that stage 1 of a run, and its like without adversaries of an ablation, calls fake.

    Of TRIED a generator: untouched; along its own gradient (PGD, Madry et al. 2018, arXiv:1706.06083); by launderers
    that learnt for `steps` against each, within BOUND; centre crops. A row a detector and attack, a column a JPEG.
    """
    fakes, stages = table[table["is_fake"]], {"this detector": Stage.load(Path(out) / CHECKPOINTS["stage1"])}
    if other := ablation.trained(table, out, "stage1", ablation.NO_ADVERSARIES):
        stages["one without adversaries"] = other
    return attacked(stages, fakes[fakes["split"] == "train"], fakes[fakes["split"] == "test"], steps, seed)


def attacked(stages: dict[str, Any], train: pd.DataFrame, test: pd.DataFrame, steps: int, seed=0) -> pd.DataFrame:
    """The table of `measure` for any stages 1 by name; launderers learn on fakes `train`, and `test` is attacked."""
    launderers, rows = {name: launderer(stage, train, steps, seed) for name, stage in stages.items()}, []
    for name, stage in stages.items():
        crops, _ = sample_crops(stage, test, TRIED, seed)
        attacks = {"untouched": crops, "along its gradient": along_gradient(stage, crops)}
        for against, network in launderers.items():
            with torch.inference_mode():
                laundered = torch.cat([part + network(part) for part in crops.split(BATCH)])
            attack = f"laundered against {'it' if against == name else against}"
            attacks[attack] = equalised(laundered, stage.equalise_quality)
        for attack, images in attacks.items():
            after = {"as it is": images} | {f"JPEG {quality}": jpeg(images, quality) for quality in QUALITIES}
            shares = {condition: share_found(stage, behind) for condition, behind in after.items()}
            rows.append({"detector": name, "attack": attack, **shares})
    return pd.DataFrame(rows).set_index(["detector", "attack"])


def launderer(stage: Stage, fakes: pd.DataFrame, steps: int, seed: int = 0) -> UNetRes:
    """A small UNet whose residual, within BOUND, makes a stage 1 call fakes photos."""
    crops, _ = sample_crops(stage, fakes, LEARNT, seed)
    torch.manual_seed(seed)
    network = UNetRes(8, BOUND, from_high_pass=False)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    for _ in bar(range(steps), desc="launderer", unit="step"):
        batch = crops[torch.randint(len(crops), (16,))]
        optimizer.zero_grad()
        _attack_loss(stage, batch + network(batch)).backward(inputs=list(network.parameters()))
        optimizer.step()
    return network.eval()


def along_gradient(stage: Stage, crops: Tensor) -> Tensor:
    """Crops (N, 3, S, S) in [0, 1] changed within BOUND by PGD_STEPS steps of the gradient's sign, towards a photo."""
    parts = []
    for part in crops.split(BATCH):
        change = torch.zeros_like(part, requires_grad=True)
        for _ in range(PGD_STEPS):
            (gradient,) = torch.autograd.grad(_attack_loss(stage, part + change), change)
            with torch.no_grad():
                change.sub_(BOUND / 4 * gradient.sign()).clamp_(-BOUND, BOUND)
        parts.append(equalised(part + change, stage.equalise_quality).detach())
    return torch.cat(parts)


def share_found(stage: Stage, crops: Tensor) -> float:
    """The share of crops (N, 3, S, S) in [0, 1] that a stage 1 calls fake at its threshold, behind its codec."""
    with torch.inference_mode():
        behind = equalised(crops, stage.equalise_quality).to(stage.device)
        logits = torch.cat([stage.model(part).float().cpu() for part in behind.split(BATCH)]).numpy()
    return float((decide(np.stack([0 * logits, logits], axis=1), stage).prediction == "fake").mean())


def _attack_loss(stage: Stage, images: Tensor) -> Tensor:
    logits = stage.model(equalised(images, stage.equalise_quality).to(stage.device)).float()
    return real_fake_loss(logits, torch.zeros_like(logits))
