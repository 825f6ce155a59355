"""Can the traces that the detector that ships looks for be removed, and do heads that saw it resist?

`attack_shipped.py DATA RUN`, RUN with a manifest.parquet that names sources. Linear discriminants on the tuned trunk,
which knows all sources, leave one joint hold-out out and are fitted twice, the second time also on fakes that a
launderer changed against the first. The table has both and what ships under attack, at the cut above which 5 % of the
held-out photos lie; before it their AUC.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from tune_clip import pooled

from dfd import config
from dfd.analysis import removal
from dfd.data import manifest
from dfd.data.crops import equalise
from dfd.degrade.operators import jpeg
from dfd.inference.stage import Stage, center_crops, extract_features
from dfd.train.heads import Discriminants, joint_hold_outs, sources_of
from dfd.train.stage1 import equalised

IMAGES, STEPS, TRIED = 24, 60, 15  # images of a source; steps of a launderer; fakes of a generator under attack


def crops_of(stage: Stage, rows: pd.DataFrame) -> torch.Tensor:
    return equalise(center_crops(rows, rows["path"], stage.crop_size), stage.equalise_quality)


def features_of(stage: Stage, crops: torch.Tensor) -> np.ndarray:
    """Of crops (N, 3, S, S) in [0, 1] as they are and as JPEG 75: (N, 2, D)."""
    saved = equalised(jpeg(crops, 75), stage.equalise_quality)
    return np.stack([extract_features(stage, images) for images in (crops, saved)], 1)


def with_head(stage: Stage, features: np.ndarray, rows: pd.DataFrame) -> Stage:
    """The stage with discriminants on features (N, 2, D) in place of its head."""
    classes = rows["is_fake"].to_numpy(int)
    weight, bias = pooled(*Discriminants(features, classes, rows["source"].to_numpy(), 0.1).fit())
    other: Any = copy.copy(stage)
    other.model = copy.deepcopy(stage.model, {id(stage.backbone.trunk): stage.backbone.trunk})  # they share the trunk
    head = {"weight": torch.from_numpy(weight[1:] - weight[:1]), "bias": torch.from_numpy(bias[1:] - bias[:1])}
    other.model.backbone.head.load_state_dict(head)
    return other


def set_cut(stage: Any, name: str, images: torch.Tensor, rows: pd.DataFrame) -> None:
    """Call 5 % of the photos fake; says the AUC."""
    for condition, behind in {"as it is": images, **{f"JPEG {q}": jpeg(images, q) for q in removal.QUALITIES}}.items():
        with torch.inference_mode():
            parts = [equalised(part, stage.equalise_quality).to(stage.device) for part in behind.split(32)]
            parts = [stage.model(part).float().cpu() for part in parts]
        logits, is_fake = torch.cat(parts).numpy(), rows["is_fake"].to_numpy(bool)
        if condition == "as it is":
            stage.threshold = float(expit(np.quantile(logits[~is_fake], 0.95) / stage.temperature))
        print(f"{name}, {condition}: AUC {roc_auc_score(is_fake, logits):.3f}", flush=True)


def main(data: str, run: Path) -> None:
    table = manifest.load(run)
    table = table.assign(source=sources_of(table))
    table.attrs["root"] = str(Path(data).resolve())
    draw = next(joint_hold_outs(table["label"].to_numpy(), table["source"].to_numpy(), 40, 0))
    print("held out:", draw)
    attrs = table.attrs
    table = table.groupby(["label", "source"]).sample(frac=1, random_state=0).groupby(["label", "source"]).head(IMAGES)
    held = table["source"].isin(draw.values())
    train, test = table[~held], table[held]
    train.attrs = test.attrs = attrs
    shipped = Stage.load(config.DETECTOR / config.SHIPPED["stage1"])
    crops = crops_of(shipped, train)
    features = features_of(shipped, crops)
    plain = with_head(shipped, features, train)
    fakes = train["is_fake"].to_numpy(bool)
    network = removal.launderer(plain, train[fakes], STEPS)
    with torch.inference_mode():
        parts = [equalised(part + network(part), plain.equalise_quality) for part in crops[fakes].split(32)]
        changed = torch.cat(parts)
    both = np.concatenate([features, features_of(shipped, changed)])
    hardened = with_head(shipped, both, pd.concat([train, train[fakes]]))
    stages = {"what ships": shipped, "discriminants": plain, "and laundered fakes": hardened}
    images = crops_of(shipped, test)
    for name, stage in stages.items():
        set_cut(stage, name, images, test)
    of_fakes = test[test["is_fake"]].groupby("label").head(TRIED)
    of_fakes.attrs = attrs
    print(removal.attacked(stages, train[fakes], of_fakes, STEPS).round(3).to_string())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
