"""Checkpoints on disk: written whole, opened only where they hold what a stage needs; safetensors where they ship."""

import errno
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from dfd import config
from dfd.config import CHECKPOINTS, CLIPS, SUMS
from dfd.core.io import atomic_write, read_json
from dfd.core.runs import keep_freed
from dfd.data import sample
from dfd.models.networks import Attribution, RealFakeClassifier

ENTRY = "entry."  # before the names of tensors in a shipped stage that are no weights
REQUIRED = "stage classes config weights preprocessing crops threshold temperature history manifest_hash key".split()


def build_model(stage: str, settings: dict[str, Any], outputs: int, pretrained: bool = False) -> nn.Module:
    """The network of a stage from the plain values that its config, or its checkpoint, holds."""
    keep_freed()  # blocks of memory that each of its passes takes anew
    pretrained = pretrained or settings["backbone"] in CLIPS and settings["pretrained"]  # a checkpoint leaves it out
    if stage == "stage1":
        return RealFakeClassifier(settings["backbone"], pretrained, settings["representation"])
    extractor, size = settings.get("extractor", "unet"), (settings["unet_width"], settings["residual_bound"])
    return Attribution(settings["backbone"], outputs, *size, pretrained, extractor)


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint whole or not at all; an OSError (full disk, closed folder) leaves the previous file."""
    with atomic_write(path) as draft, draft.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch reports half a write this way
            full = shutil.disk_usage(path.parent).free < 2**20
            raise OSError(errno.ENOSPC if full else errno.EIO, f"{error}", str(path)) from error


def update_checkpoint(path: Path, **values: Any) -> None:
    """Replace some entries of a checkpoint, its threshold and temperature for instance."""
    save_checkpoint({**torch.load(path, map_location="cpu", weights_only=True), **values}, path)


def read_content(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, or a shipped stage: safetensors whose metadata has the rest as JSON."""
    if path.suffix != ".safetensors":
        return torch.load(path, map_location="cpu", weights_only=True)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - Windows keeps an open file
        entries = {name.removeprefix(ENTRY): tensors.pop(name) for name in [*tensors] if name.startswith(ENTRY)}
        return json.loads(file.metadata()["stage"]) | entries | {"weights": tensors}


def checked(content: Any) -> dict[str, Any]:
    """Refuse, with a ValueError, what is no checkpoint: anybody may have written the file."""
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not the entries of a stage")
    if missing := [key for key in REQUIRED if key not in content]:
        raise ValueError(f"it lacks {', '.join(missing)}; weights alone, a training's state, or another version's")
    side, classes, temperature = content["preprocessing"]["crop_size"], content["classes"], content["temperature"]
    tensors = [*content["weights"].values(), *filter(torch.is_tensor, content.values())]
    limits = [*map(content.get, "band operating_points validation ood_threshold conformal_quantile".split())]
    json.loads(json.dumps(limits), parse_constant=(odd := []).append)  # which is called for NaN and infinities alone
    in_range = {"stage": content["stage"] in CHECKPOINTS, "crop_size": isinstance(side, int) and 8 <= side <= 2048,
        "classes": len({*classes}) == len(classes) and all(type(n) is str and 0 < len(n) <= 200 for n in classes),
        "number of classes": 2 <= len(classes) <= 1000, "crops": type(content["crops"]) is int and content["crops"] > 0,
        "weights": all(bool(part.isfinite().all()) for part in tensors), "temperature": 0 < temperature < math.inf,
        "threshold": math.isfinite(content["threshold"]), "limits": not odd,
        "unet_width": 1 <= content["config"].get("unet_width", 1) <= 512}  # fmt: skip
    if wrong := [name for name, good in in_range.items() if not good]:
        raise ValueError(f"its {' and '.join(wrong)} cannot be right")
    return content


def find_model(model: str | None, tell: Callable[[str], object] = print) -> Path:
    """What to predict with: the folder given, else the newest measured run on real data, else the detector that ships.

    A run on the built-in data learnt simulated fakes, one that was never measured knows no limits: these are asked for.
    """

    def is_own(run: Path) -> bool:
        try:
            measured = read_json(run / "metrics.json")
        except (ValueError, OSError) as error:  # damaged, or of somebody who keeps it closed
            tell(f"{error}; its networks are passed over")
            return False
        pairs = ((run / f"train_{stage}.pt", run / name) for stage, name in CHECKPOINTS.items())
        if any(s.exists() and best.exists() and s.stat().st_mtime > best.stat().st_mtime for s, best in pairs):
            tell(f"{run} is being trained, or was stopped; its networks are passed over")
            return False
        return "stage1" in measured and sample.NOTE not in measured.get("notes", ())

    model = (os.path.dirname(model) or ".") if model and Path(model).is_file() else model  # its folder
    if model and (Path(model) / SUMS).exists():
        return Path(model)
    folders = [Path(model)] if model else filter(is_own, config.resolve("reports").glob("*/"))
    first, second = CHECKPOINTS.values()
    trained = [folder for folder in folders if (folder / first).exists()]
    if not trained and not model and (config.DETECTOR / SUMS).exists():
        return config.DETECTOR
    if not trained:
        remedy = "`make demo` or `python -m dfd run --data FOLDER` makes one"
        if model and (Path(model) / second).exists():
            remedy = f"it lacks {first}, which `python -m dfd train stage1 --out {model}` makes"
        raise FileNotFoundError(f"no trained model in {model or 'reports/'}: {remedy}")
    if not ((newest := max(trained, key=lambda folder: (folder / first).stat().st_mtime)) / second).exists():
        tell(f"{newest} has no stage 2: real or fake, and nothing of generators")
    return newest
