"""The feature bank: what a frozen backbone says of several views of each image, computed once for every head."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dfd import config
from dfd.core import Interrupted, bar, code, deferred, digest, explained, load_rgb, read_json, sha256_of, write_json
from dfd.data.crops import RealFakeDataset, equalise, random_crop, seeds
from dfd.degrade import RandomDegrade, compose, parse_all
from dfd.degrade.operators import as_float
from dfd.inference.stage import uses_bfloat16
from dfd.models.clip import BLOCKS, SIDE, WHEEL_SHA256
from dfd.train.processes import build_loader, loading

CONDITIONS = parse_all(["jpeg 95", "jpeg 75", "jpeg 50"])  # the first views of each image, after it as it is
IMAGES, CHUNK = 8, 64  # images that pass the backbone at once, and between two states on disk
FILE = "features.npy"  # in the run folder, beside features.json


class Views(RealFakeDataset):
    """All views of an image, (V, 3, S, S) in [0, 1], each at a random window: the CONDITIONS, then `random` ones."""

    def __init__(self, table: pd.DataFrame, cfg: config.Training):
        degrade = RandomDegrade(smallest=cfg.crop_size) if cfg.degrade else None
        quality = cfg.equalise_quality if cfg.equalise else None
        super().__init__(table, table.attrs["root"], cfg.crop_size, degrade, quality)
        self.random = cfg.random_views

    def __getitem__(self, index: int) -> Tensor:
        photo = load_rgb(self.paths[index])
        views = [self.crops(compose(self.window(photo), condition.chain)) for condition in CONDITIONS]
        return torch.cat(views + [self.view(self.window(photo))[None] for _ in range(self.random)])

    def crops(self, image: Tensor) -> Tensor:
        """The crops, (N, 3, S, S) in [0, 1], that stand for an image under a condition: one."""
        return as_float(equalise(random_crop(image, self.crop_size), self.equalise_quality))


def build(table: pd.DataFrame, cfg: Any, backbone: Any) -> np.ndarray:
    """Features (N, V, D) float16 of the table's images, memory-mapped from the run folder; what is there is kept.

    A run that was stopped goes on where it was; other images or parameters start anew. Errors are those of the data.
    """
    path = Path(cfg.out) / FILE
    shape = (len(table), len(CONDITIONS) + cfg.random_views, backbone.head.in_features)
    made_from = (cfg.backbone, cfg.pretrained, cfg.crop_size, cfg.equalise and cfg.equalise_quality, cfg.seed, shape,
                 cfg.degrade, cfg.backbone == config.CLIPS[1] and sha256_of(config.ADAPTER))  # fmt: skip
    names = [condition.name for condition in CONDITIONS]
    key = digest(code(), WHEEL_SHA256, BLOCKS, SIDE, names, made_from, *table["sha256"])
    for other in path.parent.parent.glob(f"*/{path.stem}.json") if not path.exists() else ():  # a sweep's, over heads
        with suppress(OSError, ValueError):  # of a stranger's file
            if read_json(other) == {"key": key, "done": len(table)}:
                shutil.copyfile(other.with_suffix(path.suffix), path)
                shutil.copyfile(other, path.with_suffix(".json"))
    state = read_json(path.with_suffix(".json"))
    is_whole = path.exists() and path.stat().st_size > 2 * np.prod(shape)  # numpy would fill up one cut short with 0
    done = state["done"] if state.get("key") == key and is_whole else 0
    write_json(path.with_suffix(".json"), {"key": key, "done": done})  # before a bank of other parameters is emptied
    features = np.lib.format.open_memmap(path, "r+" if done else "w+", np.float16, shape)
    try:
        with path.open("r+b") as file:  # so that a full disk is an error now, and no bus error at some page
            getattr(os, "posix_fallocate", lambda *_: None)(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        raise explained(error, path) from error
    backbone.to(device := torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    draws = list(enumerate(seeds(len(table), cfg.seed, 1)))[done:]
    options = cfg.model_copy(update={"batch_size": IMAGES, "workers": cfg.workers if device.type == "cuda" else 0})
    loader = build_loader(Views(table, cfg), draws, options, device)  # beside a CPU's passes they take what they bring
    if done and draws:
        print(f"feature bank: going on after {done} of {len(table)} images.")
    with deferred("stopping after this batch; once more ends at once") as stop, torch.inference_mode(), loading():
        for views in bar(loader, desc="feature bank", unit="batch", disable=not draws):
            with torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(device)):
                answers = backbone.forward_features(views.flatten(0, 1).to(device))
            features[done : done + len(views)] = answers.float().cpu().numpy().reshape(-1, *shape[1:])
            done += len(views)
            if done % CHUNK == 0 or done == len(table) or stop.number:
                features.flush()
                write_json(path.with_suffix(".json"), {"key": key, "done": done})
            if stop.number:
                text = f"feature bank: stopped after {done} of {len(table)} images; the same again goes on from there."
                raise Interrupted(text, stop.number)
    return np.lib.format.open_memmap(path, "r")
