"""Is the data solved without a pixel, are its labels right, and does a detector answer by how a file was treated?"""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from sklearn import decomposition, ensemble, linear_model, model_selection
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dfd.core import runs, template
from dfd.data.crops import equalise
from dfd.degrade import registry
from dfd.evaluate import metrics, robustness
from dfd.inference.decide import true_class
from dfd.inference.stage import BATCH, Stage, center_crops, extract_features

CODES = {"format": "JPEG PNG WEBP BMP TIFF GIF AVIF HEIF".split(), "subsampling": "4:4:4 4:2:2 4:2:0 other".split()}
FEATURES = ("format", "width", "height", "aspect", "jpeg_quality", "subsampling", "bytes_per_pixel")
WARN_ABOVE = 0.6  # lower end of the AUC's interval from which the reader is warned
RESAMPLES = 200  # bootstrap draws: enough for a warning
COMPONENTS = 64  # principal components that labels are told from, at most
FOLDS = 5
MARGIN = 0.1  # of AUC, that the whole interval must pass before a detector is named


def format_audit(table: pd.DataFrame, stage: str, seed: int = 0) -> dict[str, Any]:
    """Try to tell a stage's classes apart from file metadata alone, after Grommelt et al. 2024, arXiv:2403.17608.

    Each image is scored by a random forest that saw none of its group. Bytes per pixel also grow with detail, so that
    generators of other subjects may differ in it honestly. Of sets of 180 like files 1 in 25 was warned of by chance.
    Gives auc: value, low and high (95 %, over groups; stage 2: mean of one class against the rest), None with fewer
    than two classes of two groups each; n: images used; features: importances, largest first; warning: text or None.
    """
    rows = table if stage == "stage1" else table[table["is_fake"]]
    truth = rows["label"] if stage == "stage2" else rows["is_fake"].map({False: "real", True: "fake"})
    usable = rows["group"].groupby(truth).transform("nunique") >= 2
    rows, truth = rows[usable], truth[usable]
    if truth.nunique() < 2:
        text = f"the format audit of {stage} needs at least two classes with two groups each"
        return {"auc": dict.fromkeys(("value", "low", "high")), "n": len(rows), "features": {}, "warning": text}

    forest = ensemble.RandomForestClassifier(50, min_samples_leaf=5, class_weight="balanced", random_state=seed)
    values, warning = metadata(rows), None
    p = held_out_probabilities(values, truth, rows["group"], seed, forest)

    def mean_auc(weights: np.ndarray, labels: np.ndarray) -> np.ndarray:
        names = map(str, p if stage == "stage2" else ["fake"])
        return np.mean([metrics.weighted_auc(weights, labels == name, p[name].to_numpy()) for name in names], axis=0)

    auc = partial(mean_auc, labels=truth.to_numpy())
    auc = metrics.bootstrap_all(rows["group"], {"auc": auc}, seed, RESAMPLES)["auc"]
    importance = forest.fit(values, pd.factorize(truth, sort=True)[0]).feature_importances_.round(4).tolist()
    shares = dict(sorted(zip(FEATURES, importance, strict=True), key=lambda item: -item[1]))
    if auc["low"] is not None and auc["low"] > WARN_ABOVE:
        warning = str(template("audit.txt.j2").module.shortcut(stage, auc, WARN_ABOVE, shares))
    return {"auc": auc, "n": len(rows), "features": shares, "warning": warning}


def metadata(table: pd.DataFrame) -> np.ndarray:
    """What is known of each file without its pixels, (N, 7) in the order of FEATURES; what is missing is -1."""
    area = table["width"] * table["height"]
    columns = {name: pd.Categorical(table[name], values).codes for name, values in CODES.items()}
    values = table.assign(**columns, aspect=table["width"] / table["height"], bytes_per_pixel=table["bytes"] / area)
    return values[list(FEATURES)].astype(float).fillna(-1).to_numpy()


def image_features(stages: Sequence[Stage], table: pd.DataFrame) -> np.ndarray:
    """What the last layers of the stages get of one centre crop per image, side by side, (N, D) float32."""
    parts = []
    for start in runs.bar(range(0, len(table), BATCH), desc="features", unit="batch"):  # an image is read once
        paths = table["path"].iloc[start : start + BATCH]
        crops = {size: center_crops(table, paths, size) for size in {stage.crop_size for stage in stages}}
        features = [extract_features(s, equalise(crops[s.crop_size], s.equalise_quality)) for s in stages]
        parts.append(np.concatenate(features, axis=1))
    return np.concatenate(parts)


def held_out_probabilities(features: np.ndarray, labels: pd.Series, groups: pd.Series, seed: int = 0,
        model: Any = None) -> pd.DataFrame:  # fmt: skip
    """Probability of each label, (N, labels), from features (N, D), by models that saw no image of the same group."""
    if len(per_label := groups.groupby(labels).nunique()) < 2 or per_label.min() < 2:
        raise runs.TooFew(f"needs two labels, each in at least two groups; groups per label: {per_label.to_dict()}")
    splitter = model_selection.StratifiedGroupKFold(int(min(FOLDS, per_label.min())), shuffle=True, random_state=seed)
    with warnings.catch_warnings(action="ignore"):  # a label with fewer images than folds, or in none of a fold's
        folds = list(splitter.split(features, labels, groups))
        if model is None:  # a logistic regression on principal components
            components = min(COMPONENTS, features.shape[1], min(len(train) for train, _ in folds) - 1)
            linear = linear_model.LogisticRegression(C=0.05, class_weight="balanced", max_iter=1000)
            pca = decomposition.PCA(components, random_state=seed)
            model = make_pipeline(StandardScaler(), pca, StandardScaler(), linear)
        p = model_selection.cross_val_predict(model, features, labels, cv=folds, method="predict_proba")
    return pd.DataFrame(p, index=labels.index, columns=sorted(per_label.index))


def suspected(features: np.ndarray, table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Rank images by how likely their label is wrong: confident learning, Northcutt et al. 2021, arXiv:1911.00068.

    A label is suspected where the held-out image gets another one with at least the probability that images of that
    other label get on average. Within the list, and after it, images come in the order of the margin: the probability
    of their best other label less that of their own. A generator that the network cannot tell from photos fills it.
    Features (N, D); columns path, label, split, group, suggested, p_label, p_suggested, margin, suspected.
    """
    p = held_out_probabilities(features, table["label"], table["group"], seed)
    labels, own = p.columns.get_indexer(pd.Index(table["label"])), p.to_numpy()
    usual = np.array([own[labels == k, k].mean() for k in range(own.shape[1])])
    others = np.where(np.arange(own.shape[1]) == labels[:, None], -1, own)  # without the label that each has
    ranking = table[["path", "label", "split", "group"]].assign(suggested=p.columns[others.argmax(1)])
    ranking["p_label"], ranking["p_suggested"] = own[np.arange(len(p)), labels], others.max(1)
    ranking["margin"] = ranking["p_suggested"] - ranking["p_label"]
    ranking["suspected"] = (ranking["margin"] > 0) & np.asarray((others >= usual).any(axis=1))
    return ranking.sort_values(["suspected", "margin"], ascending=False, ignore_index=True, kind="stable")


def probe(scores: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Stage 1's AUC with each condition applied to photos only, to fakes only and to both: a row per condition.

    `moved`, with _low and _high, is what degrading the photos does to the AUC while the fakes are held fixed: as they
    are (photos_only minus clean), or degraded too (both minus fakes_only), whichever is larger. A condition is `named`
    where the whole 95 % interval of that lies further than MARGIN from 0. fakes_only falls with fragile traces, too.
    """
    conditions = dict(robustness.by_condition(scores))
    plain = conditions.pop(registry.AS_IT_IS)
    fake, before = true_class(plain).eq("fake").to_numpy(), plain["logit_fake"].to_numpy()
    rows = {}
    for name, part in conditions.items():
        after = part["logit_fake"].to_numpy()
        mixes = before, np.where(fake, before, after), np.where(fake, after, before), after

        def areas(weights: np.ndarray, mixes: tuple = mixes) -> np.ndarray:
            clean, photos_only, fakes_only, both = (metrics.weighted_auc(weights, fake, logits) for logits in mixes)
            return np.stack([clean, photos_only, fakes_only, both, photos_only - clean, both - fakes_only])

        values, low, high = metrics.bootstrap(plain["group"], areas, seed)
        if metrics.too_few(partial(metrics.weighted_auc, positive=fake), plain["group"].to_numpy()):
            low, high = np.full((2, len(values)), np.nan)
        larger = 4 + int(np.nan_to_num(np.abs(values[4:])).argmax())
        row = dict(zip(("clean", "photos_only", "fakes_only", "both"), values, strict=False))
        row |= {"moved": values[larger], "moved_low": low[larger], "moved_high": high[larger]}
        rows[name] = row | {"named": bool(low[larger] > MARGIN or high[larger] < -MARGIN)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("condition")


def verdict(conditions: pd.DataFrame) -> str:
    """Say in plain words what `probe` gave."""
    moved = conditions.loc[conditions["named"], "moved"].sort_values(key=abs, ascending=False)
    chains = (registry.parse(name).chain for name in moved.index)
    is_codec = np.array([all(registry.DEGRADATIONS[step].codec for step, *_ in chain) for chain in chains], dtype=bool)
    codecs, others = (list(moved[own].items()) for own in (is_codec, ~is_codec))
    tried = conditions["moved_low"].count()  # with an interval
    return str(template("audit.txt.j2").module.verdict(codecs, others, tried, MARGIN))
