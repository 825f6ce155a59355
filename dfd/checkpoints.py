"""Checkpoints on disk: plain tensors and values, written whole or not at all, and the network that one describes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfd.models import Attribution, RealFakeClassifier


def build_model(stage: str, settings: dict[str, Any], outputs: int, pretrained: bool = False) -> nn.Module:
    """The network of a stage from the plain values that its config, or its checkpoint, holds."""
    if stage == "stage1":
        stem_stride = settings.get("stem_stride", 0)
        return RealFakeClassifier(settings["backbone"], pretrained, settings["representation"], stem_stride)
    extractor = settings.get("extractor", "unet")
    size = settings["unet_width"], settings["residual_bound"]
    return Attribution(settings["backbone"], outputs, *size, pretrained, extractor)


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write under a temporary name and rename, so that a killed run leaves the previous file whole.

    Raises:
        OSError: the disk is full or the folder cannot be written; the previous file is untouched.
    """
    draft = path.with_name(path.name + ".part")
    try:
        torch.save(content, draft)
        os.replace(draft, path)
    except RuntimeError as error:  # torch reports a failed write this way
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        draft.unlink(missing_ok=True)


def update_checkpoint(path: Path, **values: Any) -> None:
    """Replace some entries of a checkpoint, its threshold and temperature for instance."""
    save_checkpoint({**torch.load(path, map_location="cpu", weights_only=True), **values}, path)
