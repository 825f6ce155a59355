"""The sweep of notebook 03: every image under every condition of the grid, both stages, nothing done twice."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import pandas as pd
import PIL
import torch
from PIL import Image
from torch import Tensor

from dfd.atomic import whole
from dfd.degrade import compose, to_tensor
from dfd.grid import Condition
from dfd.images import load_rgb
from dfd.progress import bar
from dfd.scores import predictions
from dfd.stage import Prepared, Stage, prepared

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
        conditions: from `dfd.grid`.
        out: the run folder.
        crops: per image at most; none takes each checkpoint's number.
        seed: of the noise.

    Returns:
        The score table of each stage, one row per image and condition: the contract's columns (a chain is in
        `degradation`, its last step's level in `level`; see `dfd.grid.name`), and first_<class>.

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
    if found and found[0][1].strangeness is not None:
        columns["neighbours"] = [one.strangeness for _, one in found]
    with whole(path) as draft:
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
    known += ["neighbours"] * (stage.neighbours is not None)
    return table[known + [f"{FIRST}{name}" for name in stage.classes]]


def _fingerprint(stage: Stage) -> str:
    """A hash of all that decides the answers: weights, classes, what a crop goes through, and the training images."""
    found = hashlib.sha256(repr((stage.stage, stage.classes, stage.crop_size, stage.equalise_quality)).encode())
    for name, value in stage.model.state_dict().items():
        found.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    if stage.neighbours is not None:
        found.update(stage.neighbours.bank.tobytes())
    return found.hexdigest()[:12]


def _key(condition: Condition, images: pd.DataFrame, stage: Stage, crops: int | None, seed: int) -> str:
    """A hash of what a cell was made from, beside the weights."""
    here = Path(__file__).parent
    code = [(here / f"{name}.py").read_text("utf-8") for name in ("operators", "crops", "stage", "images")]
    noisy = seed if any(name == "noise" for name, *_ in condition.chain) else None
    cut = (crops or stage.crops, stage.crop_mode)
    files = images[["path", "sha256"]].to_numpy().tolist()
    made_of = json.dumps([condition.name, condition.chain, noisy, cut, files, code, PIL.__version__, torch.__version__])
    return hashlib.sha256(made_of.encode()).hexdigest()[:16]
