"""The adversary of stage 1: a small UNet that launders fakes until they pass for photos.

x is a fake, G the UNet, x' = x + G(x) the laundered fake. D, a PatchGAN, says whether x' looks like a photo; V, VGG16
features, holds its content to x's; C, the detector, is to be evaded. G and D are trained in turns with C (Goodfellow
et al. 2014, arXiv:1406.2661), and C learns to call x' fake as well.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dfd.core.parallel import gathered
from dfd.losses import ADVERSARIAL, r1_penalty, real_fake_loss
from dfd.models.adversarial import PatchDiscriminator, VGGPerceptual
from dfd.models.classifiers import UNetRes


class Launderer(nn.Module):
    """G, D and V of stage 1, with the loss of each.

    Args:
        width: channels of the UNet's first level, and a quarter of the discriminator's.
        bound: largest change of a pixel, in units of the [0, 1] range.
        layers: strided layers of the discriminator; 3 see patches of 70 x 70 pixels.
        loss: hinge or nonsaturating.
        pretrained: ImageNet weights for V where they can be had.
        perceptual: whether there is a V.
        r1_weight: weight of the R1 penalty on D, which spectral norm keeps stable already.
    """

    def __init__(
        self,
        width: int = 8,
        bound: float = 0.03,
        layers: int = 3,
        loss: str = "hinge",
        pretrained: bool = True,
        perceptual: bool = True,
        r1_weight: float = 0.0,
    ):
        super().__init__()
        self.generator = UNetRes(width, bound, from_high_pass=False)
        self.discriminator = PatchDiscriminator(width=4 * width, layers=layers, gain=1 / bound)
        self.perceptual = VGGPerceptual(pretrained) if perceptual else None
        self.r1_weight = r1_weight
        self.of_discriminator, self.of_generator = ADVERSARIAL[loss]

    def forward(self, fakes: Tensor) -> Tensor:
        """Laundered fakes x + G(x): (B, 3, H, W) in [0, 1] for the same; the gradient passes the clipping."""
        laundered = fakes + self.generator(fakes).float()
        return laundered + (laundered.clamp(0, 1) - laundered).detach()

    def discriminator_loss(self, photos: Tensor, fakes: Tensor) -> Tensor:
        """What D minimises: photos are photos, laundered fakes are not; no gradient reaches G."""
        with torch.no_grad():
            laundered = self(fakes)
        photos = photos.clone().requires_grad_() if self.r1_weight else photos
        logits = self.discriminator(photos).float()
        loss = self.of_discriminator(gathered(logits), gathered(self.discriminator(laundered).float()))
        return loss + self.r1_weight / 2 * r1_penalty(logits, photos) if self.r1_weight else loss

    def generator_losses(self, fakes: Tensor, classifier: nn.Module) -> dict[str, Tensor]:
        """What G minimises, by name: adversarial (D), evasion (C) and perceptual (V).

        Args:
            fakes: (B, 3, H, W) in [0, 1].
            classifier: C, (B, 3, H, W) to logits (B,), above 0 for fake; evaluated as it predicts.
        """
        laundered = self(fakes)
        training = classifier.training
        classifier.eval()  # batch statistics of laundered fakes alone must not enter the detector's averages
        believed = gathered(classifier(laundered).float())
        found = {
            "adversarial": self.of_generator(gathered(self.discriminator(laundered).float())),
            "evasion": real_fake_loss(believed, torch.zeros_like(believed)),
        }
        classifier.train(training)
        if self.perceptual is not None:
            found["perceptual"] = self.perceptual(laundered, fakes)
        return found
