"""Can the data be solved without looking at a pixel, and does a detector answer by how a file was treated?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier

from dfd.analysis.label_errors import held_out_probabilities
from dfd.degrade import registry
from dfd.evaluate import metrics
from dfd.evaluate.robustness import by_condition
from dfd.inference.decide import true_class

CODES = {"format": "JPEG PNG WEBP BMP TIFF GIF".split(), "subsampling": "4:4:4 4:2:2 4:2:0 other".split()}
FEATURES = ("format", "width", "height", "aspect", "jpeg_quality", "subsampling", "bytes_per_pixel")
QUESTIONS = {"stage1": "whether an image is fake", "stage2": "which generator made an image"}
WARN_ABOVE = 0.6  # lower end of the AUC's interval from which the reader is warned
RESAMPLES = 200  # bootstrap draws: enough for a warning
MARGIN = 0.1  # of AUC, that the whole interval must pass before a detector is named


def format_audit(table: pd.DataFrame, stage: str, seed: int = 0) -> dict[str, Any]:
    """Try to tell a stage's classes apart from file metadata alone, after Grommelt et al. 2024, arXiv:2403.17608.

    Each image is scored by a random forest that saw no image of its group. Bytes per pixel also grow with detail, so
    that generators of different subjects may differ in it honestly. On 180 images whose files are alike, 1 random set
    in 25 was warned of; larger sets are steadier.

    Gives auc: value, low and high (95 %, over groups; stage 2: mean of one class against the rest), None with fewer
    than two classes of at least two groups each; n: images used; features: share of the importance by name, largest
    first; warning: text or None.
    """
    rows = (table if stage == "stage1" else table[table["is_fake"]]).reset_index(drop=True)
    truth = rows["label"] if stage == "stage2" else rows["is_fake"].map({False: "real", True: "fake"})
    groups = rows["group"].groupby(truth).nunique()
    usable = truth.isin(groups.index[groups >= 2])
    rows, truth = rows[usable], truth[usable]
    if truth.nunique() < 2:
        text = "the format audit needs at least two classes with two groups each"
        return {"auc": dict.fromkeys(("value", "low", "high")), "n": len(rows), "features": {}, "warning": text}

    forest = RandomForestClassifier(50, min_samples_leaf=5, class_weight="balanced", random_state=seed)
    values, warning = metadata(rows), None
    p = held_out_probabilities(values, truth, rows["group"], seed, forest)
    right = {name: truth.eq(name).to_numpy() for name in map(str, p if stage == "stage2" else ["fake"])}

    def mean_auc(weights: np.ndarray) -> np.ndarray:
        return np.mean([metrics.weighted_auc(weights, x, p[name].to_numpy()) for name, x in right.items()], axis=0)

    auc = metrics.bootstrap_all(rows["group"], {"auc": mean_auc}, seed, RESAMPLES)["auc"]
    importance = forest.fit(values, truth).feature_importances_.round(4).tolist()
    shares = dict(sorted(zip(FEATURES, importance, strict=True), key=lambda item: -item[1]))
    if auc["low"] is not None and auc["low"] > WARN_ABOVE:
        first, second, *_ = shares
        warning = (
            f"File metadata alone tells {QUESTIONS[stage]}: AUC {auc['value']:.3f} (95 % interval {auc['low']:.3f} to "
            f"{auc['high']:.3f}; a warning is given when it lies above {WARN_ABOVE}), mostly from {first} and {second}"
            ". A network can learn the same shortcut instead of the generator's traces: keep equalise on, and do not "
            "trust scores on images as they are."
        )
    return {"auc": auc, "n": len(rows), "features": shares, "warning": warning}


def metadata(table: pd.DataFrame) -> np.ndarray:
    """What is known of each file without its pixels, (N, 7) in the order of FEATURES; what is missing is -1."""
    area = table["width"] * table["height"]
    columns = {name: pd.Categorical(table[name], values).codes for name, values in CODES.items()}
    values = table.assign(**columns, aspect=table["width"] / table["height"], bytes_per_pixel=table["bytes"] / area)
    return values[list(FEATURES)].astype(float).fillna(-1).to_numpy()


def probe(scores: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Stage 1's AUC with each condition applied to photos only, to fakes only and to both: a row per condition.

    `moved`, with _low and _high, is what degrading the photos does to the AUC while the fakes are held fixed: as they
    are (photos_only minus clean), or degraded too (both minus fakes_only), whichever is larger. A condition is `named`
    where the whole 95 % interval of that lies further than MARGIN from 0. fakes_only alone names nobody: it falls for a
    detector that has learnt fragile traces as well as for one that has learnt a codec.
    """
    (_, plain), *conditions = by_condition(scores)
    fake, before = true_class(plain).eq("fake").to_numpy(), plain["logit_fake"].to_numpy()
    rows = {}
    for name, part in conditions:
        after = part["logit_fake"].to_numpy()
        mixes = before, np.where(fake, before, after), np.where(fake, after, before), after

        def areas(weights: np.ndarray, mixes: tuple = mixes) -> np.ndarray:
            clean, photos_only, fakes_only, both = (metrics.weighted_auc(weights, fake, logits) for logits in mixes)
            return np.stack([clean, photos_only, fakes_only, both, photos_only - clean, both - fakes_only])

        values, low, high = metrics.bootstrap(plain["group"], areas, seed)
        larger = 4 + int(np.nan_to_num(np.abs(values[4:])).argmax())
        row = dict(zip(("clean", "photos_only", "fakes_only", "both"), values, strict=False))
        row |= {"moved": values[larger], "moved_low": low[larger], "moved_high": high[larger]}
        rows[name] = row | {"named": bool(low[larger] > MARGIN or high[larger] < -MARGIN)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("condition")


def verdict(conditions: pd.DataFrame) -> str:
    """Say in plain words what `probe` gave."""
    named = conditions[conditions["named"]]
    rule = f"degrading the photos alone moves the AUC by more than {MARGIN:g}, over its whole 95 % interval"
    if named.empty:
        start = f"Not named: under none of the {len(conditions)} conditions does the answer move"
        return f"{start} with the treatment of the photos (it would be where {rule})."
    is_codec = np.array([registry.DEGRADATIONS[registry.last_operator(name)].codec for name in named.index])
    texts = []
    if is_codec.any():
        texts.append(f"Named: this detector answers by the codec. It moves with {_worst(named[is_codec])}.")
    if not is_codec.all():
        start = "It also" if texts else "Named: this detector's answer"
        texts.append(f"{start} moves with how an image was processed: {_worst(named[~is_codec])}.")
    return " ".join([*texts, f"The rule: {rule}."])


def _worst(rows: pd.DataFrame) -> str:
    """The three conditions that move most, in words, and how many more there are."""
    moved = rows["moved"].sort_values(key=abs, ascending=False)
    shown = ", ".join(f"{name} (AUC {value:+.2f})" for name, value in moved[:3].items())
    return f"{shown} and {len(moved) - 3} more" if len(moved) > 3 else shown
