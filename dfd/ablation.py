"""The ablations: a stage trained again with one part left out or changed at a time, and beside its baselines."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from dfd import baselines, evaluation, fingerprint, openset, parallel, scores
from dfd.atomic import whole
from dfd.bootstrap import REPLICATES
from dfd.config import Stage1, Stage2
from dfd.stage import CHECKPOINTS, Stage
from dfd.training import fit_stage1, fit_stage2

QUALITIES = (95, 75, 50)  # Pillow qualities at which every variant is compared, beside the images as they are
SPECTRUM = "baseline: linear on the spectrum"


def variants(cfg: Stage1 | Stage2) -> dict[str, Stage1 | Stage2]:
    """The config under several names: as it is, and with one part left out or changed.

    Each variant that trains anew has its own folder below `ablation_<stage>` in the run folder.
    """
    changes = _changes1(cfg) if isinstance(cfg, Stage1) else _changes2(cfg)
    folder = _folder(cfg)
    return {"as configured": cfg} | {
        name: dataclasses.replace(cfg, out=str(folder / _file(name)), **change) for name, change in changes.items()
    }


def _changes1(cfg: Stage1) -> dict[str, dict]:
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
    return changes


def _changes2(cfg: Stage2) -> dict[str, dict]:
    changes: dict[str, dict] = {}
    if cfg.extractor == "unet":
        for name in ("carried", "adversarial", "perceptual", "consistency"):
            if getattr(cfg, f"{name}_weight"):
                changes[f"without {name} loss"] = {f"{name}_weight": 0.0}
        changes["source loss alone"] = {
            f"{name}_weight": 0.0 for name in ("carried", "adversarial", "perceptual", "consistency")
        }
    if cfg.degrade:
        changes["without degradation"] = {"degrade": False}
    for name in ("highpass", "rgb"):
        if name != cfg.extractor:
            changes[f"baseline: EfficientNet on {name}"] = {"extractor": name}
    return changes


def _save(found: list[pd.DataFrame], path: Path) -> None:
    with whole(path) as draft:
        pd.concat(found).to_csv(draft, index=False)


def _stage(cfg: Stage1 | Stage2) -> str:
    return "stage1" if isinstance(cfg, Stage1) else "stage2"


def _folder(cfg: Stage1 | Stage2) -> Path:
    return Path(cfg.out) / f"ablation_{_stage(cfg)}"


def _file(name: str) -> str:
    return name.replace(": ", "_").replace(" ", "_")


def run(table: pd.DataFrame, cfg: Stage1 | Stage2) -> pd.DataFrame:
    """Train and score every variant; what an earlier call finished is kept. Writes `ablation_<stage>.csv`.

    Args:
        table: the manifest, with its root in attrs.
        cfg: the stage that the others are compared with; it may be trained already.

    Returns:
        One row per variant and degradation, measured on the test split: variant, degradation, and with an interval
        each: for stage 1 auc, and accuracy at the threshold fitted on that variant's validation images; for stage 2
        accuracy, balanced accuracy, and the recall of each generator. Stage 1 also has each generator's AUC against
        all photos, without one. Of several processes (`dfd.parallel`) only the main one scores, and has any rows.
    """
    found = []
    for name, variant in variants(cfg).items():
        print(f"ablation: {name}")
        _fit(table, variant)
        if not parallel.is_main():
            continue
        rows = _scored(table, variant, _folder(cfg) / f"{_file(name)}.parquet")
        found.append(_measured(rows, name, cfg))
        _save(found, Path(cfg.out) / f"ablation_{_stage(cfg)}.csv")
    if isinstance(cfg, Stage2) and parallel.is_main():
        print(f"ablation: {SPECTRUM}")
        test = table[table["is_fake"] & (table["split"] == "test")]
        levels = [("none", 0.0), *(("jpeg", float(quality)) for quality in QUALITIES)]
        rows = baselines.score_spectrum(baselines.fit_spectrum(table, cfg), test, cfg, levels)
        found.append(_measured(rows, SPECTRUM, cfg))
        _save(found, Path(cfg.out) / f"ablation_{_stage(cfg)}.csv")
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def leave_out(table: pd.DataFrame, cfg: Stage2) -> pd.DataFrame:
    """Train stage 2 without each generator in turn, and see which score finds its test images unknown.

    Args:
        table: the manifest, with its root in attrs.
        cfg: the parameters; each training has its own folder below `left_out` in the run folder.

    Returns:
        One row per generator and score, as of `openset.summary`, against test images of the other generators, and
        auroc_val, against validation images of theirs, whose sources were in training; left_out; and accepted: the
        share of its images that the threshold of those validation images does not call unknown. Also in `left_out.csv`.
        Of several processes (`dfd.parallel`) only the main one has any rows.

    Raises:
        ValueError: fewer than three generators, for two must be left to tell apart.
    """
    generators = sorted(table.loc[table["is_fake"], "label"].unique())
    if len(generators) < 3:
        raise ValueError(f"leave_out needs at least three generators, the data has {', '.join(generators) or 'none'}")
    found = []
    for name in generators:
        print(f"left out: {name}")
        known = table[table["label"] != name]
        one = dataclasses.replace(cfg, out=str(Path(cfg.out) / "left_out" / name))
        fit_stage2(known, one)
        if not parallel.is_main():
            continue
        stage = Stage.load(Path(one.out) / CHECKPOINTS["stage2"])
        fakes = known[known["is_fake"]]
        near = openset.Gaussians.fit(*_centre_features(stage, fakes[fakes["split"] == "train"]))
        val = _with_distances(stage, near, fakes[fakes["split"] == "val"])
        scores.calibrate(stage, val, one.out, cfg.coverage, cfg.accept)
        sides = [table["label"].eq(name), table["is_fake"] & table["label"].ne(name)]
        tests = [_with_distances(stage, near, table[side & table["split"].eq("test")]) for side in sides]
        rows = openset.summary(tests[1], tests[0], stage.temperature, cfg.seed, replicates=REPLICATES)
        near_by = openset.summary(val, tests[0], stage.temperature, cfg.seed, replicates=REPLICATES)
        for column in ("auroc", "auroc_low", "auroc_high"):
            rows[column.replace("auroc", "auroc_val")] = near_by[column]
        limits = {
            score: openset.fit_threshold(values.to_numpy(), cfg.accept)
            for score, values in openset.unknown_scores(val, stage.temperature).items()
        }
        strange = openset.unknown_scores(tests[0], stage.temperature)
        rows["accepted"] = [float((strange[score] <= limits[score]).mean()) for score in rows["score"]]
        found.append(rows.assign(left_out=name))
        _save(found, Path(cfg.out) / "left_out.csv")
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _with_distances(stage: Stage, near: openset.Gaussians, rows: pd.DataFrame) -> pd.DataFrame:
    """Score table of the rows, with the columns distance and outside of their centre crops."""
    features, _ = _centre_features(stage, rows)
    return scores.score(stage, rows).assign(distance=near.distance(features), outside=near.outside(features))


def _centre_features(stage: Stage, rows: pd.DataFrame) -> tuple[np.ndarray, pd.Series]:
    crops, chosen = fingerprint.crops_of(stage, rows, len(rows))
    return fingerprint.features(stage, crops), chosen["label"]


def _fit(table: pd.DataFrame, cfg: Stage1 | Stage2) -> None:
    (fit_stage1 if _stage(cfg) == "stage1" else fit_stage2)(table, cfg)


def _scored(table: pd.DataFrame, cfg: Stage1 | Stage2, path: Path) -> pd.DataFrame:
    """The test split's scores of one trained variant at every level; kept while the training has the same key."""
    stage = _stage(cfg)
    trained = Stage.load(Path(cfg.out) / CHECKPOINTS[stage])
    if path.exists() and (kept := pd.read_parquet(path))["key"].eq(trained.key).all():
        return kept
    rows = table if stage == "stage1" else table[table["is_fake"]]
    scores.calibrate(trained, scores.score(trained, rows[rows["split"] == "val"]), cfg.out)
    swept = scores.jpeg_sweep(trained, rows[rows["split"] == "test"], QUALITIES).assign(key=trained.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as draft:
        swept.to_parquet(draft, index=False)
    return swept


def _measured(rows: pd.DataFrame, name: str, cfg: Stage1 | Stage2) -> pd.DataFrame:
    found = []
    for (degradation, level), part in rows.groupby(["degradation", "level"], sort=False):
        row = {"variant": name, "degradation": "as it is" if degradation == "none" else f"JPEG {level:.0f}"}
        for short, three in _values(part, cfg).items():
            row |= {short: three["value"], f"{short}_low": three["low"], f"{short}_high": three["high"]}
        found.append(row | (_auc_by_generator(part) if isinstance(cfg, Stage1) else {}))
    return pd.DataFrame(found)


def _values(part: pd.DataFrame, cfg: Stage1 | Stage2) -> dict[str, dict]:
    if isinstance(cfg, Stage2):
        recalls = evaluation.stage2_by_generator(part, cfg.seed)
        named = {f"recall {label}": one["recall"] for label, one in recalls.items()}
        return evaluation.stage2_metrics(part, 1.0, cfg.seed, ("accuracy", "balanced_accuracy")) | named
    metrics = evaluation.stage1_metrics(part, 1.0, cfg.seed, ("auc", "accuracy_at_threshold"))
    return {"auc": metrics["auc"], "accuracy": metrics["accuracy_at_threshold"]}


def _auc_by_generator(part: pd.DataFrame) -> dict[str, float]:
    pairs = {name: part["label"].isin([name, "RealPhotos"]) for name in sorted(set(part["label"]) - {"RealPhotos"})}
    return {
        f"auc {name}": evaluation.auc(part["label"][pair] == name, part["logit_fake"][pair])
        for name, pair in pairs.items()
    }
