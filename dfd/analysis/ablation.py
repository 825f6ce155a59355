"""What each part is worth: variants trained without it, and generators left out."""

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from dfd.config import CHECKPOINTS, Stage1, Stage2, Training
from dfd.core.io import write_text
from dfd.data.manifest import digest
from dfd.evaluate import metrics, scores
from dfd.inference.files import read_content
from dfd.inference.stage import Stage
from dfd.train import fit, is_main_process
from dfd.train.bank import CONDITIONS

LOSSES = tuple(f"{name}_weight" for name in "carried adversarial perceptual consistency".split())
NO_ADVERSARIES, BASELINE = "without adversarial part", "baseline: classifier on {}"


def variants(cfg: Any) -> dict[str, Any]:
    """The config as it is, and with one part left out or changed in folders below `ablation_<stage>`, by names."""
    if isinstance(cfg, Stage1):
        words = f"{{}} instead of {cfg.representation}"
        stage, key, kinds = "stage1", "representation", ("rgb", "highpass")
        changes: dict[str, dict] = {NO_ADVERSARIES: {"adversarial": False}}
        changes |= {"without perceptual part": {"perceptual_weight": 0.0}} if cfg.adversarial else {}
    else:
        stage, key, kinds, words = "stage2", "extractor", ("highpass", "rgb"), BASELINE
        losses = {f"without {name.removesuffix('_weight')} loss": {name: 0.0} for name in LOSSES}
        alone = {"source loss alone": dict.fromkeys(LOSSES, 0.0)}  # of one loss only it is the same
        several = sum(getattr(cfg, name) != 0 for name in LOSSES) > 1
        changes = losses | (alone if several else {}) if cfg.extractor == "unet" else {}
    changes["without degradation"] = {"degrade": False}
    changes |= {words.format(kind): {key: kind} for kind in kinds}
    return {"as configured": cfg} | {
        name: cfg.model_copy(update={"out": str(_folder(cfg.out, stage, name)), **change})
        for name, change in changes.items()
        if any(getattr(cfg, field) != value for field, value in change.items())  # it has that part
    }


def trained(table: pd.DataFrame, out: str | Path, stage: str, name: str) -> Stage | None:
    """The variant, of one parameter, that an ablation in a run folder finished on this manifest; None without one."""
    path = _folder(out, stage, name) / CHECKPOINTS[stage]
    content = read_content(path) if path.exists() else {}
    if not content.get("finished") or content["manifest_hash"] != digest(table):
        return None
    own = read_content(Path(out) / CHECKPOINTS[stage])["config"]
    changed = [key for key, value in content["config"].items() if own.get(key) != value]
    if len(changed) > 1:
        print(f"Left out: the variant {name!r}, which was trained with other {', '.join(changed)}; ablate again.")
    return Stage.load(path) if len(changed) < 2 else None


def left_out_fits(table: pd.DataFrame, out: str | Path) -> bool:
    """Whether all networks of `leave_out` in a run folder have its stage 2's parameters, and are of this manifest."""
    stage2 = CHECKPOINTS["stage2"]
    given = {path.parent.name: read_content(path) for path in Path(out).glob(f"left_out/*/{stage2}")}
    own = read_content(Path(out) / stage2)["config"] if given else None
    known = [(digest(table[table["label"] != name]), own) for name in given]
    return bool(given) and known == [(content["manifest_hash"], content["config"]) for content in given.values()]


def _folder(out: str | Path, stage: str, name: str) -> Path:
    return Path(out) / f"ablation_{stage}" / name.replace(": ", "_").replace(" ", "_")


def run(table: pd.DataFrame, cfg: Training) -> pd.DataFrame:
    """Train and score every variant; what an earlier call trained is kept. Writes `ablation_<stage>.csv`.

    Gives a row per variant and degradation of the test split, each number with its interval: for stage 1 auc, accuracy
    at the threshold of that variant's validation images, and the AUC of each generator against all photos; for stage 2
    accuracy, balanced accuracy and each generator's recall. Of several processes only the main one has any rows.
    """
    is_first, rows = isinstance(cfg, Stage1), []
    stage, of_generator = ("stage1", "auc") if is_first else ("stage2", "recall")
    only = {"auc": "auc", "accuracy": "accuracy_at_threshold"} if is_first else ("accuracy", "balanced_accuracy")
    images, path = table if is_first else table[table["is_fake"]], Path(cfg.out) / f"ablation_{stage}.csv"
    val, test = (images[images["split"] == split] for split in ("val", "test"))
    for name, variant in variants(cfg).items():
        print(f"ablation: {name}")
        fit(table, variant)
        if is_main_process():
            trained = Stage.load(Path(variant.out) / CHECKPOINTS[stage])
            sets = [getattr(cfg, name, 0.9) for name in ("coverage", "accept")]  # stage 1 has neither
            scores.calibrate(trained, scores.score(trained, val), variant.out, *sets)
            for condition in CONDITIONS:
                part = scores.score(trained, test, condition.degradation, condition.level)
                values = metrics.evaluate(part, 1.0, cfg.seed, only)
                apart = metrics.by_generator(part, cfg.seed).items()
                values |= {f"{of_generator} {label}": own[of_generator] for label, own in apart}
                row = {"variant": name, "degradation": condition.name.replace("jpeg", "JPEG")}
                rows.append(row | metrics.flatten(values))
            write_text(path, pd.DataFrame(rows).to_csv(index=False))
    return pd.DataFrame(rows)


def leave_out(table: pd.DataFrame, cfg: Stage2) -> pd.DataFrame:
    """Train stage 2 without each generator in turn, below `left_out` in the run folder: is it called unknown then?

    A row per generator, also in `left_out.csv`: left_out; the AUROC of its ood_score, auroc against test images of the
    others and, where a head did not learn from them, auroc_val against their validation images; and accepted, the share
    of its images that the threshold does not call unknown. Of several processes only the main one has any rows.
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
        asked = fakes["split"].eq("test") | fakes["split"].eq("val") & fakes["label"].ne(name)
        judged = scores.score(stage, fakes[asked])
        scores.calibrate(stage, judged, variant.out, cfg.coverage, cfg.accept)
        unknown, row = judged["label"] == name, {"left_out": name}
        for column, split in ({"auroc": "test"} | ({} if stage.is_held_out else {"auroc_val": "val"})).items():
            part = judged[unknown | (judged["split"] == split)]
            auc = partial(metrics.weighted_auc, positive=part["label"] == name, score=part["ood_score"])
            row |= metrics.flatten(metrics.bootstrap_all(metrics.units(part), {column: auc}, cfg.seed))
        rows.append(row | {"accepted": (judged.loc[unknown, "ood_score"] <= stage.ood_threshold).mean()})
        write_text(Path(cfg.out) / "left_out.csv", pd.DataFrame(rows).to_csv(index=False))
    return pd.DataFrame(rows)
