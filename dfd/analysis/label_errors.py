"""What a stage's network knows of each image before its last layer, kept in the run folder."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize
from torch import Tensor, nn

from dfd.core.images import load_rgb
from dfd.core.io import atomic_write
from dfd.core.runs import bar
from dfd.data import splits
from dfd.data.crops import cut, equalise, plan
from dfd.inference.stage import BATCH, Stage


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
    with atomic_write(path) as draft, draft.open("wb") as file:
        np.savez(file, key=key, sha256=np.array(list(known)), features=np.stack(list(known.values())))


COMPONENTS = 64  # principal components that the labels are told from, at most
FOLDS = 5


def neighbours(
    images: pd.DataFrame, train: pd.DataFrame, features: np.ndarray, of_train: np.ndarray, count: int = 4
) -> pd.DataFrame:
    """The training images that a network takes for most alike, by the cosine of their features.

    Args:
        images: M rows of the manifest to explain.
        train: N rows of the manifest to search.
        features, of_train: (M, D) and (N, D), of one stage.
        count: neighbours of each image.

    Returns:
        One row per image and neighbour, nearest first: path, label, neighbour, neighbour_label, rank (from 1),
        similarity in [-1, 1], bits: of the two perceptual hashes' 256 how many differ, NaN where one is flat; twin: no
        more than `splits.NEAR` do, which makes it a near-duplicate.

    Raises:
        ValueError: no training image.
    """
    if not len(train):
        raise ValueError("there is no training image to look for neighbours in")
    search = NearestNeighbors(n_neighbors=min(count, len(train)), metric="cosine").fit(normalize(of_train))
    distance, index = search.kneighbors(normalize(features)) if len(images) else (np.zeros((0, 1)), np.zeros((0, 1)))
    rows = []
    for one, far, near in zip(images.itertuples(), distance, index, strict=True):
        for rank, (d, other) in enumerate(zip(far, train.iloc[near].itertuples(), strict=True), 1):
            bits = hash_bits(one.phash, other.phash)
            rows.append(
                {
                    "path": one.path,
                    "label": one.label,
                    "neighbour": other.path,
                    "neighbour_label": other.label,
                    "rank": rank,
                    "similarity": 1 - d,
                    "bits": bits,
                    "twin": bits <= splits.NEAR,
                }  # fmt: skip
            )
    columns = "path label neighbour neighbour_label rank similarity bits twin".split()
    return pd.DataFrame(rows, columns=columns)


def hash_bits(one: str | None, other: str | None) -> float:
    """How many bits of two hexadecimal hashes differ; NaN where one is missing."""
    if not isinstance(one, str) or not isinstance(other, str):
        return float("nan")
    return float((int(one, 16) ^ int(other, 16)).bit_count())


def agreement(found: pd.DataFrame) -> pd.DataFrame:
    """For each image: the label most of its neighbours have, the share with its own, and near-duplicates labelled else.

    Args:
        found: what `neighbours` gave.

    Returns:
        Index path; columns label, most, own (in [0, 1]), other_twins.
    """
    same = found["label"] == found["neighbour_label"]
    each = found.assign(own=same, other_twins=found["twin"] & ~same).groupby("path", sort=False)
    most = each["neighbour_label"].agg(lambda names: names.mode().iloc[0])
    return each.agg({"label": "first", "own": "mean", "other_twins": "sum"}).assign(most=most)[
        ["label", "most", "own", "other_twins"]
    ]


def held_out_probabilities(features: np.ndarray, labels: pd.Series, groups: pd.Series, seed: int = 0) -> pd.DataFrame:
    """Probability of each label from features, by logistic regressions that saw no image of the same group.

    Args:
        features: (N, D).
        labels, groups: (N,).
        seed: of the folds and the components.

    Returns:
        (N, labels), rows on the labels' index.

    Raises:
        ValueError: fewer than two labels, or a label in one group alone.
    """
    each = groups.groupby(labels).nunique()
    if len(each) < 2 or each.min() < 2:
        raise ValueError(f"needs two labels, each in at least two groups; groups per label: {each.to_dict()}")
    splitter = StratifiedGroupKFold(int(min(FOLDS, each.min())), shuffle=True, random_state=seed)
    with warnings.catch_warnings(action="ignore"):  # a label with fewer images than folds
        folds = list(splitter.split(features, labels, groups))
    found = pd.DataFrame(0.0, index=labels.index, columns=sorted(each.index))
    for train, test in folds:
        kept = min(COMPONENTS, features.shape[1], len(train) - 1)
        model = make_pipeline(
            StandardScaler(), PCA(kept, random_state=seed), StandardScaler(),
            LogisticRegression(C=0.05, class_weight="balanced", max_iter=1000),
        )  # fmt: skip
        model.fit(features[train], labels.iloc[train])
        found.loc[labels.index[test], model.classes_] = model.predict_proba(features[test])
    return found


def suspected(features: np.ndarray, table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Rank images by how likely their label is wrong: confident learning, Northcutt et al. 2021, arXiv:1911.00068.

    A label is suspected where held-out images of its group get another label with at least the probability that images
    of that other label get on average. Within the list, and after it, images come in the order of the probability of
    their best other label less that of their own. Errors that follow from what was to be told apart look the same:
    a generator that the network cannot tell from photos fills the list with good labels.

    Args:
        features: (N, D), of one stage or of both side by side.
        table: the N rows of the manifest.
        seed: of the folds.

    Returns:
        All rows, most suspect first: path, label, split, group, suggested, p_label, p_suggested, margin, suspected.

    Raises:
        ValueError: see `held_out_probabilities`.
    """
    p = held_out_probabilities(features, table["label"], table["group"], seed)
    values, names = p.to_numpy(), np.array(p.columns)
    own = p.columns.get_indexer(table["label"])
    rows = np.arange(len(p))
    usual = np.array([values[own == k, k].mean() for k in range(len(names))])
    others = values.copy()
    others[rows, own] = -1
    other = others.argmax(1)
    confident = np.where(others >= usual, others, -1).max(1) >= 0
    found = table[["path", "label", "split", "group"]].assign(
        suggested=names[other], p_label=values[rows, own], p_suggested=values[rows, other]
    )
    found["margin"] = found["p_suggested"] - found["p_label"]
    found["suspected"] = confident & (found["margin"] > 0).to_numpy()
    return found.sort_values(["suspected", "margin"], ascending=False, ignore_index=True, kind="stable")
