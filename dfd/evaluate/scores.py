"""Score tables, one row per image, split and degradation, and the tables that are made from them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.special import logit
from sklearn.metrics import classification_report
from torch import Tensor

from dfd.config import CHECKPOINTS
from dfd.core import atomic_write, bar, load_rgb, read_table
from dfd.degrade import compose, to_tensor
from dfd.evaluate import holdouts, metrics
from dfd.inference import Scored, Stage, decide, likelihood, update_checkpoint
from dfd.inference.decide import class_names, closed_set, logit_columns, probabilities, stage_of, true_class


def score(stage: Stage, table: pd.DataFrame, degradation: str = "none", level: float = 0.0,
        crops: int | None = None) -> pd.DataFrame:  # fmt: skip
    """Score every image of a manifest's rows at one fixed degradation; it meets the image before crops are cut.

    `crops` is as in `Stage.stream`; where images were too large for all the crops that the stage's mode asks for, a
    line is printed. Columns stage, path, label, split, group, source if known, degradation, level, logit_<class> …,
    prediction and outside (as the Detector has them), crops, crop_std; ood_score with a bank; stage 1's log10_lr.
    """
    if stage.stage == "stage2" and not table["is_fake"].all():
        raise ValueError("stage 2 names generators; give it the fakes only")
    what = "clean" if degradation == "none" else f"{degradation} {level:g}"

    def read(path: str) -> Image.Image | Tensor:
        image = load_rgb(Path(table.attrs["root"]) / path)
        return image if degradation == "none" else compose(to_tensor(image), [(degradation, level, {})])

    paths = bar(table["path"], desc=f"{stage.stage} {what}", unit="image")
    answers = as_columns(stage, [as_row(stage, answer) for answer in stage.stream(map(read, paths), crops)])
    needed = answers.pop("needed")
    if len(short := needed[answers["crops"] < needed]):
        print(f"{stage.stage} {what}: {len(short)} of {len(answers)} images needed more crops, up to {short.max()}")
    known = table.filter(["path", "label", "split", "group", "source"]).reset_index(drop=True)
    return with_predictions(stage, known.assign(degradation=degradation, level=float(level)).join(answers))


def as_row(stage: Stage, said: Scored) -> tuple:
    """An answer as plain values, a row of `as_columns`: a tensor that stays between crops costs 0.1 MB of heap."""
    outside = stage.outside(said) if stage.stage == "stage1" else None  # whose rule it is
    return *said.logits.tolist(), said.crops, said.crop_std, said.ood_score, outside, said.needed


def as_columns(stage: Stage, rows: Sequence[tuple]) -> pd.DataFrame:
    """What a stage says of images as columns: those of a score table, ood_score where there is a bank, and needed."""
    logits = [f"logit_{name}" for name in stage.classes]
    columns = pd.DataFrame(rows, columns=[*logits, "crops", "crop_std", "ood_score", "outside", "needed"])
    columns = columns.astype(dict.fromkeys(logits, np.float32))
    return columns if columns["ood_score"].notna().any() else columns.drop(columns="ood_score")


def with_predictions(stage: Stage, scores: pd.DataFrame) -> pd.DataFrame:
    """The table with stage in front, prediction, as `decide` has it, after the logits, and stage 1's three answers."""
    logits = [f"logit_{name}" for name in stage.classes]
    decisions = decide.decide(scores[logits].to_numpy(), stage, scores.get("ood_score"))
    rest = scores.drop(columns=["prediction", "stage"], errors="ignore")
    rest.insert(0, "stage", stage.stage)
    rest.insert(list(rest).index(logits[-1]) + 1, "prediction", decisions.prediction)
    if stage.stage == "stage1":
        rest["answer"] = [decide.answer(p_fake, stage) for p_fake in decisions.probabilities[:, 1]]
        rest.loc[rest.get("outside", pd.Series(None, rest.index)).notna(), "answer"] = "unsure"  # as `predict` has it
    if stage.likelihood:
        rest["log10_lr"] = likelihood.log10_lr(rest["logit_fake"] - rest["logit_real"], stage.likelihood)
    return rest


def calibrate(stage: Stage, scores: pd.DataFrame, out: str | Path, coverage: float = 0.9,
        accept: float = 0.95) -> pd.DataFrame:  # fmt: skip
    """Fit a stage's decisions on clean validation rows, or judgements of sources left out; store them, decide anew."""
    manifest = Path(out) / "manifest.parquet"
    rows = holdouts.load(out, stage) if stage.is_held_out else metrics.clean(scores, "val")
    fitted = decide.fit(stage, rows, read_table(manifest) if manifest.exists() else None, coverage, accept)
    vars(stage).update(fitted)
    update_checkpoint(Path(out) / CHECKPOINTS[stage.stage], **fitted)
    return with_predictions(stage, scores)


def save_scores(scores: pd.DataFrame, out: str | Path, stage: str, keep: str | None = None) -> None:
    """Write a stage's score table to a run folder; of the one that is there only rows of degradation `keep` stay."""
    if keep is not None:
        stored = load_scores(out, stage)  # its other rows may be another model's
        scores = pd.concat([stored[stored["degradation"] == keep], scores[scores["degradation"] != keep]], join="inner")
    with atomic_write(Path(out) / f"scores_{stage}.parquet") as draft:
        scores.to_parquet(draft, index=False)


def load_scores(out: str | Path, stage: str) -> pd.DataFrame:
    """Read a stage's score table from a run folder; a FileNotFoundError names the notebook that writes it."""
    path = Path(out) / f"scores_{stage}.parquet"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; run notebook 0{stage[-1]} with this `out`")
    return read_table(path)


def certainty(scores: pd.DataFrame, temperature: float, threshold: float = 0.5) -> pd.DataFrame:
    """How sure each row's prediction is: columns wrong, confidence and distance on the rows' index.

    confidence is the calibrated probability of what the image was called, in [0, 1]; distance, from the decision, is in
    logits: stage 1's from its threshold, stage 2's between the two likeliest names, the first standing for unknown.
    """
    called, columns = closed_set(scores), class_names(scores)
    confidence = probabilities(scores, temperature)[np.arange(len(scores)), called.map(columns.index).to_numpy(int)]
    logits = scores[logit_columns(scores)].to_numpy(float) / temperature
    if stage_of(scores) == "stage1":
        logits[:, 1] -= logit(threshold)
    distance = np.diff(np.sort(logits, axis=1)[:, -2:], axis=1)[:, 0]
    return pd.DataFrame({"wrong": called != true_class(scores), "confidence": confidence, "distance": distance})


def at_operating_points(scores: pd.DataFrame, points: dict, temperature: float, seed: int = 0) -> pd.DataFrame:
    """What thresholds on p_fake that were fitted elsewhere, at this temperature, do on stage 1's rows.

    A row a point: threshold, fpr (photos called fake), tpr (fakes found), accuracy, each beside its _low and _high.
    """
    only = {"fpr": "false_positive_rate", "tpr": "true_positive_rate", "accuracy": "accuracy_at_threshold"}
    rows, p = {}, probabilities(scores, temperature)[:, 1]
    for point, threshold in points.items():
        called = scores.assign(prediction=np.where(p >= threshold, "fake", "real"))
        rows[point] = {"threshold": threshold, **metrics.flatten(metrics.evaluate(called, temperature, seed, only))}
    return pd.DataFrame.from_dict(rows, orient="index", dtype=float).rename_axis("point")


def coverage(scores: pd.DataFrame, quantile: float, temperature: float, seed: int = 0) -> dict[str, metrics.Interval]:
    """What the sets of names of `fit_conformal`'s quantile hold, on rows of known generators of another split.

    coverage, the share whose set holds the true name; names, the mean size of a set; single, the share with one name.
    """
    sets = decide.prediction_sets(probabilities(scores, temperature), quantile)
    held, sizes = sets[np.arange(len(scores)), scores["label"].map(class_names(scores).index)], sets.sum(1)
    columns = {"coverage": held, "names": sizes, "single": sizes == 1}
    means = {name: partial(metrics.share, right=column) for name, column in columns.items()}
    return metrics.bootstrap_all(metrics.units(scores), means, seed)


def as_table(values: dict) -> pd.DataFrame:
    """Metrics as text for a report: name, value and 95 % interval, without its columns where none has one.

    Where all draws are alike that says nothing of others, and there is none.
    """
    rows = [{"metric": name, **value} for name, value in values.items() if isinstance(value, dict) and "value" in value]
    table = pd.DataFrame(rows).set_index("metric").astype(float)
    table.loc[table["low"] == table["high"], ["low", "high"]] = np.nan
    return table.dropna(axis="columns", how="all").map(lambda number: "–" if np.isnan(number) else f"{number:.3f}")


def readable(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Metrics for reading, each "value [low, high]", a dash where undefined."""

    def cell(value: float, low: float, high: float) -> str:
        return "–" if np.isnan(value) else f"{value:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low < high else "")

    columns = {name: table[[name, f"{name}_low", f"{name}_high"]].to_numpy(float) for name in names}
    return pd.DataFrame({name: [cell(*row) for row in values] for name, values in columns.items()}, table.index)


def classification_text(tables: dict[str, pd.DataFrame], split: str) -> str:
    """The classification report of each stage on one split's clean images, as text for val_report.txt and the like."""
    parts = [f"Split: {split}. Images as they are (no degradation). Stage 1 at the threshold of its checkpoint."]
    parts += ["Heads of profile clip learnt from these images, where sources are known."] if split == "val" else []
    for stage, scores in tables.items():
        rows = metrics.clean(scores, split)
        text = classification_report(true_class(rows), closed_set(rows), digits=3, zero_division=0)  # pyright: ignore
        parts.append(f"{stage}, {len(rows)} images of {rows['group'].nunique()} groups\n\n{text}")
    return "\n\n".join(parts) + "\n"
