"""What a stage's network knows of each image before its last layer, kept in the run folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from dfd.atomic import whole
from dfd.crops import cut, plan
from dfd.datasets import equalise
from dfd.images import load_rgb
from dfd.progress import bar
from dfd.stage import BATCH, Stage


def network(stage: Stage) -> nn.Module:
    """The timm network inside a stage: stage 1's own, or that of stage 2's classifier."""
    return stage.model.backbone if stage.stage == "stage1" else stage.model.classifier.backbone


def weights_hash(stage: Stage) -> str:
    """Name a stage by what its features follow from: 16 hexadecimal digits over weights, crop size and equalisation."""
    digest = hashlib.sha256(repr((stage.stage, stage.settings, stage.crop_size, stage.equalise_quality)).encode())
    for name, tensor in sorted(stage.model.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.inference_mode()
def extract(stage: Stage, crops: Tensor) -> np.ndarray:
    """The input of the network's last layer, in float32.

    Args:
        stage: either stage.
        crops: (N, 3, S, S) in [0, 1], RGB, not yet equalised.

    Returns:
        (N, D) on the CPU.
    """
    found: list[Tensor] = []
    head = network(stage).get_classifier()
    hook = head.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].float().cpu()))
    try:
        for chunk in crops.split(BATCH):
            stage.model(equalise(chunk, stage.equalise_quality).to(stage.device))
    finally:
        hook.remove()
    return torch.cat(found).numpy()


def load(stage: Stage, table: pd.DataFrame, out: str | Path) -> np.ndarray:
    """Features of one centre crop per image; those that features_<stage>.npz has of these weights are not made again.

    Args:
        stage: either stage; stage 2 takes photos too.
        table: rows of the manifest, with its root in attrs.
        out: the run folder; its features_<stage>.npz grows by what is new, and starts afresh with other weights.

    Returns:
        (N, D) float32, in the table's order; rounded to float16 on the disk.

    Raises:
        ImageError: an image that the manifest lists can no longer be read.
    """
    path, key = Path(out) / f"features_{stage.stage}.npz", weights_hash(stage)
    known = _read(path, key)
    new = table[~table["sha256"].isin(known)].drop_duplicates("sha256")
    if len(new):
        crops = _centres(stage, table.attrs["root"], new["path"])
        made = []
        while batch := list(islice(crops, BATCH)):
            made.append(extract(stage, torch.cat(batch)))
        known |= dict(zip(new["sha256"], np.concatenate(made).astype(np.float16), strict=True))
        _write(path, key, known)
    return np.stack([known[one] for one in table["sha256"]]).astype(np.float32)


def _centres(stage: Stage, root: str, paths: pd.Series) -> Iterator[Tensor]:
    for path in bar(paths, desc=f"{stage.stage} features", unit="image"):
        image = load_rgb(f"{root}/{path}")
        (corner,) = plan(image.height, image.width, stage.crop_size, 1).corners
        yield cut(image, corner, stage.crop_size)


def _read(path: Path, key: str) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    with np.load(path) as kept:
        return dict(zip(kept["sha256"].tolist(), kept["features"], strict=True)) if str(kept["key"]) == key else {}


def _write(path: Path, key: str, known: dict[str, np.ndarray]) -> None:
    with whole(path) as draft, draft.open("wb") as file:
        np.savez(file, key=key, sha256=np.array(list(known)), features=np.stack(list(known.values())))
