"""One function per published loss that torch lacks. Logits of any shape are high where a discriminator sees a photo."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def real_fake_loss(logits: Tensor, is_fake: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of (B,) logits with targets s/2 and 1 - s/2 for smoothing s (arXiv:1512.00567, Szegedy 2016)."""
    return F.binary_cross_entropy_with_logits(logits, is_fake * (1 - smoothing) + smoothing / 2)


def consistency_loss(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence, 0 to log 2, of two views' (B, classes) logits (Hendrycks 2020, arXiv:1912.02781)."""
    p, q = F.log_softmax(first, 1), F.log_softmax(second, 1)
    middle = torch.logaddexp(p, q) - math.log(2)
    to_first, to_second = (F.kl_div(middle, view, log_target=True, reduction="batchmean") for view in (p, q))
    return (to_first + to_second) / 2  # the gradient goes to both


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Hinge loss of D (Lim and Ye 2017, arXiv:1705.02894): photos above 1 and fakes below -1 cost nothing."""
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def hinge_generator_loss(fake_logits: Tensor) -> Tensor:
    """G's side of the hinge loss (Miyato et al. 2018, arXiv:1802.05957): minus D's mean logit."""
    return -fake_logits.mean()
