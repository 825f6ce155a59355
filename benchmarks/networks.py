"""Choices of the networks that a measurement stands behind."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.measure import Row, against
from dfd.models import EncoderClassifier, RealFakeClassifier, UNetRes


def rows(repeats: int) -> Iterator[Row]:
    """A training step in float32 against bfloat16: depthwise convolutions are why EfficientNet stays in float32."""
    images = torch.rand(16, 3, 64, 64)
    for model in (RealFakeClassifier(), UNetRes(), EncoderClassifier().backbone):
        slow, fast = (partial(step, model, images, bfloat16) for bfloat16 in (False, True))
        yield against(f"{type(model).__name__}: a step in float32, bare: in bfloat16", slow, fast, repeats)


def step(model: torch.nn.Module, images: torch.Tensor, bfloat16: bool) -> None:
    """One forward and backward pass."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss = model(images).float().square().mean()
    loss.backward()
