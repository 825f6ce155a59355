"""What each part is worth: variants trained without it, and generators left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from dfd.config import CHECKPOINTS, Stage1, Stage2, Training
from dfd.core.io import atomic_write
from dfd.evaluate import metrics, scores
from dfd.inference.stage import Stage
from dfd.train import fit, is_main_process

QUALITIES = (95, 75, 50)  # Pillow qualities at which every variant is compared, beside the images as they are
LOSSES = ("carried_weight", "adversarial_weight", "perceptual_weight", "consistency_weight")  # beside stage 2's source


def variants(cfg: Any) -> dict[str, Any]:
    """The config under several names: as it is, and with one part left out or changed.

    Each variant that trains anew has its own folder below `ablation_<stage>` in the run folder.
    """
    changes: dict[str, dict] = {}
    if isinstance(cfg, Stage1):
        if cfg.adversarial:
            changes["without adversarial part"] = {"adversarial": False}
        if cfg.adversarial and cfg.perceptual_weight:
            changes["without perceptual part"] = {"perceptual_weight": 0.0}
        words, key, kinds = f"{{}} instead of {cfg.representation}", "representation", ("rgb", "highpass")
    else:
        if cfg.extractor == "unet":
            weights = [name for name in LOSSES if getattr(cfg, name)]
            changes |= {f"without {name.removesuffix('_weight')} loss": {name: 0.0} for name in weights}
            changes["source loss alone"] = dict.fromkeys(LOSSES, 0.0)
        words, key, kinds = "baseline: EfficientNet on {}", "extractor", ("highpass", "rgb")
    if cfg.degrade:
        changes["without degradation"] = {"degrade": False}
    changes |= {words.format(kind): {key: kind} for kind in kinds if kind != getattr(cfg, key)}
    folder = Path(cfg.out) / f"ablation_{_stage(cfg)}"
    return {"as configured": cfg} | {
        name: cfg.model_copy(update={"out": str(folder / name.replace(": ", "_").replace(" ", "_")), **change})
        for name, change in changes.items()
    }


def run(table: pd.DataFrame, cfg: Training) -> pd.DataFrame:
    """Train and score every variant; what an earlier call trained is kept. Writes `ablation_<stage>.csv`.

    Gives a row per variant and degradation of the test split, each number with its interval: for stage 1 auc, accuracy
    at the threshold of that variant's validation images, and the AUC of each generator against all photos; for stage 2
    accuracy, balanced accuracy and each generator's recall. Of several processes only the main one has any rows.
    """
    stage, result = _stage(cfg), []
    images, path = table if stage == "stage1" else table[table["is_fake"]], Path(cfg.out) / f"ablation_{stage}.csv"
    val, test = (images[images["split"] == split] for split in ("val", "test"))
    for name, variant in variants(cfg).items():
        print(f"ablation: {name}")
        fit(table, variant)
        if is_main_process():
            trained = Stage.load(Path(variant.out) / CHECKPOINTS[stage])
            scores.calibrate(trained, scores.score(trained, val), variant.out)
            _add(result, _measure(scores.jpeg_sweep(trained, test, QUALITIES), name, cfg), path)
    return pd.concat(result, ignore_index=True) if result else pd.DataFrame()


def leave_out(table: pd.DataFrame, cfg: Stage2) -> pd.DataFrame:
    """Train stage 2 without each generator in turn, below `left_out` in the run folder: is it called unknown then?

    Gives a row per generator: left_out; the AUROC of its images' ood_score, auroc against test images of the other
    generators and auroc_val against validation images of theirs, whose sources were in training; and accepted, the
    share of its images that the threshold of those validation images does not call unknown. Also in `left_out.csv`. Of
    several processes only the main one has any rows.
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
        _add(result, pd.DataFrame([row]), Path(cfg.out) / "left_out.csv")
    return pd.concat(result, ignore_index=True) if result else pd.DataFrame()


def _stage(cfg: Training) -> str:
    return "stage1" if isinstance(cfg, Stage1) else "stage2"


def _add(tables: list[pd.DataFrame], table: pd.DataFrame, path: Path) -> None:
    """Append a table, and write them all to a CSV file."""
    tables.append(table)
    with atomic_write(path) as draft:
        pd.concat(tables).to_csv(draft, index=False)


def _auroc(rows: pd.DataFrame, unknown: str, seed: int) -> metrics.Interval:
    """How well the ood_score tells images of the generator `unknown` from the others."""
    is_unknown, far = rows["label"].eq(unknown).to_numpy(), rows["ood_score"].to_numpy()
    return metrics.bootstrap_all(rows["group"], {"": lambda w: metrics.weighted_auc(w, is_unknown, far)}, seed)[""]


def _measure(rows: pd.DataFrame, name: str, cfg: Training) -> pd.DataFrame:
    """The rows of one variant in the table of `run`."""
    names, metric = ("accuracy", "balanced_accuracy"), "recall"
    if isinstance(cfg, Stage1):
        names, metric = ("auc", "accuracy_at_threshold"), "auc"
    result = []
    for (degradation, level), part in rows.groupby(["degradation", "level"], sort=False):
        generators = metrics.by_generator(part, cfg.seed)
        values = metrics.evaluate(part, 1.0, cfg.seed, names)
        values |= {f"{metric} {label}": own[metric] for label, own in generators.items()}
        degradation = "as it is" if degradation == "none" else f"JPEG {level:.0f}"
        result.append({"variant": name, "degradation": degradation} | metrics.flatten(values))
    return pd.DataFrame(result).rename(columns=lambda name: name.replace("accuracy_at_threshold", "accuracy"))
