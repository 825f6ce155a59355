"""What makes stage 2's residual a fingerprint: it can be carried to a photo, and it holds nothing else.

x is a fake, G the UNet, r = G(x) its residual, c a real photo, the carrier, and c + r the fingerprinted carrier. The
classifier C must name x's generator from c + r too; D, a PatchGAN, must take c + r for a photo; V, VGG16 features, must
find in it what they find in c. After GFD-Net, arXiv:2106.08749.
"""

from __future__ import annotations

from torch import Tensor, nn

from dfd.datasets import equalise
from dfd.losses import ADVERSARIAL
from dfd.models import PatchDiscriminator, VGGPerceptual
from dfd.parallel import gathered


class Disentangler(nn.Module):
    """D and V of stage 2, with the losses of the fingerprinted carrier.

    Args:
        bound: largest absolute residual, in units of the [0, 1] range.
        width: channels after the discriminator's first layer.
        layers: strided layers of the discriminator; 3 see patches of 70 x 70 pixels.
        loss: hinge or nonsaturating.
        pretrained: ImageNet weights for V where they can be had.
        adversarial: whether there is a D.
        perceptual: whether there is a V.
        quality: JPEG quality that every crop passes; none leaves the fingerprinted carriers as they are.
    """

    def __init__(
        self,
        bound: float = 0.1,
        width: int = 32,
        layers: int = 3,
        loss: str = "hinge",
        pretrained: bool = True,
        adversarial: bool = True,
        perceptual: bool = True,
        quality: int | None = None,
    ):
        super().__init__()
        self.discriminator = PatchDiscriminator(width=width, layers=layers, gain=1 / bound) if adversarial else None
        self.perceptual = VGGPerceptual(pretrained) if perceptual else None
        self.quality = quality
        self.of_discriminator, self.of_generator = ADVERSARIAL[loss]

    def discriminator_loss(self, carriers: Tensor, carried: Tensor) -> Tensor:
        """What D minimises: carriers are photos, fingerprinted carriers are not; no gradient reaches G."""
        on_photos, on_carried = (self.discriminator(images).float() for images in (carriers, carried.detach()))
        return self.of_discriminator(gathered(on_photos), gathered(on_carried))

    def generator_losses(self, carriers: Tensor, carried: Tensor) -> dict[str, Tensor]:
        """What G minimises for the look of fingerprinted carriers, by name: adversarial (D) and perceptual (V).

        Args:
            carriers: (B, 3, S, S) in [0, 1], c.
            carried: (B, 3, S, S) in [0, 1], c + r, with its graph.
        """
        found = {}
        if self.discriminator is not None:
            found["adversarial"] = self.of_generator(gathered(self.discriminator(carried).float()))
        if self.perceptual is not None:
            found["perceptual"] = self.perceptual(carried, carriers)
        return found

    def seen(self, carried: Tensor) -> Tensor:
        """Fingerprinted carriers as the model meets them, behind the JPEG of every crop; same shape and range.

        The gradient is that of doing nothing: a codec has none of its own. The straight-through estimator of Bengio et
        al. 2013, arXiv:1308.3432.
        """
        return carried + (equalise(carried.detach().clamp(0, 1), self.quality) - carried).detach()


def fingerprinted(carriers: Tensor, residual: Tensor) -> Tensor:
    """Carriers with a fingerprint put on, c + r: (B, 3, H, W) in [0, 1]; the gradient passes the clipping."""
    put = carriers + residual
    return put + (put.clamp(0, 1) - put).detach()
