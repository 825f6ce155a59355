"""The ablation of stage 1: the detector trained again with one part left out or changed at a time."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd

from dfd import evaluation, scores
from dfd.config import Stage1
from dfd.inference import CHECKPOINTS, Stage
from dfd.training import fit_stage1

QUALITIES = (95, 75, 50)  # Pillow qualities at which every variant is compared, beside the images as they are


def variants(cfg: Stage1) -> dict[str, Stage1]:
    """The config under several names: as it is, and with one part left out or changed.

    Each variant that trains anew has its own folder below `ablation` in the run folder.
    """
    changes: dict[str, dict] = {}
    if cfg.adversarial:
        changes["without adversarial part"] = {"adversarial": False}
        if cfg.perceptual_weight:
            changes["without perceptual part"] = {"perceptual_weight": 0.0}
    if cfg.degrade:
        changes["without degradation"] = {"degrade": False}
    for name in ("rgb", "highpass", "npr"):
        if name != cfg.representation:
            changes[f"{name} instead of {cfg.representation}"] = {"representation": name}
    folder = Path(cfg.out) / "ablation"
    return {"as configured": cfg} | {
        name: dataclasses.replace(cfg, out=str(folder / name.replace(" ", "_")), **change)
        for name, change in changes.items()
    }


def run(table: pd.DataFrame, cfg: Stage1) -> pd.DataFrame:
    """Train and score every variant; what an earlier call finished is kept. Writes `ablation.csv` in the run folder.

    Args:
        table: the manifest, with its root in attrs.
        cfg: the detector that the others are compared with; it may be trained already.

    Returns:
        One row per variant and degradation, measured on the test split: variant, degradation, auc, auc_low, auc_high,
        accuracy at the threshold fitted on that variant's validation images with its interval, and the AUC of each
        generator against all photos.
    """
    found = []
    for name, variant in variants(cfg).items():
        print(f"ablation: {name}")
        rows = _scored(table, variant, Path(cfg.out) / "ablation" / f"{name.replace(' ', '_')}.parquet")
        found.append(_measured(rows, name, cfg.seed))
        pd.concat(found).to_csv(Path(cfg.out) / "ablation.csv", index=False)
    return pd.concat(found, ignore_index=True)


def _scored(table: pd.DataFrame, cfg: Stage1, path: Path) -> pd.DataFrame:
    """The test split's scores of one variant at every level; kept while the training has the same key."""
    fit_stage1(table, cfg)
    stage = Stage.load(Path(cfg.out) / CHECKPOINTS["stage1"])
    if path.exists() and (kept := pd.read_parquet(path))["key"].eq(stage.key).all():
        return kept
    scores.calibrate(stage, scores.score(stage, table[table["split"] == "val"]), cfg.out)
    rows = scores.jpeg_sweep(stage, table[table["split"] == "test"], QUALITIES).assign(key=stage.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(path, index=False)
    return rows


def _measured(rows: pd.DataFrame, name: str, seed: int) -> pd.DataFrame:
    found = []
    for (degradation, level), part in rows.groupby(["degradation", "level"], sort=False):
        metrics = evaluation.stage1_metrics(part, 1.0, seed)
        row = {"variant": name, "degradation": "as it is" if degradation == "none" else f"JPEG {level:.0f}"}
        for short, long in (("auc", "auc"), ("accuracy", "accuracy_at_threshold")):
            three = metrics[long]
            row |= {short: three["value"], f"{short}_low": three["low"], f"{short}_high": three["high"]}
        for label in sorted(set(part["label"]) - {"RealPhotos"}):
            pair = part[part["label"].isin([label, "RealPhotos"])]
            row[f"auc {label}"] = evaluation.auc(pair["label"] == label, pair["logit_fake"])
        found.append(row)
    return pd.DataFrame(found)
