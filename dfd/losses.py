"""One function per published loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def real_fake_loss(logits: Tensor, is_fake: Tensor, smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy with label smoothing (Szegedy et al. 2016, arXiv:1512.00567): targets s/2 and 1 - s/2.

    Args:
        logits: (B,).
        is_fake: (B,), 0.0 or 1.0.
        smoothing: s, in [0, 1).
    """
    return F.binary_cross_entropy_with_logits(logits, is_fake * (1 - smoothing) + smoothing / 2)


def source_loss(logits: Tensor, source: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the generator's name, with label smoothing; the source term of GFD-Net, arXiv:2106.08749.

    Args:
        logits: (B, classes).
        source: (B,), class indices.
        smoothing: in [0, 1).
    """
    return F.cross_entropy(logits, source, label_smoothing=smoothing)
