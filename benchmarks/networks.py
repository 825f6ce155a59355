"""Choices of the networks that a measurement stands behind."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from benchmarks.measure import Row, against
from dfd.core import runs
from dfd.models.networks import EncoderClassifier, RealFakeClassifier, UNetRes

SHAPE = (32, 3, 96, 96)  # of the images: a batch of profile quick


def rows(repeats: int) -> Iterator[Row]:
    """A training step in float32 against bfloat16: depthwise convolutions are why EfficientNet stays in float32.

    Then in channels_last, as all networks are, against contiguous, each backbone in its better precision.
    """
    runs.keep_freed()  # as training does
    images = torch.rand(SHAPE)
    for model in (RealFakeClassifier(), UNetRes(), EncoderClassifier().backbone):
        slow, fast = (partial(step, model, images, bfloat16) for bfloat16 in (False, True))
        yield against(f"{type(model).__name__}: a step in float32, bare: in bfloat16", slow, fast, repeats)
    for name, model, bfloat16 in _backbones():
        sides = [
            partial(step, copy.deepcopy(model).to(memory_format=one), images.contiguous(memory_format=one), bfloat16)
            for one in (torch.channels_last, torch.contiguous_format)
        ]
        yield against(f"{name}: a step in channels_last, bare: contiguous", *sides, repeats)


def long_rows(repeats: int) -> Iterator[Row]:
    """A training step as it is against torch.compile's, which needs a C++ compiler and half a minute a network."""
    runs.keep_freed()
    images = torch.rand(SHAPE).contiguous(memory_format=torch.channels_last)
    for name, model, bfloat16 in (*_backbones(), ("UNetRes", UNetRes(), True)):
        plain, compiled = (partial(step, one, images, bfloat16) for one in (model, torch.compile(model)))
        yield against(f"{name}: a step, bare: compiled", plain, compiled, repeats)


def _backbones() -> Iterator[tuple[str, nn.Module, bool]]:
    """Name, network, and whether it trains in bfloat16."""
    yield "ResNet50", RealFakeClassifier().backbone, True
    yield "EfficientNet-Lite0", EncoderClassifier().backbone, False


def step(model: nn.Module, images: torch.Tensor, bfloat16: bool) -> None:
    """One forward and backward pass."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss = model(images).float().square().mean()
    loss.backward()
