"""Labels that may be wrong, by what a stage's network knows before its last layer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dfd import __version__
from dfd.core.io import atomic_write, digest
from dfd.core.runs import bar
from dfd.inference.stage import BATCH, Stage, extract_features, sample_crops

COMPONENTS = 64  # principal components that the labels are told from, at most
FOLDS = 5


def cached_features(stage: Stage, table: pd.DataFrame, out: str | Path) -> np.ndarray:
    """Features (N, D) of one centre crop per image of the manifest, either stage's, float32 but rounded to float16.

    Those that features_<stage>.npz in the run folder has of these weights are not made again, and it grows by the rest.
    """
    path, known = Path(out) / f"features_{stage.stage}.npz", {}
    key = digest(__version__, stage.settings, stage.crop_size, stage.equalise_quality, stage.model.state_dict())
    if path.exists():
        with np.load(path) as file:
            if str(file["key"]) == key:
                known = dict(zip(file["sha256"].tolist(), file["features"], strict=True))
    new = table[~table["sha256"].isin(known)].drop_duplicates("sha256")
    for start in bar(range(0, len(new), BATCH), desc=f"{stage.stage} features", unit="batch"):
        crops, rows = sample_crops(stage, new.iloc[start : start + BATCH], BATCH)
        known |= dict(zip(rows["sha256"], extract_features(stage, crops).astype(np.float16), strict=True))
    if len(new):
        with atomic_write(path) as draft, draft.open("wb") as file:
            np.savez(file, key=key, sha256=np.array(list(known)), features=np.stack(list(known.values())))
    return np.stack([known[name] for name in table["sha256"]]).astype(np.float32)


def held_out_probabilities(
    features: np.ndarray, labels: pd.Series, groups: pd.Series, seed: int = 0, model: Any = None
) -> pd.DataFrame:
    """Probability of each label, (N, labels), from features (N, D), by models that saw no image of the same group.

    The model is scikit-learn's; none takes a logistic regression on principal components.
    """
    per_label = groups.groupby(labels).nunique()
    if len(per_label) < 2 or per_label.min() < 2:
        raise ValueError(f"needs two labels, each in at least two groups; groups per label: {per_label.to_dict()}")
    splitter = StratifiedGroupKFold(int(min(FOLDS, per_label.min())), shuffle=True, random_state=seed)
    with warnings.catch_warnings(action="ignore"):  # a label with fewer images than folds, or in none of a fold's
        folds = list(splitter.split(features, labels, groups))
        if model is None:
            components = min(COMPONENTS, features.shape[1], min(len(train) for train, _ in folds) - 1)
            linear = LogisticRegression(C=0.05, class_weight="balanced", max_iter=1000)
            model = make_pipeline(StandardScaler(), PCA(components, random_state=seed), StandardScaler(), linear)
        p = cross_val_predict(model, features, labels, cv=folds, method="predict_proba")
    return pd.DataFrame(p, index=labels.index, columns=sorted(per_label.index))


def suspected(features: np.ndarray, table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Rank images by how likely their label is wrong: confident learning, Northcutt et al. 2021, arXiv:1911.00068.

    A label is suspected where the held-out image gets another one with at least the probability that images of that
    other label get on average. Within the list, and after it, images come in the order of the margin: the probability
    of their best other label less that of their own. A generator that the network cannot tell from photos fills the
    list with good labels. Features (N, D) are of one stage, or of both side by side; columns path, label, split, group,
    suggested, p_label, p_suggested, margin, suspected.
    """
    p = held_out_probabilities(features, table["label"], table["group"], seed)
    labels, own = p.columns.get_indexer(pd.Index(table["label"])), p.to_numpy()
    usual = np.array([own[labels == k, k].mean() for k in range(own.shape[1])])
    others = np.where(np.arange(own.shape[1]) == labels[:, None], -1, own)  # without the label that each has
    ranking = table[["path", "label", "split", "group"]].assign(
        suggested=p.columns[others.argmax(1)], p_label=own[np.arange(len(p)), labels], p_suggested=others.max(1)
    )
    ranking["margin"] = ranking["p_suggested"] - ranking["p_label"]
    ranking["suspected"] = (ranking["margin"] > 0) & np.asarray((others >= usual).any(axis=1))
    return ranking.sort_values(["suspected", "margin"], ascending=False, ignore_index=True, kind="stable")
