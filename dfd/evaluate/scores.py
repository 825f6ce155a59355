"""Score tables: one row per image, split and degradation; every figure and metric comes from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.special import softmax
from torch import Tensor

from dfd.config import CHECKPOINTS
from dfd.core.images import load_rgb
from dfd.core.io import atomic_write
from dfd.core.runs import bar
from dfd.degrade.registry import at_level, to_tensor
from dfd.evaluate import metrics
from dfd.inference import decide, openset
from dfd.inference.stage import Stage, update_checkpoint

# What is fitted on validation and stored beside the weights.
FITTED = (
    "temperature",
    "threshold",
    "operating_points",
    "validation",
    "ood_threshold",
    "conformal_quantile",
    "coverage",
)


def score(
    stage: Stage,
    table: pd.DataFrame,
    degradation: str = "none",
    level: float = 0.0,
    crops: int | None = None,
    mode: str | None = None,
) -> pd.DataFrame:
    """Score every image of the table at one fixed degradation.

    Prints a line where images were too large for all the crops that the mode asks for; column crops has their number.

    Args:
        stage: the trained stage; stage 2 scores fakes only, and refuses photos.
        table: rows of the manifest, with its root in attrs.
        degradation: none, or an operator of dfd.degrade.registry; it meets the whole image, before crops are cut.
        level: its level; 0 for none.
        crops, mode: as in `Stage.stream`; none takes the checkpoint's.

    Returns:
        The score table of the design: path, label, split, group, degradation, level, logit_<class> …, prediction,
        crops, crop_std; and ood_score, how far the nearest training images are, where the stage remembers some.

    Raises:
        ImageError: an image that the manifest lists can no longer be read.
    """
    if stage.stage == "stage2" and not table["is_fake"].all():
        raise ValueError("stage 2 names generators; give it the fakes only")
    root = Path(table.attrs["root"])
    what = "clean" if degradation == "none" else f"{degradation} {level:g}"
    paths = bar(table["path"], desc=f"{stage.stage} {what}", unit="image")
    scored = stage.stream(_images(root, paths, degradation, level), crops, mode)
    found = [(one.logits.tolist(), one.crops, one.spread, one.needed, one.ood_score) for one in scored]
    logits, count, spread, needed, ood_score = zip(*found, strict=True) if found else [()] * 5
    if short := [most for most, taken in zip(needed, count, strict=True) if taken < most]:
        print(f"{stage.stage} {what}: {len(short)} of {len(found)} images needed more crops, up to {max(short)}")
    logits = np.array(logits, dtype=np.float32).reshape(len(table), len(stage.classes))
    scores = table[["path", "label", "split", "group"]].reset_index(drop=True)
    scores["degradation"], scores["level"] = degradation, float(level)
    for i, name in enumerate(stage.classes):
        scores[f"logit_{name}"] = logits[:, i]
    scores["prediction"] = predictions(stage, logits)
    scores["crops"], scores["crop_std"] = list(count), list(spread)
    if stage.feature_bank is not None:
        scores["ood_score"] = list(ood_score)
    return scores


def _images(root: Path, paths: Iterable[str], degradation: str, level: float) -> Iterator[Image.Image | Tensor]:
    """PIL images as they are; (1, 3, H, W) where a degradation meets the whole image."""
    for path in paths:
        if degradation == "none":
            yield load_rgb(root / path)
        else:
            yield at_level(to_tensor(load_rgb(root / path)), degradation, level)


def calibrate(
    stage: Stage, scores: pd.DataFrame, out: str | Path, coverage: float = 0.9, accept: float = 0.95
) -> pd.DataFrame:
    """Fit on the validation rows, and store in the checkpoint: the temperature; for stage 1 thresholds, and the p_fake
    of these rows for thresholds at other rates; for stage 2 the ood_score above which a generator is unknown, and
    the quantile of the sets of possible names.

    Args:
        stage: the trained stage; its temperature and thresholds are replaced.
        scores: its score table; the clean rows of split val are fitted on.
        out: the run folder that holds the checkpoint.
        coverage: promise of stage 2's conformal sets.
        accept: share of these rows that stage 2 does not call unknown.

    Returns:
        The table with stage 1's predictions taken at the new threshold.
    """
    rows = metrics.clean(scores, "val")
    stage.temperature = decide.fit_temperature(rows)
    if stage.stage == "stage1":
        stage.operating_points = decide.operating_points(rows, stage.temperature)
        stage.threshold = stage.operating_points["balanced"]
        p, is_photo = decide.p_fake(rows, stage.temperature), rows["label"].eq("RealPhotos")
        stage.validation = {"photos": sorted(p[is_photo].tolist()), "fakes": sorted(p[~is_photo].tolist())}
    else:
        logits = rows[decide.logit_columns(rows)].to_numpy(float)
        true = rows["label"].map(stage.classes.index).to_numpy()
        p = softmax(logits / stage.temperature, axis=1)
        stage.coverage = coverage
        stage.conformal_quantile = decide.fit_conformal(p, true, coverage, rows["group"].to_numpy())
        if stage.feature_bank is not None:
            stage.ood_threshold = openset.fit_threshold(rows["ood_score"].to_numpy(float), accept)
    values = {name: getattr(stage, name) for name in FITTED}
    update_checkpoint(Path(out) / CHECKPOINTS[stage.stage], **values)
    return scores.assign(prediction=predictions(stage, scores[decide.logit_columns(scores)].to_numpy()))


def predictions(stage: Stage, logits: np.ndarray) -> np.ndarray:
    """Class names (N,) from logits (N, classes): stage 1 at its threshold, stage 2 the largest."""
    if stage.stage == "stage1":
        return np.where(
            softmax(logits.astype(float) / stage.temperature, axis=1)[:, 1] >= stage.threshold, "fake", "real"
        )
    return np.array(stage.classes)[logits.argmax(1)]


def jpeg_sweep(stage: Stage, table: pd.DataFrame, qualities: Sequence[int], crops: int | None = None) -> pd.DataFrame:
    """Score every image as it is and at each JPEG quality.

    Args:
        stage: the trained stage.
        table: rows of the manifest, with its root in attrs; stage 2 takes the fakes.
        qualities: Pillow qualities.
        crops: crops per image at most; none takes the checkpoint's number.
    """
    levels = [("none", 0.0), *(("jpeg", float(q)) for q in sorted(set(qualities), reverse=True))]
    return pd.concat([score(stage, table, name, level, crops) for name, level in levels], ignore_index=True)


def save_scores(scores: pd.DataFrame, out: str | Path, stage: str, keep: str | None = None) -> None:
    """Write a stage's score table, in place of the one that was there.

    Args:
        scores: the rows to write.
        out: the run folder.
        stage: stage1 or stage2.
        keep: a degradation whose rows in the table on disk stay; the others go, for they may be another model's.

    Raises:
        OSError: the table cannot be written; the previous one is untouched.
    """
    path = Path(out) / f"scores_{stage}.parquet"
    if keep is not None:
        kept = load_scores(out, stage)
        scores = pd.concat([kept[kept["degradation"] == keep], scores[scores["degradation"] != keep]])
    with atomic_write(path) as draft:
        scores.to_parquet(draft, index=False)


def load_scores(out: str | Path, stage: str) -> pd.DataFrame:
    """Read a stage's score table from a run folder.

    Raises:
        FileNotFoundError: the table is missing; the text says which notebook writes it.
    """
    path = Path(out) / f"scores_{stage}.parquet"
    if not path.exists():
        notebook = {"stage1": "01_stage1_real_fake", "stage2": "02_stage2_attribution"}[stage]
        raise FileNotFoundError(f"{path} is missing; run notebook {notebook} with the same `out` first")
    return pd.read_parquet(path)
