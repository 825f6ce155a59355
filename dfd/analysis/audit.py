"""Can the data be solved without looking at a pixel?"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy.special import softmax
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedGroupKFold

from dfd.core.images import load_rgb
from dfd.core.runs import bar
from dfd.degrade import registry
from dfd.evaluate import metrics
from dfd.evaluate.robustness import by_condition
from dfd.inference.decide import logit_columns, true_class
from dfd.inference.stage import Stage

CODES = {
    "format": ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"),
    "subsampling": ("4:4:4", "4:2:2", "4:2:0", "other"),
}
FEATURES = ("format", "width", "height", "aspect", "jpeg_quality", "subsampling", "bytes_per_pixel")
WARN_ABOVE = 0.6  # lower end of the AUC's interval from which the reader is warned
FOLDS = 5
REPLICATES = 200  # bootstrap draws: enough for a warning


def format_audit(table: pd.DataFrame, stage: str, seed: int = 0) -> dict[str, Any]:
    """Try to tell the classes apart from file metadata alone, after Grommelt et al. 2024, arXiv:2403.17608.

    A random forest sees format, size, aspect, estimated JPEG quality, chroma subsampling and bytes per pixel. Each
    image is scored by a forest that saw no image of its group. An AUC near 0.5 is good news: the files give nothing
    away. Bytes per pixel also grow with detail, so that generators of different subjects may differ in it honestly.
    On 180 images whose files are alike, 1 random set in 25 was warned of for each stage; larger sets are steadier.

    Args:
        table: a manifest.
        stage: "stage1", real against fake; or "stage2", which generator, fakes only.
        seed: of folds, forest and bootstrap.

    Returns:
        auc: value, low and high (95 % bootstrap over groups; stage 2: mean of one class against the rest);
        n: images used; features: share of the importance by name, largest first; warning: text or None.
        With fewer than two classes of at least two groups each, value, low and high are None, and warning says so.

    Raises:
        ValueError: another stage.
    """
    if stage not in ("stage1", "stage2"):
        raise ValueError(f"stage must be stage1 or stage2, got {stage!r}")
    rows = table if stage == "stage1" else table[table.is_fake]
    rows = rows.reset_index(drop=True)
    truth = rows.is_fake.map({False: "real", True: "fake"}) if stage == "stage1" else rows.label
    groups = rows.group.groupby(truth).nunique()
    usable = truth.isin(groups.index[groups >= 2])
    rows, truth = rows[usable], truth[usable]
    if truth.nunique() < 2:
        text = "the format audit needs at least two classes with two groups each"
        return {"auc": dict.fromkeys(("value", "low", "high")), "n": len(rows), "features": {}, "warning": text}

    features = metadata(rows)
    forest = RandomForestClassifier(50, min_samples_leaf=5, class_weight="balanced", random_state=seed)
    splitter = StratifiedGroupKFold(int(min(FOLDS, groups[groups >= 2].min())), shuffle=True, random_state=seed)
    scores = pd.DataFrame(0.0, index=rows.index, columns=sorted(truth.unique()))
    importance = np.zeros(len(FEATURES))
    with warnings.catch_warnings(action="ignore"):  # a class with fewer images than folds
        folds = list(splitter.split(features, truth, rows.group))
    for train, test in folds:
        forest.fit(features[train], truth.iloc[train])
        scores.loc[rows.index[test], forest.classes_] = forest.predict_proba(features[test])
        importance += forest.feature_importances_ / len(folds)

    asked = list(scores) if stage == "stage2" else ["fake"]

    def one_against_rest(drawn: Any) -> float:
        return float(np.mean([metrics.auc(drawn.truth == name, getattr(drawn, f"p_{name}")) for name in asked]))

    scored = scores.add_prefix("p_").assign(truth=truth, group=rows.group)
    auc = metrics.intervals(scored, {"auc": one_against_rest}, seed, REPLICATES)["auc"]
    shares = dict(sorted(zip(FEATURES, importance.round(4).tolist(), strict=True), key=lambda item: -item[1]))
    return {"auc": auc, "n": len(rows), "features": shares, "warning": _warning(auc, shares, stage)}


def metadata(table: pd.DataFrame) -> np.ndarray:
    """Give what is known of each file without its pixels, (N, 7) in the order of FEATURES; what is missing is -1."""
    columns = {name: pd.Categorical(table[name], list(values)).codes for name, values in CODES.items()}
    columns["aspect"] = table.width / table.height
    columns["bytes_per_pixel"] = table.bytes / (table.width * table.height)
    columns |= {name: table[name] for name in ("width", "height", "jpeg_quality")}
    return np.stack([np.nan_to_num(np.asarray(columns[name], dtype=float), nan=-1) for name in FEATURES], axis=1)


def _warning(auc: dict[str, float | None], shares: dict[str, float], stage: str) -> str | None:
    """Put a leak into plain words, or give None where there is none."""
    if auc["low"] is None or auc["low"] <= WARN_ABOVE:
        return None
    question = {"stage1": "whether an image is fake", "stage2": "which generator made an image"}[stage]
    first, second = list(shares)[:2]
    return (
        f"File metadata alone tells {question}: AUC {auc['value']:.3f} (95 % interval {auc['low']:.3f} to "
        f"{auc['high']:.3f}; a warning is given when it lies above {WARN_ABOVE}), mostly from {first} and {second}. A "
        "network can learn the same shortcut instead of the generator's traces: keep equalise on, and do not trust "
        "scores on images as they are."
    )


MARGIN = 0.1  # of AUC, that the whole interval must pass before a detector is named
TREES = 100  # of the forests that judge by metadata or thumbnails
SIDE = 8  # pixels, of a thumbnail


def probe(scores: pd.DataFrame, seed: int = 0, margin: float = MARGIN) -> pd.DataFrame:
    """Stage 1's AUC with each condition applied to photos only, to fakes only and to both.

    `moved` is what degrading the photos does to the AUC while the fakes are held fixed: as they are (photos_only minus
    clean), or degraded too (both minus fakes_only), whichever is larger. A condition is named where the whole 95 %
    interval of that lies further than `margin` from 0. fakes_only alone names nobody: it falls for a detector that has
    learnt fragile traces as well as for one that has learnt a codec. A photo that is a JPEG already does not change
    much by another; there the conditions that remove the traces of JPEG (resample, rescale, blur) say more.

    Args:
        scores: stage 1's rows of one split, under each condition and as they are.
        seed: of the bootstrap over groups.
        margin: in units of AUC.

    Returns:
        One row per condition: clean, photos_only, fakes_only, both (AUC), moved with its _low and _high, named.
    """
    (_, plain), *others = by_condition(scores)
    fake = true_class(plain).eq("fake").to_numpy()
    draws, rows = metrics.draws(plain["group"], seed), {}
    before = plain["logit_fake"].to_numpy()
    clean = metrics.weighted_auc(draws.weights, fake, before)
    for name, part in others:
        after = part["logit_fake"].to_numpy()
        photos, fakes = np.where(fake, before, after), np.where(fake, after, before)
        areas = [metrics.weighted_auc(draws.weights, fake, one) for one in (photos, fakes, after)]
        moves = [draws.interval(areas[0] - clean), draws.interval(areas[2] - areas[1])]
        moved = max(moves, key=lambda one: np.nan_to_num(abs(one["value"])))
        row = dict(zip(("clean", "photos_only", "fakes_only", "both"), (clean[0], *(x[0] for x in areas)), strict=True))
        row |= {"moved": moved["value"], "moved_low": moved["low"], "moved_high": moved["high"]}
        rows[name] = row | {"named": bool(moved["low"] > margin or moved["high"] < -margin)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("condition")


def verdict(found: pd.DataFrame, margin: float = MARGIN) -> str:
    """What the probe found, in plain words; see probe."""
    named = found[found["named"]]
    rule = f"degrading the photos alone moves the AUC by more than {margin:g}, over its whole 95 % interval"
    if named.empty:
        return (
            f"Not named: under none of the {len(found)} conditions does the answer move with the treatment of the "
            f"photos (it would be where {rule})."
        )
    is_codec = [registry.DEGRADATIONS[registry.last_operator(one)].codec for one in named.index]
    codecs, others = named[is_codec], named[~np.array(is_codec)]
    texts = []
    if len(codecs):
        texts.append(f"Named: this detector answers by the codec. It moves with {_worst(codecs)}.")
    if len(others):
        also = "It also" if len(codecs) else "Named: this detector's answer"
        texts.append(f"{also} moves with how an image was processed: {_worst(others)}.")
    return " ".join([*texts, f"The rule: {rule}."])


def _worst(rows: pd.DataFrame) -> str:
    """The conditions that move most, in words: three of them and how many more."""
    order = rows["moved"].abs().sort_values(ascending=False).index
    shown = [f"{name} (AUC {rows.at[name, 'moved']:+.2f})" for name in order[:3]]
    return ", ".join(shown) + (f" and {len(order) - 3} more" if len(order) > 3 else "")


def thumbnails(table: pd.DataFrame) -> np.ndarray:
    """Every image shrunk to 8 x 8 pixels, whatever its shape, (N, 192) in [0, 255]: its colours, and no trace.

    Args:
        table: rows of the manifest, with its root in attrs.
    """
    root = Path(table.attrs["root"])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda path: _thumbnail(root / path), table["path"])
        return np.stack(list(bar(found, total=len(table), desc="thumbnails", unit="image")))


def _thumbnail(path: Path) -> np.ndarray:
    return np.asarray(load_rgb(path).resize((SIDE, SIDE), Image.Resampling.BOX)).ravel()


def shortcuts(
    table: pd.DataFrame, scores: Mapping[str, pd.DataFrame], stages: Mapping[str, Stage], seed: int = 0
) -> pd.DataFrame:
    """What file metadata alone, or an 8 x 8 thumbnail alone, would have scored, beside the model.

    Random forests learn on the training split and are tested on the same images as the model.

    Args:
        table: the manifest, with its root in attrs.
        scores: stage -> its rows of one split, each image once: the images as they are.
        stages: stage -> what scored them; the temperature is read.
        seed: of forests and bootstrap.

    Returns:
        A row per stage and classifier: value, low, high of the AUC (stage 2: mean of one class against the rest), and
        images.
    """
    wanted = table[
        table["split"].eq("train") | table["path"].isin(set().union(*(one["path"] for one in scores.values())))
    ]
    features = {"metadata only": metadata(wanted), f"resized to {SIDE} × {SIDE}": thumbnails(wanted)}
    place = pd.Series(range(len(wanted)), index=wanted["path"])
    found = []
    for name, rows in scores.items():
        train = wanted[wanted["split"].eq("train") & (wanted["is_fake"] | (name == "stage1"))]
        truth, draws = true_class(rows).to_numpy(), metrics.draws(rows["group"], seed)
        labels = np.where(train["is_fake"], "fake", "real") if name == "stage1" else train["label"].to_numpy()
        logits = rows[logit_columns(rows)].to_numpy(float)
        classes = [column.removeprefix("logit_") for column in logit_columns(rows)]
        answers = {"the model": (classes, softmax(logits / stages[name].temperature, axis=1))}
        for kind, values in features.items():
            forest = RandomForestClassifier(TREES, min_samples_leaf=3, class_weight="balanced", random_state=seed)
            forest.fit(values[place[train["path"]]], labels)
            answers[kind] = list(forest.classes_), forest.predict_proba(values[place[rows["path"]]])
        for kind, (known, p) in answers.items():
            asked = [i for i, one in enumerate(known) if name == "stage2" or one == "fake"]
            areas = [metrics.weighted_auc(draws.weights, truth == known[i], p[:, i]) for i in asked]
            row = {"stage": name, "classifier": kind, **draws.interval(np.mean(areas, axis=0)), "images": len(rows)}
            found.append(row)
    return pd.DataFrame(found).set_index(["stage", "classifier"])
