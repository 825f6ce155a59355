"""The sweep of notebook 03: every image under every condition of the grid, both stages, nothing done twice."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
import pandas as pd
import PIL
import torch
from PIL import Image
from torch import Tensor

from dfd import __version__
from dfd.core.images import load_rgb
from dfd.core.io import atomic_write
from dfd.core.runs import bar
from dfd.degrade import registry
from dfd.degrade.registry import Condition, compose, to_tensor
from dfd.evaluate import metrics as metrics_module
from dfd.evaluate.metrics import Draws
from dfd.evaluate.scores import predictions
from dfd.inference.decide import confidences, true_class
from dfd.inference.stage import Prepared, Stage, prepared

HELD = 1 << 30  # bytes of decoded images that are held at a time; a larger set is swept in blocks
CHUNK = 8 << 20  # pixels that are degraded at a time
CELLS = "cells"  # folder of the finished cells, in the run folder
FIRST = "first_"  # before a class: the logit of the first crop alone, the centre in mode five


def run(
    stages: dict[str, Stage],
    table: pd.DataFrame,
    conditions: Sequence[Condition],
    out: str | Path,
    crops: int | None = None,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Score the table's images under each condition; stage 1 all of them, stage 2 the fakes.

    Each image is decoded once and degraded once per condition, as a whole, before crops are cut. A finished cell, one
    condition of one stage, is written to the folder `cells`; a sweep that is stopped goes on from there. A cell is used
    again only for the same weights, images, crops, condition and code.

    Args:
        stages: stage1, stage2 or both.
        table: rows of the manifest, with its root in attrs.
        conditions: from `dfd.degrade.registry`.
        out: the run folder.
        crops: per image at most; none takes each checkpoint's number.
        seed: of the noise.

    Returns:
        The score table of each stage, one row per image and condition: the contract's columns (a chain is in
        `degradation`, its last step's level in `level`; see `dfd.degrade.registry.name`), and first_<class>.

    Raises:
        ImageError: an image that the manifest lists can no longer be read.
    """
    folder = Path(out) / CELLS
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: _fingerprint(stage) for name, stage in stages.items()}
    rows = {name: table if name == "stage1" else table[table["is_fake"]] for name in stages}
    cells = {name: {one.name: [] for one in conditions} for name in stages}
    blocks = _blocks(table)
    for number, block in enumerate(blocks):
        todo: dict[Condition, dict[str, Path]] = {}
        for name, stage in stages.items():
            images = block[block.index.isin(rows[name].index)]
            for one in conditions:
                key = _key(one, images, stage, crops, seed)
                path = folder / f"{name}-{weights[name]}-{key}.parquet"
                cells[name][one.name].append(path)
                if len(images) and not path.exists():
                    todo.setdefault(one, {})[name] = path
        part = f", block {number + 1} of {len(blocks)}" if len(blocks) > 1 else ""
        kept = len(conditions) - len(todo)
        print(f"{len(block)} images{part}: {kept} of {len(conditions)} conditions kept, {len(todo)} to score")
        if todo:
            _sweep(block, todo, {name: rows[name].index for name in stages}, stages, crops, seed)
    for name in stages:
        for path in folder.glob(f"{name}-*.parquet"):
            if not path.name.startswith(f"{name}-{weights[name]}-"):
                path.unlink()  # another model's
    return {name: _assemble(stages[name], rows[name], conditions, cells[name]) for name in stages}


def _sweep(
    block: pd.DataFrame,
    todo: dict[Condition, dict[str, Path]],
    members: dict[str, pd.Index],
    stages: dict[str, Stage],
    crops: int | None,
    seed: int,
) -> None:
    """Decode a block, then score and write its unfinished cells one after another."""
    root, files = Path(block.attrs["root"]), block["path"].tolist()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reading = pool.map(lambda path: load_rgb(root / path), files)
        images = list(bar(reading, total=len(block), desc="decoding", unit="image"))

        def cut(i: int, condition: Condition, names: list[str]) -> dict[str, Prepared]:
            """The crops of one image under a condition, for each of the stages that are to see it."""
            degraded = _degrade(images[i], condition, files[i], seed)
            return dict(zip(names, prepared([stages[name] for name in names], degraded, crops), strict=True))

        with bar(None, total=len(block) * len(todo), unit="image") as shown:
            for condition, paths in todo.items():
                shown.set_description(condition.name)
                found: dict[str, list] = {name: [] for name in paths}
                for chunk in _chunks(images):
                    names = [[name for name in paths if block.index[i] in members[name]] for i in chunk]
                    ready = list(pool.map(cut, chunk, repeat(condition), names))
                    for name in paths:
                        kept = [i for i, one in zip(chunk, names, strict=True) if name in one]
                        scored = stages[name].score(one[name] for one in ready if name in one)
                        found[name] += zip((files[i] for i in kept), scored, strict=True)
                    shown.update(len(chunk))
                for name, path in paths.items():
                    _write(found[name], stages[name].classes, path)


def _degrade(image: Image.Image, condition: Condition, path: str, seed: int) -> Image.Image | Tensor:
    """One whole image under a condition; the noise hangs on image, condition and seed alone."""
    if not condition.chain:
        return image
    random = torch.Generator().manual_seed(zlib.crc32(f"{seed} {path} {condition.name}".encode()))
    extra = {"noise": {"generator": random}}
    chain = [(name, level, {**options, **extra.get(name, {})}) for name, level, options in condition.chain]
    return compose(to_tensor(image), chain)


def _blocks(table: pd.DataFrame) -> list[pd.DataFrame]:
    """The table in parts whose decoded images fit into HELD bytes, or hold one image."""
    found, held = [[]], 0
    for i, size in enumerate(3 * table["width"] * table["height"]):
        if found[-1] and held + size > HELD:
            found.append([])
            held = 0
        found[-1].append(i)
        held += size
    return [table.iloc[rows] for rows in found]


def _chunks(images: list[Image.Image]) -> Iterator[list[int]]:
    """Places of images that together have CHUNK pixels at most, or one alone."""
    chunk, pixels = [], 0
    for i, image in enumerate(images):
        if chunk and pixels + image.width * image.height > CHUNK:
            yield chunk
            chunk, pixels = [], 0
        chunk.append(i)
        pixels += image.width * image.height
    yield chunk


def _write(found: list, classes: list[str], path: Path) -> None:
    """Write a cell under another name and rename it, so that what has the name is whole."""
    columns = {"path": [image for image, _ in found]}
    for i, name in enumerate(classes):
        columns[f"logit_{name}"] = [float(one.logits[i]) for _, one in found]
        columns[f"{FIRST}{name}"] = [float(one.first[i]) for _, one in found]
    columns |= {"crops": [one.crops for _, one in found], "crop_std": [one.spread for _, one in found]}
    if found and found[0][1].ood_score is not None:
        columns["ood_score"] = [one.ood_score for _, one in found]
    with atomic_write(path) as draft:
        pd.DataFrame(columns).to_parquet(draft, index=False)


def _assemble(
    stage: Stage, rows: pd.DataFrame, conditions: Sequence[Condition], cells: dict[str, list[Path]]
) -> pd.DataFrame:
    """One table from the cells of a stage, in the order of the contract's columns."""
    tables = []
    for one in conditions:
        scored = pd.concat([pd.read_parquet(path) for path in cells[one.name] if path.exists()], ignore_index=True)
        known = rows[["path", "label", "split", "group"]].assign(degradation=one.degradation, level=one.level)
        tables.append(known.merge(scored, on="path", validate="one_to_one"))
    table = pd.concat(tables, ignore_index=True)
    logits = [f"logit_{name}" for name in stage.classes]
    table["prediction"] = predictions(stage, table[logits].to_numpy())
    known = ["path", "label", "split", "group", "degradation", "level", *logits, "prediction", "crops", "crop_std"]
    known += ["ood_score"] * (stage.feature_bank is not None)
    return table[known + [f"{FIRST}{name}" for name in stage.classes]]


def _fingerprint(stage: Stage) -> str:
    """A hash of all that decides the answers: weights, classes, what a crop goes through, and the training images."""
    found = hashlib.sha256(repr((stage.stage, stage.classes, stage.crop_size, stage.equalise_quality)).encode())
    for name, value in stage.model.state_dict().items():
        found.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    if stage.feature_bank is not None:
        found.update(stage.feature_bank.bank.tobytes())
    return found.hexdigest()[:12]


def _key(condition: Condition, images: pd.DataFrame, stage: Stage, crops: int | None, seed: int) -> str:
    """A hash of what a cell was made from, beside the weights."""
    code = [__version__]
    noisy = seed if any(name == "noise" for name, *_ in condition.chain) else None
    cut = (crops or stage.crops, stage.crop_mode)
    files = images[["path", "sha256"]].to_numpy().tolist()
    made_of = json.dumps([condition.name, condition.chain, noisy, cut, files, code, PIL.__version__, torch.__version__])
    return hashlib.sha256(made_of.encode()).hexdigest()[:16]


ACCURACY = {"stage1": "balanced_accuracy_at_threshold", "stage2": "balanced_accuracy"}  # chance: one over the classes
ALL = "all"  # the label of metrics over all images
Metrics = dict[tuple[str, str], dict[str, float]]


def measure(swept: Mapping[str, pd.DataFrame], stages: Mapping[str, Stage], seed: int = 0) -> pd.DataFrame:
    """Every metric of each stage under each condition, with its interval: the long table behind all others.

    Stage 1: auc; balanced_accuracy_at_threshold; false_positive_rate (photos called fake) and true_positive_rate, at
    the threshold. Stage 2: balanced_accuracy. Both: ece and ece_before (at temperature 1); recall of each label, photos
    among them; the accuracy and auc of the first crop alone (…_one_crop), and by how much all crops are better
    (…_gain), on the same resamples.

    Args:
        swept: stage -> score table of `dfd.evaluate.robustness.run`, of one split.
        stages: stage -> what scored it; its temperature, threshold and classes are read.
        seed: of the bootstrap over groups.

    Returns:
        Columns stage, condition, degradation, level, label (all, or the one a recall is of), metric, value, low, high,
        images (that the metric is over); NaN where undefined.

    Raises:
        ValueError: a condition does not hold the same images as the others.
    """
    found = []
    for name, scores in swept.items():
        for number, (one, part) in enumerate(by_condition(scores)):
            if not number:
                draws = metrics_module.draws(part["group"], seed)
            metrics = (_stage1 if name == "stage1" else _stage2)(part, stages[name], draws)
            for (label, metric), three in metrics.items():
                row = {"stage": name, "condition": one, "degradation": part["degradation"].iloc[0]}
                row |= {"level": part["level"].iloc[0], "label": label, "metric": metric, **three}
                found.append(row | {"images": _count(part, label, metric)})
    return pd.DataFrame(found)


def by_condition(scores: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each condition's name and rows, in the table's order; the rows in the order of their paths, the same in each.

    Raises:
        ValueError: a condition does not hold the same images as the others.
    """
    first = None
    for (degradation, level), part in scores.groupby(["degradation", "level"], sort=False):
        name, part = registry.name(degradation, level), part.sort_values("path", ignore_index=True)
        first = part["path"] if first is None else first
        if not part["path"].equals(first):
            raise ValueError(f"{name!r} does not hold the same images as the other conditions; sweep again")
        yield name, part


def _stage1(part: pd.DataFrame, stage: Stage, draws: Draws) -> Metrics:
    fake, called = true_class(part).eq("fake").to_numpy(), part["prediction"].eq("fake").to_numpy()
    one = part[[f"{FIRST}real", f"{FIRST}fake"]].to_numpy()
    once, weights = predictions(stage, one) == "fake", draws.weights
    kinds = part["label"].where(fake, "RealPhotos").to_numpy()
    both = {
        "auc": [metrics_module.weighted_auc(weights, fake, x) for x in (part["logit_fake"].to_numpy(), one[:, 1])],
        ACCURACY["stage1"]: [metrics_module.recall(weights, fake, x == fake) for x in (called, once)],
    }
    return {
        (ALL, "false_positive_rate"): draws.share(called, ~fake),
        (ALL, "true_positive_rate"): draws.share(called, fake),
        **_crops(both, draws),
        **_calibration(part, stage, draws),
        **{(kind, "recall"): draws.share(called == fake, kinds == kind) for kind in np.unique(kinds)},
    }


def _stage2(part: pd.DataFrame, stage: Stage, draws: Draws) -> Metrics:
    labels, right = part["label"].to_numpy(), part["prediction"].eq(part["label"]).to_numpy()
    once = predictions(stage, part[[f"{FIRST}{name}" for name in stage.classes]].to_numpy()) == labels
    return {
        **_crops({ACCURACY["stage2"]: [metrics_module.recall(draws.weights, labels, x) for x in (right, once)]}, draws),
        **_calibration(part, stage, draws),
        **{(kind, "recall"): draws.share(right, labels == kind) for kind in np.unique(labels)},
    }


def _crops(both: dict[str, list[np.ndarray]], draws: Draws) -> Metrics:
    """Metrics of all crops, of the first alone, and the difference."""
    found = {}
    for name, (every, first) in both.items():
        found |= {(ALL, name): draws.interval(every), (ALL, f"{name}_one_crop"): draws.interval(first)}
        found[ALL, f"{name}_gain"] = draws.interval(every - first)
    return found


def _calibration(part: pd.DataFrame, stage: Stage, draws: Draws) -> Metrics:
    return {
        (ALL, name): draws.interval(metrics_module.calibration_error(draws.weights, *confidences(part, temperature)))
        for name, temperature in (("ece_before", 1.0), ("ece", stage.temperature))
    }


def _count(part: pd.DataFrame, label: str, metric: str) -> int:
    photos = part["label"].eq("RealPhotos")
    if metric == "false_positive_rate":
        return int(photos.sum())
    if metric == "true_positive_rate":
        return int((~photos).sum())
    return len(part) if label == ALL else int(part["label"].eq(label).sum())


def wide(found: pd.DataFrame, stage: str, metrics: Sequence[str]) -> pd.DataFrame:
    """Some metrics over all images: a row per condition, each metric beside its _low and _high."""
    rows = found[(found["stage"] == stage) & (found["label"] == ALL) & found["metric"].isin(metrics)]
    columns = {
        f"{metric}{suffix}": rows[rows["metric"] == metric].set_index("condition")[value]
        for metric in metrics
        for value, suffix in (("value", ""), ("low", "_low"), ("high", "_high"))
    }
    return pd.DataFrame(columns).reindex(rows["condition"].unique()).rename_axis("condition")


def recalls(found: pd.DataFrame, stage: str) -> pd.DataFrame:
    """The share of each label's images that are judged right: a row per label, a column per condition, in its order."""
    rows = found[(found["stage"] == stage) & (found["metric"] == "recall")]
    table = rows.pivot(index="label", columns="condition", values="value")
    labels = sorted(table.index, key=lambda label: (label != "RealPhotos", label))
    return table.loc[labels, rows["condition"].unique()]


def series(found: pd.DataFrame, stage: str, metric: str) -> dict[str, pd.DataFrame]:
    """A metric along each operator that has several levels: series -> rows from mild to severe; see `grid.family`."""
    rows = found[(found["stage"] == stage) & (found["metric"] == metric) & (found["degradation"] != "none")]
    named = [registry.family(*one) for one in rows[["degradation", "level"]].itertuples(index=False)]
    rows = rows.assign(series=[name for name, _ in named], severity=[severity for _, severity in named])
    parts = rows.groupby("series", sort=False)
    return {name: part.sort_values("severity", ignore_index=True) for name, part in parts if len(part) > 1}


def breaking_points(found: pd.DataFrame, accuracy: float) -> pd.DataFrame:
    """The mildest level of each operator at which a stage's balanced accuracy falls below a bar.

    Args:
        found: from measure.
        accuracy: the bar.

    Returns:
        One row per stage and series of levels: mildest and worst, the levels tried; falls_below, the mildest level
        whose value is below; surely_below, the mildest whose whole interval is; NaN where none is. Where the images as
        they are lie below already, both hold no level, and `as_it_is` is what to read.
    """
    rows = []
    for stage, metric in ACCURACY.items():
        if stage not in set(found["stage"]):
            continue
        clean = wide(found, stage, [metric]).loc[registry.AS_IT_IS, metric]
        for name, part in series(found, stage, metric).items():
            row = {"stage": stage, "operator": name, "as_it_is": clean}
            row |= {"mildest": part["level"].iloc[0], "worst": part["level"].iloc[-1]}
            for column, limit in (("falls_below", "value"), ("surely_below", "high")):
                below = part.loc[part[limit] < accuracy, "level"]
                row[column] = below.iloc[0] if len(below) and clean >= accuracy else np.nan
            rows.append(row)
    columns = "stage operator as_it_is mildest worst falls_below surely_below".split()
    return pd.DataFrame(rows, columns=columns)


def summary(found: pd.DataFrame) -> dict:
    """The numbers that matter most, for metrics.json: the images as they are, and the worst condition of each kind."""
    kinds = {"false_positive_rate": "stage1", **{metric: stage for stage, metric in ACCURACY.items()}}
    result: dict = {"conditions": int(found["condition"].nunique())}
    for metric, stage in kinds.items():
        rows = found[(found["stage"] == stage) & (found["metric"] == metric)].dropna(subset="value")
        if len(rows):
            order = rows["value"].to_numpy() * (1 if metric == "false_positive_rate" else -1)
            chosen = {"as_it_is": rows.iloc[0], "worst": rows.iloc[int(order.argmax())]}
            result |= {f"{stage}_{metric}": {key: _plain(row) for key, row in chosen.items()}}
    return result


def _plain(row: pd.Series) -> dict:
    numbers = {key: None if pd.isna(row[key]) else float(row[key]) for key in ("value", "low", "high")}
    return {"condition": row["condition"], **numbers}
