"""PatchGAN discriminator: says for every patch of an image whether it looks like a photograph."""

from __future__ import annotations

import torch.nn as nn
from torch import Tensor
from torch.nn.utils.parametrizations import spectral_norm


class PatchDiscriminator(nn.Module):
    """PatchGAN with spectral normalisation; three strided layers see patches of 70 x 70 pixels.

    Isola et al. 2017, arXiv:1611.07004; the normalisation that keeps it stable is Miyato et al. 2018, arXiv:1802.05957.

    Args:
        in_channels: channels of the input image.
        width: channels after the first layer, doubled by every strided layer up to eight times.
        layers: strided layers; 2 see 34 x 34 pixels, 3 see 70 x 70.
        gain: of the logits. Spectral normalisation holds a logit's change to about the image's, so without a gain a
            residual of a few hundredths could never be told apart by the margin of 1 that a hinge loss asks for.
    """

    def __init__(self, in_channels: int = 3, width: int = 64, layers: int = 3, gain: float = 1.0):
        super().__init__()
        self.gain = gain
        channels = [in_channels] + [width * min(2**i, 8) for i in range(layers + 1)]
        steps: list[nn.Module] = []
        for i in range(layers + 1):
            stride = 2 if i < layers else 1
            steps.append(spectral_norm(nn.Conv2d(channels[i], channels[i + 1], 4, stride, 1)))
            steps.append(nn.LeakyReLU(0.2))
        self.net = nn.Sequential(*steps, spectral_norm(nn.Conv2d(channels[-1], 1, 4, 1, 1)))

    def forward(self, images: Tensor) -> Tensor:
        """Give one logit per patch, high where the patch looks like a photograph.

        Args:
            images: (B, in_channels, H, W), both sides at least 2 ** (layers + 2).

        Returns:
            (B, 1, h, w) logits.
        """
        return self.gain * self.net(images)
