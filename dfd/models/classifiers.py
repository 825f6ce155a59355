"""The classifiers C and the residual extractor G: RealFakeClassifier (stage 1), UNetRes and Attribution (stage 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfd.models.backbones import build_backbone, high_pass, in_best_precision


class RealFakeClassifier(nn.Module):
    """Stage 1: one logit per image, above 0 where it looks generated. Preprocessing is inside: it takes [0, 1] images.

    The backbone is any of timm's, ResNet50 as in Wang et al. 2020, arXiv:1912.11035; it sees the normalised image (rgb)
    or eight times its high-pass residual (highpass).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: str = "resnet50", pretrained: bool = False, representation: str = "rgb"):
        super().__init__()
        self.sees_residual = {"rgb": False, "highpass": True}[representation]
        self.backbone = build_backbone(backbone, 1, pretrained)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(self.backbone.default_cfg[name]).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B,) of (B, 3, H, W) images in [0, 1], RGB."""
        x = 8 * high_pass(images) if self.sees_residual else (images - self.mean) / self.std
        return in_best_precision(self.backbone, x).squeeze(1)


class EncoderClassifier(nn.Module):
    """Stage 2's classifier: names the generator from a normalised residual; EfficientNet, arXiv:1905.11946."""

    def __init__(self, backbone: str = "tf_efficientnet_lite0", classes: int = 3, pretrained: bool = False):
        super().__init__()
        if classes < 2:
            raise ValueError(f"attribution needs at least two generators, got {classes}")
        self.backbone = build_backbone(backbone, classes, pretrained)

    def forward(self, residual: Tensor) -> Tensor:
        """Logits (B, classes) of (B, 3, H, W) residuals with zero mean and unit deviation."""
        return in_best_precision(self.backbone, residual)

    def describe(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, classes), and the features (B, D) that the last layer makes them from."""
        deep = in_best_precision(self.backbone, residual, self.backbone.forward_features)
        return self.backbone.forward_head(deep), self.backbone.forward_head(deep, pre_logits=True)


def normalize_residual(residual: Tensor, eps: float = 1e-4) -> Tensor:
    """Bring each residual of (B, 3, H, W), in any range, to zero mean and unit deviation over its pixels and channels.

    A constant residual becomes zero: eps is the smallest deviation that is still amplified to one.
    """
    centred = residual - residual.mean(dim=(1, 2, 3), keepdim=True)
    deviation = centred.square().mean(dim=(1, 2, 3), keepdim=True).add(1e-20).sqrt()
    return centred / deviation.clamp(min=eps)


class UNetRes(nn.Module):
    """UNet that gives the residual r = G(x) of an image: its fingerprint, bounded in amplitude.

    After GFD-Net, arXiv:2106.08749; the encoder-decoder with skips is Ronneberger et al. 2015, arXiv:1505.04597.
    Any H and W from 8 up: the image is reflect-padded to a multiple of 8 and the residual cut back.

    The network looks at the image's high-pass part beside the image itself. As an extractor it also starts from that
    part (from_high_pass), where fingerprints live; a launderer starts from a residual of almost nothing. Each level has
    twice the channels of the one above, from `width` on; `bound` is the largest residual, in units of [0, 1].
    """

    def __init__(self, width: int = 16, bound: float = 0.1, from_high_pass: bool = True):
        super().__init__()
        self.bound, self.from_high_pass = bound, from_high_pass
        sides = [width, 2 * width, 4 * width, 8 * width]
        self.down = nn.ModuleList(_Block(i, o) for i, o in zip([6, *sides[:-1]], sides, strict=True))
        self.up = nn.ModuleList(_Block(low + side, side) for low, side in zip(sides[:0:-1], sides[-2::-1], strict=True))
        self.to(memory_format=torch.channels_last)
        self.head = nn.Conv2d(width, 3, 1)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)
        nn.init.normal_(self.head.weight, std=0.01)

    def forward(self, images: Tensor) -> Tensor:
        """Residual of (B, 3, H, W) images in [0, 1]: (B, 3, H, W) in [-bound, bound]."""
        height, width = images.shape[-2:]
        images = images.contiguous(memory_format=torch.channels_last)
        padded = F.pad(images, (0, -width % 8, 0, -height % 8), mode="reflect")
        fine = high_pass(padded)
        x = torch.cat([padded - 0.5, fine / self.bound], dim=1)  # (B, 6, H, W)
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], dim=1))
        start = fine / self.bound if self.from_high_pass else 0
        residual = self.bound * torch.tanh(self.head(x) + start)
        return residual[..., :height, :width]


class Attribution(nn.Module):
    """Stage 2 as one module: logits of C(normalize(G(x))).

    The extractor G is a unet, or in a baseline without one the fixed highpass residual or the image itself, rgb.
    """

    def __init__(
        self,
        backbone: str,
        classes: int,
        unet_width: int,
        residual_bound: float,
        pretrained: bool = False,
        extractor: str = "unet",
    ):
        super().__init__()
        if extractor not in ("unet", "highpass", "rgb"):
            raise ValueError(f"extractor must be unet, highpass or rgb, got {extractor!r}")
        if extractor == "unet":
            self.generator: nn.Module = UNetRes(unet_width, residual_bound)
        else:
            self.generator = HighPass() if extractor == "highpass" else nn.Identity()
        self.classifier = EncoderClassifier(backbone, classes, pretrained)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of (B, 3, H, W) images in [0, 1]."""
        return self.name(self.generator(images))

    def name(self, residual: Tensor) -> Tensor:
        """Logits (B, classes) of (B, 3, H, W) residuals of any scale."""
        return self.classifier(normalize_residual(residual.float()))

    def describe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, classes) of (B, 3, H, W) images in [0, 1], and the features (B, D) they are made from."""
        return self.classifier.describe(normalize_residual(self.generator(images).float()))


class HighPass(nn.Module):
    """The baseline's extractor: the fixed high-pass residual of (B, 3, H, W) images."""

    def forward(self, images: Tensor) -> Tensor:
        return high_pass(images)


class _Block(nn.Sequential):
    def __init__(self, inside: int, outside: int):
        super().__init__(
            nn.Conv2d(inside, outside, 3, padding=1),
            nn.GroupNorm(min(4, outside), outside),
            nn.LeakyReLU(0.1),
            nn.Conv2d(outside, outside, 3, padding=1),
            nn.LeakyReLU(0.1),
        )
