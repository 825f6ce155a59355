"""Networks for scoring on a CPU: batch norms folded into the convolutions before them."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

ALIKE = 1e-4  # largest change of an output that folding may make, relative to the largest output


@torch.inference_mode(False)
@torch.no_grad()
def folded(model: nn.Module, side: int) -> nn.Module:
    """A copy in which batch norms that follow a convolution are part of it, with the same outputs but for rounding.

    Which ones do is guessed from the order in which modules were registered, and then tried on noise: a model that does
    something else with them is given back as it is.

    Args:
        model: in eval mode, on the CPU, with a `describe` or not.
        side: pixels of the images that the trial takes.
    """
    quick = copy.deepcopy(model)
    for module in list(quick.modules()):
        for (name, convolution), (after, norm) in pairwise(list(module.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                joined = fuse_conv_bn_eval(convolution, norm).to(memory_format=torch.channels_last)
                setattr(module, name, joined)
                setattr(module, after, _what_follows(norm))
    noise = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    expected, found = model(noise), quick(noise)
    return quick if (found - expected).abs().max() <= ALIKE * expected.abs().max() else model


def _what_follows(norm: nn.BatchNorm2d) -> nn.Module:
    """What a norm of timm's does besides: drop and activate."""
    parts = [getattr(norm, name) for name in ("drop", "act") if isinstance(getattr(norm, name, None), nn.Module)]
    return nn.Sequential(*parts)
