"""What each part is worth: variants trained without it, and generators left out."""

from pathlib import Path
from typing import Any

import pandas as pd

from dfd.config import CHECKPOINTS, Stage1, Stage2, Training
from dfd.core.io import atomic_write
from dfd.evaluate import metrics, scores
from dfd.inference.stage import Stage
from dfd.train import fit, is_main_process

QUALITIES = (95, 75, 50)  # Pillow qualities at which every variant is compared, beside the images as they are
LOSSES = tuple(f"{name}_weight" for name in "carried adversarial perceptual consistency".split())


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
        stage, key, kinds = "stage1", "representation", ("rgb", "highpass")
        words = f"{{}} instead of {cfg.representation}"
    else:
        if cfg.extractor == "unet":
            weights = [name for name in LOSSES if getattr(cfg, name)]
            changes |= {f"without {name.removesuffix('_weight')} loss": {name: 0.0} for name in weights}
            changes["source loss alone"] = dict.fromkeys(LOSSES, 0.0)
        stage, key, kinds = "stage2", "extractor", ("highpass", "rgb")
        words = "baseline: EfficientNet on {}"
    if cfg.degrade:
        changes["without degradation"] = {"degrade": False}
    changes |= {words.format(kind): {key: kind} for kind in kinds if kind != getattr(cfg, key)}
    folder = Path(cfg.out) / f"ablation_{stage}"
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
    stage, rows = "stage1" if isinstance(cfg, Stage1) else "stage2", []
    images, path = table if stage == "stage1" else table[table["is_fake"]], Path(cfg.out) / f"ablation_{stage}.csv"
    val, test = (images[images["split"] == split] for split in ("val", "test"))
    for name, variant in variants(cfg).items():
        print(f"ablation: {name}")
        fit(table, variant)
        if is_main_process():
            trained = Stage.load(Path(variant.out) / CHECKPOINTS[stage])
            scores.calibrate(trained, scores.score(trained, val), variant.out)
            rows += _measure(scores.jpeg_sweep(trained, test, QUALITIES), name, cfg)
            with atomic_write(path) as draft:
                pd.DataFrame(rows).to_csv(draft, index=False)
    return pd.DataFrame(rows)


def leave_out(table: pd.DataFrame, cfg: Stage2) -> pd.DataFrame:
    """Train stage 2 without each generator in turn, below `left_out` in the run folder: is it called unknown then?

    Gives a row per generator: left_out; the AUROC of its images' ood_score, auroc against test images of the other
    generators and auroc_val against validation images of theirs, whose sources were in training; and accepted, the
    share of its images that the threshold of those validation images does not call unknown. Also in `left_out.csv`. Of
    several processes only the main one has any rows.
    """
    fakes = table[table["is_fake"]]
    generators, rows = sorted(fakes["label"].unique()), []
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
        val, test, unknown_test = (scores.score(stage, part) for part in parts)
        scores.calibrate(stage, val, variant.out, cfg.coverage, cfg.accept)
        accepted = float((unknown_test["ood_score"] <= stage.ood_threshold).mean())
        near, far = (_auroc(pd.concat([part, unknown_test]), name, cfg.seed) for part in (val, test))
        rows.append({"left_out": name, **metrics.flatten({"auroc": far, "auroc_val": near}), "accepted": accepted})
        with atomic_write(Path(cfg.out) / "left_out.csv") as draft:
            pd.DataFrame(rows).to_csv(draft, index=False)
    return pd.DataFrame(rows)


def _auroc(rows: pd.DataFrame, unknown: str, seed: int) -> metrics.Interval:
    """How well the ood_score tells images of the generator `unknown` from the others."""
    is_unknown, far = rows["label"].eq(unknown).to_numpy(), rows["ood_score"].to_numpy()
    return metrics.bootstrap_all(rows["group"], {"": lambda w: metrics.weighted_auc(w, is_unknown, far)}, seed)[""]


def _measure(table: pd.DataFrame, variant: str, cfg: Training) -> list[dict[str, Any]]:
    """The rows of one variant in the table of `run`, one a degradation."""
    names, metric = {"accuracy": "accuracy", "balanced_accuracy": "balanced_accuracy"}, "recall"
    if isinstance(cfg, Stage1):
        names, metric = {"auc": "auc", "accuracy": "accuracy_at_threshold"}, "auc"
    rows = []
    for (degradation, level), part in table.groupby(["degradation", "level"], sort=False):
        measured = metrics.evaluate(part, 1.0, cfg.seed, list(names.values()))
        values = {column: measured[name] for column, name in names.items()}
        values |= {f"{metric} {label}": own[metric] for label, own in metrics.by_generator(part, cfg.seed).items()}
        degradation = "as it is" if degradation == "none" else f"JPEG {level:.0f}"
        rows.append({"variant": variant, "degradation": degradation} | metrics.flatten(values))
    return rows
