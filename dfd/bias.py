"""Does the answer move with the treatment of the file rather than with its maker?

The probe degrades one class only. A detector of generators may lose the traces of degraded fakes, and its score then
falls whatever is done to the photos; but a photo has no trace to lose, so that degrading the photos alone should leave
the ranking as it is. A detector that has learnt "JPEG = real", or the other way round, gives itself away there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.special import softmax
from sklearn.ensemble import RandomForestClassifier

from dfd import audit, grid, weighted
from dfd.calibration import logit_columns, true_class
from dfd.images import load_rgb
from dfd.progress import bar
from dfd.robustness import by_condition
from dfd.stage import Stage

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
    draws, rows = weighted.draws(plain["group"], seed), {}
    before = plain["logit_fake"].to_numpy()
    clean = weighted.auc(draws.weights, fake, before)
    for name, part in others:
        after = part["logit_fake"].to_numpy()
        photos, fakes = np.where(fake, before, after), np.where(fake, after, before)
        areas = [weighted.auc(draws.weights, fake, one) for one in (photos, fakes, after)]
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
    is_codec = [grid.last_operator(one) in grid.CODECS for one in named.index]
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
    features = {"metadata only": audit.metadata(wanted), f"resized to {SIDE} × {SIDE}": thumbnails(wanted)}
    place = pd.Series(range(len(wanted)), index=wanted["path"])
    found = []
    for name, rows in scores.items():
        train = wanted[wanted["split"].eq("train") & (wanted["is_fake"] | (name == "stage1"))]
        truth, draws = true_class(rows).to_numpy(), weighted.draws(rows["group"], seed)
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
            areas = [weighted.auc(draws.weights, truth == known[i], p[:, i]) for i in asked]
            row = {"stage": name, "classifier": kind, **draws.interval(np.mean(areas, axis=0)), "images": len(rows)}
            found.append(row)
    return pd.DataFrame(found).set_index(["stage", "classifier"])
