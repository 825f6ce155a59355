"""The sweep of notebook 03: every image under every condition of the grid, both stages, nothing done twice."""

import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from dfd.config import REAL
from dfd.core import ImageError, atomic_write, bar, code, digest, load_rgb, read_table
from dfd.degrade import compose, registry, to_tensor
from dfd.degrade.registry import Condition
from dfd.evaluate.metrics import METRICS, bootstrap_all, judged, share, units
from dfd.evaluate.scores import as_columns, as_row, with_predictions
from dfd.inference.detector import score_files
from dfd.inference.stage import Stage

SAVES = ("jpeg", "double_jpeg", "social")  # operators whose level is the quality of the file that they leave
HELD = 1 << 30  # bytes of decoded images that are held, all or none
LARGE, ONE_LARGE = 4_000_000, threading.Semaphore()  # pixels, from which on one is degraded at a time: 100 bytes each
CELLS = "cells"  # folder of the finished cells, in the run folder
ALL = "all"  # the label of metrics over all images
ACCURACY = {"stage1": "balanced_accuracy_at_threshold", "stage2": "balanced_accuracy"}  # chance: one over the classes
RATES = ("false_positive_rate", "true_positive_rate")
MEASURED = {"stage1": ("auc", ACCURACY["stage1"], *RATES, "ece_before", "ece", "cllr"),
            "stage2": (ACCURACY["stage2"], "ece_before", "ece")}  # fmt: skip


def sweep(stages: dict[str, Stage], table: pd.DataFrame, conditions: Sequence[Condition], out: str | Path,
          crops: int | None = None, seed: int = 0) -> dict[str, pd.DataFrame]:  # fmt: skip
    """Score a manifest's rows under each condition; stage 1 all of them, stage 2 the fakes.

    Each image is degraded once per condition, as a whole, before crops are cut. A finished cell, one condition of one
    stage, stays in `cells` of the run folder, and serves for the same version of dfd, weights, images, crops, condition
    and, of noise, seed. Gives each stage's score table, a row per image and condition; see `registry.name`.
    """
    (folder := Path(out) / CELLS).mkdir(parents=True, exist_ok=True)
    rows = {name: table if name == "stage1" else table[table["is_fake"]] for name in stages}
    decides = "stage classes crop_size equalise_quality ood_threshold rates".split()  # with the weights, each column
    weights, cells = {}, {}
    for name, stage in stages.items():
        bank = getattr(stage.feature_bank, "features", None)
        weights[name] = digest(*(getattr(stage, part) for part in decides), stage.model.state_dict(), bank)
        made_from = code(), crops or stage.crops, stage.crop_mode, rows[name][["path", "sha256"]].to_numpy().tolist()
        for i, condition in enumerate(conditions):
            noise = seed if any(step == "noise" for step, *_ in condition.chain) else None
            key = digest(condition.name, condition.chain, noise, *made_from)
            cells[name, i] = folder / f"{name}-{weights[name]}-{key}.parquet"
    missing = ([name for name in stages if not cells[name, i].exists()] for i in range(len(conditions)))
    todo, count = {i: names for i, names in enumerate(missing) if names}, len(conditions)
    print(f"{len(table)} images: {count - len(todo)} of {count} conditions kept, {len(todo)} to score")
    sizes = 3 * table["width"] * table["height"]  # bytes; where not all fit, none is there when its turn comes again
    load = lru_cache(None if sizes.sum() <= HELD else 1)(lambda path: load_rgb(Path(table.attrs["root"]) / path))
    for i in bar(todo, desc="conditions", unit="condition"):
        read = partial(_degraded, load=load, condition=conditions[i], seed=seed)
        for name, answers in _score({name: stages[name] for name in todo[i]}, table, read, crops).items():
            with atomic_write(cells[name, i]) as draft:
                answers.to_parquet(draft, index=False)
    for name, own in weights.items():
        for path in set(folder.glob(f"{name}-*")) - set(folder.glob(f"{name}-{own}-*")):
            path.unlink()  # another model's
    swept = {}
    for name, stage in stages.items():
        known, parts = rows[name].filter(["path", "label", "split", "group", "source"]), []
        for i, condition in enumerate(conditions):
            own = known.assign(degradation=condition.degradation, level=condition.level)
            parts.append(own.merge(read_table(cells[name, i]), on="path", validate="one_to_one"))
        swept[name] = with_predictions(stage, pd.concat(parts, ignore_index=True))
    return swept


def _degraded(path: str, load: Callable[[str], Image.Image], condition: Condition, seed: int) -> Image.Image | Tensor:
    if not condition.chain:
        return load(path)
    random = torch.Generator().manual_seed(zlib.crc32(f"{seed} {path} {condition.name}".encode()))
    drawn, image = {"generator": random}, load(path)
    chain = [(name, level, options | (drawn if name == "noise" else {})) for name, level, options in condition.chain]
    try:
        with ONE_LARGE if image.width * image.height > LARGE else nullcontext():
            result = compose(to_tensor(image), chain)
            vars(result)["info"] = {"jpeg_quality": int(chain[-1][1])} if chain[-1][0] in SAVES else {}  # of its file
            return result
    except (OSError, ValueError) as error:  # a codec's limit: of WebP 16,383 pixels a side
        raise ImageError(f"{path}: no {condition.name} of it ({error}); take out the image or the condition") from error


def _score(stages: dict[str, Stage], table: pd.DataFrame, read: Callable, crops: int | None) -> dict[str, pd.DataFrame]:
    """What each stage says of the images that it is asked about: path, and the columns of a score table."""
    rows: dict[str, dict[str, tuple]] = {name: {} for name in stages}  # by path
    for is_fake, part in table.groupby("is_fake"):
        asked = [name for name in stages if is_fake or name == "stage1"]
        for path, scored in score_files([stages[name] for name in asked], part["path"], read, crops) if asked else []:
            if isinstance(scored, Exception):
                raise scored
            for name, answer in zip(asked, scored, strict=True):
                rows[name][path] = as_row(stages[name], answer)
    tables = {name: as_columns(stage, [*rows[name].values()]) for name, stage in stages.items()}
    return {name: table.drop(columns="needed").assign(path=[*rows[name]]) for name, table in tables.items()}


def measure(swept: Mapping[str, pd.DataFrame], stages: Mapping[str, Stage], seed: int = 0) -> pd.DataFrame:
    """Every metric of each stage under each condition, with its interval: the long table behind all others.

    Columns stage, condition, degradation, level, label (all, or a recall's), metric, value, low, high (or NaN), images.
    """
    rows = []
    for stage, scores in swept.items():
        for condition, part in by_condition(scores):
            common = {"stage": stage, "condition": condition, **part[["degradation", "level"]].iloc[0]}
            judgements, labels = judged(part, stages[stage].temperature), part["label"].to_numpy()
            statistics: dict = {(ALL, metric): METRICS[metric].of(judgements) for metric in MEASURED[stage]}
            for label in np.unique(labels):
                statistics[label, "recall"] = partial(share, right=judgements.decided, among=labels == label)
            for (label, metric), interval in bootstrap_all(units(part), statistics, seed).items():
                images = statistics[label, metric].keywords.get("among", labels == labels).sum()
                rows.append({**common, "label": label, "metric": metric, **interval, "images": int(images)})
    return pd.DataFrame(rows).astype(dict.fromkeys(("value", "low", "high"), float))


def by_condition(scores: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each condition's name and rows, by path; a ValueError where one does not hold the same images as the others."""
    first = None
    for _, part in scores.groupby(["degradation", "level"], sort=False):
        name, part = registry.name(*part[["degradation", "level"]].iloc[0]), part.sort_values("path", ignore_index=True)
        first = part["path"] if first is None else first
        if not part["path"].equals(first):
            raise ValueError(f"{name!r} does not hold the same images as the other conditions; sweep again")
        yield name, part


def wide(measured: pd.DataFrame, stage: str) -> pd.DataFrame:
    """A stage's metrics over all images: a row per condition, each metric beside its _low and _high."""
    rows = measured[(measured["stage"] == stage) & (measured["metric"] != "recall")]
    table = rows.pivot(index="condition", columns="metric", values=["value", "low", "high"])
    table.columns = [metric if end == "value" else f"{metric}_{end}" for end, metric in table.columns]
    return table.reindex(rows["condition"].unique()).rename_axis("condition")


def recalls(measured: pd.DataFrame, stage: str) -> pd.DataFrame:
    """The share of each label's images that are judged right: a row per label, a column per condition, in its order."""
    rows = measured[(measured["stage"] == stage) & (measured["metric"] == "recall")]
    table = rows.pivot(index="label", columns="condition", values="value")
    labels = sorted(table.index, key=lambda label: (label != REAL, label))
    return table.reindex(index=labels, columns=rows["condition"].unique())


def summary(measured: pd.DataFrame) -> dict:
    """The numbers that matter most, for metrics.json: the images as they are, and the worst condition of each kind."""
    result: dict = {"conditions": int(measured["condition"].nunique())}
    for stage, metric in (("stage1", "false_positive_rate"), *ACCURACY.items()):
        rows = measured[(measured["stage"] == stage) & (measured["metric"] == metric)].dropna(subset="value")
        if len(rows):
            worst = rows["value"].idxmin() if METRICS[metric].higher_is_better else rows["value"].idxmax()
            plain = rows["condition"].eq(registry.AS_IT_IS).idxmax()
            chosen = rows.loc[[plain, worst], ["condition", "value", "low", "high"]].replace({np.nan: None})
            result[f"{stage}_{metric}"] = dict(zip(("as_it_is", "worst"), chosen.to_dict("records"), strict=True))
    return result
