"""Checkpoints on disk: plain tensors and values, written whole or not at all, and the network that one describes."""

from __future__ import annotations

import errno
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfd.atomic import whole
from dfd.models import Attribution, RealFakeClassifier

STAGES = ("stage1", "stage2")
NEEDED = "stage classes config weights preprocessing crops threshold temperature history manifest_hash key".split()


def build_model(stage: str, settings: dict[str, Any], outputs: int, pretrained: bool = False) -> nn.Module:
    """The network of a stage from the plain values that its config, or its checkpoint, holds."""
    if stage == "stage1":
        stem_stride = settings.get("stem_stride", 0)
        return RealFakeClassifier(settings["backbone"], pretrained, settings["representation"], stem_stride)
    extractor = settings.get("extractor", "unet")
    size = settings["unet_width"], settings["residual_bound"]
    return Attribution(settings["backbone"], outputs, *size, pretrained, extractor)


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint whole or not at all, so that a killed run leaves the previous file; see atomic.whole.

    Raises:
        OSError: the disk is full or the folder cannot be written; the previous file is untouched.
    """
    with whole(path) as draft, draft.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch reports half a write this way
            full = shutil.disk_usage(path.parent).free < 2**20
            raise OSError(errno.ENOSPC if full else errno.EIO, f"{error}", str(path)) from error


def update_checkpoint(path: Path, **values: Any) -> None:
    """Replace some entries of a checkpoint, its threshold and temperature for instance."""
    save_checkpoint({**torch.load(path, map_location="cpu", weights_only=True), **values}, path)


def described(content: Any) -> dict[str, Any]:
    """Check what was read from a file that anybody may have written, before a network is built from it.

    Raises:
        ValueError: it is something else, a checkpoint of another version, or its values make no sense.
    """
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"it holds a {type(content).__name__}, not the entries of a stage")
    if "networks" in content:
        raise ValueError("it is the state of a training that goes on; the finished stage is the file beside it")
    if missing := [key for key in NEEDED if key not in content]:
        raise ValueError(f"it lacks {', '.join(missing)}; weights alone, or written by another version of dfd")
    if content["stage"] not in STAGES:
        raise ValueError(f"it is of the stage {str(content['stage'])[:40]!r}, and this version knows stage1 and stage2")
    side, classes = content["preprocessing"]["crop_size"], content["classes"]
    sane = {
        "crop_size": isinstance(side, int) and 8 <= side <= 2048,
        "classes": 2 <= len(classes) <= 1000 and all(isinstance(name, str) and len(name) <= 200 for name in classes),
        "crops": isinstance(content["crops"], int) and content["crops"] >= 1,
        "temperature": 0 < content["temperature"] < math.inf,
        "threshold": math.isfinite(content["threshold"]),
        "unet_width": 1 <= content["config"].get("unet_width", 1) <= 512,
    }
    if wrong := [name for name, good in sane.items() if not good]:
        raise ValueError(f"its {' and '.join(wrong)} cannot be right")
    return content
