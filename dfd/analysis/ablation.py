"""What each part is worth: variants trained without it, a baseline without a network, and generators left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from dfd.analysis.explain import spectrum
from dfd.config import CHECKPOINTS, Stage1, Stage2
from dfd.core.images import load_rgb
from dfd.core.io import atomic_write
from dfd.core.runs import bar
from dfd.data.crops import GFDTwoViewDataset, Seeded, cut, equalise, plan, seeds
from dfd.degrade import RandomDegrade, at_level, to_tensor
from dfd.evaluate import metrics, scores
from dfd.inference.stage import Stage
from dfd.train import fit, is_main_process

COMPONENTS = 64  # of the spectra that are kept; more than a few hundred images could fill would only be noise
QUALITIES = (95, 75, 50)  # Pillow qualities at which every variant is compared, beside the images as they are
SPECTRUM = "baseline: linear on the spectrum"
LOSSES = ("carried_weight", "adversarial_weight", "perceptual_weight", "consistency_weight")  # beside stage 2's source


def variants(cfg: Stage1 | Stage2) -> dict[str, Stage1 | Stage2]:
    """The config under several names: as it is, and with one part left out or changed.

    Each variant that trains anew has its own folder below `ablation_<stage>` in the run folder.
    """
    changes: dict[str, dict] = {}
    if isinstance(cfg, Stage1):
        if cfg.adversarial:
            changes["without adversarial part"] = {"adversarial": False}
        if cfg.adversarial and cfg.perceptual_weight:
            changes["without perceptual part"] = {"perceptual_weight": 0.0}
    elif cfg.extractor == "unet":
        weights = [name for name in LOSSES if getattr(cfg, name)]
        changes |= {f"without {name.removesuffix('_weight')} loss": {name: 0.0} for name in weights}
        changes["source loss alone"] = dict.fromkeys(LOSSES, 0.0)
    if cfg.degrade:
        changes["without degradation"] = {"degrade": False}
    if isinstance(cfg, Stage1):
        others = [name for name in ("rgb", "highpass", "npr") if name != cfg.representation]
        changes |= {f"{name} instead of {cfg.representation}": {"representation": name} for name in others}
    else:
        others = [name for name in ("highpass", "rgb") if name != cfg.extractor]
        changes |= {f"baseline: EfficientNet on {name}": {"extractor": name} for name in others}
    folder = Path(cfg.out) / f"ablation_{_stage(cfg)}"
    return {"as configured": cfg} | {
        name: cfg.model_copy(update={"out": str(folder / name.replace(": ", "_").replace(" ", "_")), **change})
        for name, change in changes.items()
    }


def run(table: pd.DataFrame, cfg: Stage1 | Stage2) -> pd.DataFrame:
    """Train and score every variant; what an earlier call trained is kept. Writes `ablation_<stage>.csv`.

    Returns:
        One row per variant and degradation, measured on the test split: variant, degradation, and with an interval
        each: for stage 1 auc, accuracy at the threshold fitted on that variant's validation images, and the AUC of each
        generator against all photos; for stage 2 accuracy, balanced accuracy, and the recall of each generator. Of
        several processes only the main one scores, and has any rows.
    """
    stage, result = _stage(cfg), []
    images = table if stage == "stage1" else table[table["is_fake"]]
    val, test = (images[images["split"] == split] for split in ("val", "test"))
    for name, variant in variants(cfg).items():
        print(f"ablation: {name}")
        fit(table, variant)
        if is_main_process():
            trained = Stage.load(Path(variant.out) / CHECKPOINTS[stage])
            scores.calibrate(trained, scores.score(trained, val), variant.out)
            result.append(_measure(scores.jpeg_sweep(trained, test, QUALITIES), name, cfg))
            _save(result, Path(cfg.out) / f"ablation_{stage}.csv")
    if stage == "stage2" and is_main_process():
        print(f"ablation: {SPECTRUM}")
        result.append(_measure(score_spectrum(fit_spectrum(table, cfg), test, cfg), SPECTRUM, cfg))
        _save(result, Path(cfg.out) / "ablation_stage2.csv")
    return pd.concat(result, ignore_index=True) if result else pd.DataFrame()


def leave_out(table: pd.DataFrame, cfg: Stage2) -> pd.DataFrame:
    """Train stage 2 without each generator in turn, and see whether its test images are found unknown.

    Each training has its own folder below `left_out` in the run folder. Of several processes only the main one scores.

    Returns:
        One row per generator: left_out; the AUROC of its images' ood_score, auroc against test images of the other
        generators and auroc_val against validation images of theirs, whose sources were in training; and accepted, the
        share of its images that the threshold of those validation images does not call unknown. Also in `left_out.csv`.
    """
    fakes = table[table["is_fake"]]
    generators, result = sorted(fakes["label"].unique()), []
    if len(generators) < 3:
        raise ValueError(f"leave_out needs at least three generators, the data has {', '.join(generators) or 'none'}")
    for name in generators:
        print(f"left out: {name}")
        variant = cfg.model_copy(update={"out": str(Path(cfg.out) / "left_out" / name)})
        fit(table[table["label"] != name], variant)
        if not is_main_process():
            continue
        stage = Stage.load(Path(variant.out) / CHECKPOINTS["stage2"])
        known, unknown = fakes[fakes["label"] != name], fakes[fakes["label"] == name]
        parts = known[known["split"] == "val"], known[known["split"] == "test"], unknown[unknown["split"] == "test"]
        val, test, unknown_test = (scores.score(stage, rows) for rows in parts)
        scores.calibrate(stage, val, variant.out, cfg.coverage, cfg.accept)
        accepted = float((unknown_test["ood_score"] <= stage.ood_threshold).mean())
        near, far = (_auroc(pd.concat([rows, unknown_test]), name, cfg.seed) for rows in (val, test))
        row = {"left_out": name, **metrics.flatten({"auroc": far, "auroc_val": near}), "accepted": accepted}
        result.append(pd.DataFrame([row]))
        _save(result, Path(cfg.out) / "left_out.csv")
    return pd.concat(result, ignore_index=True) if result else pd.DataFrame()


def fit_spectrum(table: pd.DataFrame, cfg: Stage2) -> Pipeline:
    """Train a linear classifier on the spectra of two degraded views of every training fake, as stage 2 sees them.

    Frank et al. 2020, arXiv:2003.08685, and Durall et al. 2020, arXiv:2003.01826, classify spectra linearly.
    """
    fakes = table[table["is_fake"]]
    train, classes = fakes[fakes["split"] == "train"], sorted(fakes["label"].unique())
    degrade = RandomDegrade(smallest=cfg.crop_size) if cfg.degrade else None
    views = GFDTwoViewDataset(train, table.attrs["root"], classes, cfg.crop_size, degrade, _quality(cfg))
    items = bar(enumerate(seeds(len(views), cfg.seed)), total=len(views), desc="spectra", unit="image")
    drawn = [Seeded(views)[draw] for draw in items]
    spectra = [half_spectrum(item[view][None]) for item in drawn for view in ("view1", "view2")]
    names = np.repeat([classes[item["source"]] for item in drawn], 2)
    reduce = PCA(min(COMPONENTS, len(spectra) - 1, len(spectra[0])), random_state=cfg.seed)
    linear = LogisticRegression(class_weight="balanced", max_iter=2000)
    return make_pipeline(StandardScaler(), reduce, StandardScaler(), linear).fit(np.stack(spectra), names)


def score_spectrum(classifier: Pipeline, table: pd.DataFrame, cfg: Stage2) -> pd.DataFrame:
    """A score table of stage 2 by the classifier of `fit_spectrum`: each fake's centre crop as it is and as JPEG."""
    parts = []
    for degradation, level in [("none", 0.0), *(("jpeg", float(quality)) for quality in QUALITIES)]:
        spectra = []
        for path in table["path"]:
            image = at_level(to_tensor(load_rgb(f"{table.attrs['root']}/{path}")), degradation, level)
            corner = plan(*image.shape[-2:], cfg.crop_size, 1).corners[0]
            spectra.append(half_spectrum(equalise(cut(image, corner, cfg.crop_size), _quality(cfg))))
        logits = pd.DataFrame(classifier.predict_log_proba(np.stack(spectra)), columns=classifier.classes_)
        rows = table[["path", "label", "split", "group"]].reset_index(drop=True)
        rows = rows.assign(degradation=degradation, level=level).join(logits.add_prefix("logit_"))
        parts.append(rows.assign(prediction=logits.idxmax(axis=1), crops=1, crop_std=0.0))
    return pd.concat(parts, ignore_index=True)


def half_spectrum(crop: Tensor) -> np.ndarray:
    """The spectrum of a crop (1, 3, S, S) without the half plane that mirrors the other: (S * (S // 2 + 1),)."""
    return spectrum(crop)[:, : crop.shape[-1] // 2 + 1].ravel()


def _stage(cfg: Stage1 | Stage2) -> str:
    return "stage1" if isinstance(cfg, Stage1) else "stage2"


def _quality(cfg: Stage2) -> int | None:
    return cfg.equalise_quality if cfg.equalise else None


def _save(tables: list[pd.DataFrame], path: Path) -> None:
    with atomic_write(path) as draft:
        pd.concat(tables).to_csv(draft, index=False)


def _auroc(rows: pd.DataFrame, unknown: str, seed: int) -> metrics.Interval:
    """How well the ood_score tells images of the generator `unknown` from the others."""
    is_unknown, far = rows["label"].eq(unknown).to_numpy(), rows["ood_score"].to_numpy()
    return metrics.bootstrap_all(rows["group"], {"": lambda w: metrics.weighted_auc(w, is_unknown, far)}, seed)[""]


def _measure(rows: pd.DataFrame, name: str, cfg: Stage1 | Stage2) -> pd.DataFrame:
    """The rows of one variant in the table of `run`."""
    result = []
    for (degradation, level), part in rows.groupby(["degradation", "level"], sort=False):
        row = {"variant": name, "degradation": "as it is" if degradation == "none" else f"JPEG {level:.0f}"}
        names = ("auc", "accuracy_at_threshold") if isinstance(cfg, Stage1) else ("accuracy", "balanced_accuracy")
        row |= metrics.flatten(metrics.evaluate(part, 1.0, cfg.seed, names))
        metric = "auc" if isinstance(cfg, Stage1) else "recall"
        generators = metrics.by_generator(part, cfg.seed)
        row |= metrics.flatten({f"{metric} {label}": values[metric] for label, values in generators.items()})
        result.append(row)
    return pd.DataFrame(result).rename(columns=lambda name: name.replace("accuracy_at_threshold", "accuracy"))
