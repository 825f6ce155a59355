"""One function per published loss."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def real_fake_loss(logits: Tensor, is_fake: Tensor, smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy of (B,) logits, targets s/2 and 1 - s/2 (Szegedy et al. 2016, arXiv:1512.00567).

    Args:
        logits, is_fake: (B,); is_fake is 0.0 or 1.0.
        smoothing: s, in [0, 1).
    """
    return F.binary_cross_entropy_with_logits(logits, is_fake * (1 - smoothing) + smoothing / 2)


def focal_loss(logits: Tensor, is_fake: Tensor, gamma: float = 2.0, smoothing: float = 0.0) -> Tensor:
    """Binary focal loss (Lin et al. 2017, arXiv:1708.02002): cross-entropy times (1 - p of the true class) ** gamma.

    Batches are balanced: there is no class weight. A smoothed label is the mixture of both labels' losses. The gradient
    stays finite where torchvision's sigmoid_focal_loss has NaN: gamma below 1 and a logit of 20.

    Args:
        logits, is_fake, smoothing: as in `real_fake_loss`.
        gamma: 0 or more; 0 is `real_fake_loss`, the larger, the less the images count that are already right.
    """
    if gamma < 0:
        raise ValueError(f"gamma must be 0 or more, got {gamma}")
    log_fake, log_real = F.logsigmoid(logits), F.logsigmoid(-logits)
    as_fake, as_real = -(gamma * log_real).exp() * log_fake, -(gamma * log_fake).exp() * log_real
    target = is_fake * (1 - smoothing) + smoothing / 2
    return (target * as_fake + (1 - target) * as_real).mean()


def source_loss(logits: Tensor, source: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of (B, classes) logits and (B,) class indices: the source term of GFD-Net, arXiv:2106.08749."""
    return F.cross_entropy(logits, source, label_smoothing=smoothing)


def consistency_loss(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two views' answers, (B, classes) logits (Hendrycks et al. 2020, arXiv:1912.02781).

    From 0, the same answer, to log 2; the gradient goes to both.
    """
    p, q = F.log_softmax(first, 1), F.log_softmax(second, 1)
    middle = torch.logaddexp(p, q) - math.log(2)
    return sum(F.kl_div(middle, view, log_target=True, reduction="batchmean") for view in (p, q)) / 2


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Hinge loss of D (Lim and Ye 2017, arXiv:1705.02894): photos above 1 and fakes below -1 cost nothing.

    Logits have any shape and are high where D sees a photo.

    Example:
        >>> hinge_discriminator_loss(torch.tensor([0.5, 3.0]), torch.tensor([-2.0]))
        tensor(0.2500)
    """
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def hinge_generator_loss(fake_logits: Tensor) -> Tensor:
    """G's side of the hinge loss (Miyato et al. 2018, arXiv:1802.05957): minus D's mean logit."""
    return -fake_logits.mean()


def nonsaturating_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Cross-entropy of D (Goodfellow et al. 2014, arXiv:1406.2661): -log p(real) of photos - log p(fake) of fakes."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def nonsaturating_generator_loss(fake_logits: Tensor) -> Tensor:
    """G's side (Goodfellow et al. 2014, arXiv:1406.2661): -log p(real) of fakes, steep where D is sure of them."""
    return F.softplus(-fake_logits).mean()


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """R1 (Mescheder et al. 2018, arXiv:1801.04406): mean squared norm of D's gradient at photos, without its gamma / 2.

    The caller multiplies by gamma / 2. The gradient is that of the sum of an image's patch logits, so it grows with
    the number of patches.

    Args:
        logits: of the photos, (B, ...), with the graph that leads back to `images`.
        images: (B, C, H, W), photos; `requires_grad_()` was called on them before D saw them.

    Returns:
        () whose own gradient reaches D's weights.
    """
    if not (images.requires_grad and logits.requires_grad):
        raise ValueError("r1_penalty needs logits with a graph: call images.requires_grad_() before D sees them")
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


# By the names that a config gives: the detector's loss; D's loss and G's.
DETECTION = {"bce": real_fake_loss, "focal": focal_loss}
ADVERSARIAL = {
    "hinge": (hinge_discriminator_loss, hinge_generator_loss),
    "nonsaturating": (nonsaturating_discriminator_loss, nonsaturating_generator_loss),
}
