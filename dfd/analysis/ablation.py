"""The baseline that needs no network: a linear classifier on the spectrum, trained on the same views as stage 2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.utils.data import DataLoader

from dfd import config
from dfd.analysis.explain import centre, read_images
from dfd.config import CHECKPOINTS, Stage1, Stage2
from dfd.core.io import atomic_write
from dfd.core.runs import bar
from dfd.data.crops import GFDTwoViewDataset, Seeded, equalise, seeds
from dfd.degrade.registry import RandomDegrade, at_level
from dfd.evaluate import metrics as metrics_module
from dfd.evaluate import scores
from dfd.evaluate.metrics import REPLICATES
from dfd.inference import openset
from dfd.inference import stage as stage_module
from dfd.inference.stage import Stage
from dfd.train import fit_stage1, fit_stage2, is_main_process, worker_count

COMPONENTS = 64  # of the spectra that are kept; more than a few hundred images could fill would only be noise


def log_spectrum(images: Tensor) -> np.ndarray:
    """Log power spectrum of each image's mean channel, a half plane of it, for the other half is the same.

    Frank et al. 2020, arXiv:2003.08685, and Durall et al. 2020, arXiv:2003.01826, classify such spectra linearly.

    Args:
        images: (B, 3, S, S) in [0, 1].

    Returns:
        (B, S * (S // 2 + 1)), natural logarithms.
    """
    grey = images.mean(1).double()
    window = torch.hann_window(images.shape[-1], periodic=False, dtype=grey.dtype)
    spectrum = torch.fft.rfft2((grey - grey.mean((1, 2), keepdim=True)) * torch.outer(window, window))
    return (spectrum.abs().square() + 1e-6).log().flatten(1).numpy()


def fit_spectrum(table: pd.DataFrame, cfg: config.Stage2) -> Pipeline:
    """Train the linear classifier on two degraded views of every training fake, as stage 2 sees them.

    Args:
        table: the manifest, with its root in attrs.
        cfg: crop size, degradation, equalisation and seed are read.
    """
    fakes = table[table["is_fake"]]
    train, classes = fakes[fakes["split"] == "train"], sorted(fakes["label"].unique())
    degrade = RandomDegrade(smallest=cfg.crop_size) if cfg.degrade else None
    quality = cfg.equalise_quality if cfg.equalise else None
    data = GFDTwoViewDataset(train, table.attrs["root"], classes, cfg.crop_size, degrade, quality)
    draws = list(enumerate(seeds(len(data), cfg.seed)))
    loader = DataLoader(Seeded(data), cfg.batch_size, sampler=draws, num_workers=worker_count(cfg.workers))
    spectra, labels = [], []
    for batch in bar(loader, desc="spectra", unit="batch"):
        spectra += [log_spectrum(batch["view1"]), log_spectrum(batch["view2"])]
        labels += [batch["source"].numpy()] * 2
    spectra, names = np.concatenate(spectra), np.array(classes)[np.concatenate(labels)]
    linear = LogisticRegression(class_weight="balanced", max_iter=2000)
    reduce = PCA(min(COMPONENTS, len(spectra) - 1, spectra.shape[1]), random_state=cfg.seed)
    return make_pipeline(StandardScaler(), reduce, StandardScaler(), linear).fit(spectra, names)


def score_spectrum(
    classifier: Pipeline, table: pd.DataFrame, cfg: config.Stage2, levels: Sequence[tuple[str, float]]
) -> pd.DataFrame:
    """Score every fake of the table on its centre crop at each degradation, as a score table of stage 2.

    Args:
        classifier: from fit_spectrum.
        table: rows of the manifest, with its root in attrs.
        cfg: as in fit_spectrum.
        levels: (degradation, level), the level 0 for none.
    """
    quality, found = cfg.equalise_quality if cfg.equalise else None, []
    for degradation, level in levels:
        spectra = [
            log_spectrum(equalise(centre(at_level(image, degradation, level), cfg.crop_size), quality))
            for path in table["path"]
            for image in read_images(table, [path])
        ]
        logits = classifier.predict_log_proba(np.concatenate(spectra))
        rows = table[["path", "label", "split", "group"]].reset_index(drop=True)
        rows = rows.assign(degradation=degradation, level=float(level))
        for name, column in zip(classifier.classes_, logits.T, strict=True):
            rows[f"logit_{name}"] = column
        found.append(rows.assign(prediction=classifier.classes_[logits.argmax(1)], crops=1, crop_std=0.0))
    return pd.concat(found, ignore_index=True)


QUALITIES = (95, 75, 50)  # Pillow qualities at which every variant is compared, beside the images as they are
SPECTRUM = "baseline: linear on the spectrum"


def variants(cfg: Stage1 | Stage2) -> dict[str, Stage1 | Stage2]:
    """The config under several names: as it is, and with one part left out or changed.

    Each variant that trains anew has its own folder below `ablation_<stage>` in the run folder.
    """
    changes = _changes1(cfg) if isinstance(cfg, Stage1) else _changes2(cfg)
    folder = _folder(cfg)
    return {"as configured": cfg} | {
        name: cfg.model_copy(update={"out": str(folder / _file(name))} | change) for name, change in changes.items()
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
    with atomic_write(path) as draft:
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
        all photos, without one. Of several processes only the main one scores, and has any rows.
    """
    found = []
    for name, variant in variants(cfg).items():
        print(f"ablation: {name}")
        _fit(table, variant)
        if not is_main_process():
            continue
        rows = _scored(table, variant, _folder(cfg) / f"{_file(name)}.parquet")
        found.append(_measured(rows, name, cfg))
        _save(found, Path(cfg.out) / f"ablation_{_stage(cfg)}.csv")
    if isinstance(cfg, Stage2) and is_main_process():
        print(f"ablation: {SPECTRUM}")
        test = table[table["is_fake"] & (table["split"] == "test")]
        levels = [("none", 0.0), *(("jpeg", float(quality)) for quality in QUALITIES)]
        rows = score_spectrum(fit_spectrum(table, cfg), test, cfg, levels)
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
        Of several processes only the main one has any rows.

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
        one = cfg.model_copy(update={"out": str(Path(cfg.out) / "left_out" / name)})
        fit_stage2(known, one)
        if not is_main_process():
            continue
        stage = Stage.load(Path(one.out) / CHECKPOINTS["stage2"])
        fakes = known[known["is_fake"]]
        near = openset.Gaussians.fit(*_centre_features(stage, fakes[fakes["split"] == "train"]))
        val = _with_distances(stage, near, fakes[fakes["split"] == "val"])
        scores.calibrate(stage, val, one.out, cfg.coverage, cfg.accept)
        sides = [table["label"].eq(name), table["is_fake"] & table["label"].ne(name)]
        tests = [_with_distances(stage, near, table[side & table["split"].eq("test")]) for side in sides]
        rows = metrics_module.openset_summary(tests[1], tests[0], stage.temperature, cfg.seed, replicates=REPLICATES)
        near_by = metrics_module.openset_summary(val, tests[0], stage.temperature, cfg.seed, replicates=REPLICATES)
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
    crops, chosen = stage_module.sample_crops(stage, rows, len(rows))
    return stage_module.extract_features(stage, crops), chosen["label"]


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
    with atomic_write(path) as draft:
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
        recalls = metrics_module.stage2_by_generator(part, cfg.seed)
        named = {f"recall {label}": one["recall"] for label, one in recalls.items()}
        return metrics_module.stage2_metrics(part, 1.0, cfg.seed, ("accuracy", "balanced_accuracy")) | named
    metrics = metrics_module.stage1_metrics(part, 1.0, cfg.seed, ("auc", "accuracy_at_threshold"))
    return {"auc": metrics["auc"], "accuracy": metrics["accuracy_at_threshold"]}


def _auc_by_generator(part: pd.DataFrame) -> dict[str, float]:
    pairs = {name: part["label"].isin([name, "RealPhotos"]) for name in sorted(set(part["label"]) - {"RealPhotos"})}
    return {
        f"auc {name}": metrics_module.auc(part["label"][pair] == name, part["logit_fake"][pair])
        for name, pair in pairs.items()
    }
