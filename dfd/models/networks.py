"""The networks of both stages: classifiers C, residual extractor G, discriminator D and perceptual distance V."""

from threading import get_ident
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from dfd.config import CLIPS
from dfd.models.backbones import build_backbone, high_pass, in_best_precision, lite0, with_imagenet_weights

MAPS: Any = {"features_only": True, "out_indices": (0, 1, 2)}  # relu1_2, 2_2, 3_3, or blocks with strides of 2, 4, 8


class RealFakeClassifier(nn.Module):
    """Stage 1: one logit per image, above 0 where it looks generated. Preprocessing is inside: it takes [0, 1] images.

    A backbone of timm's (ResNet50: Wang et al. 2020, arXiv:1912.11035) sees rgb, or highpass: 8 times that residual.
    """

    def __init__(self, backbone: str = "resnet50", pretrained: bool = False, representation: str = "rgb"):
        super().__init__()
        self.sees_residual = {"rgb": False, "highpass": True}[representation] and backbone not in CLIPS
        self.backbone = build_backbone(backbone, 1, pretrained)
        statistics = (self.backbone.default_cfg[name] for name in ("mean", "std"))
        self.mean, self.std = (nn.Buffer(torch.tensor(values).view(1, 3, 1, 1)) for values in statistics)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B,) of (B, 3, H, W) images in [0, 1], RGB."""
        seen = 8 * high_pass(images) if self.sees_residual else (images - self.mean) / self.std
        return in_best_precision(self.backbone, seen).squeeze(1)


class EncoderClassifier(nn.Module):
    """Stage 2's classifier: names the generator from a normalised residual; EfficientNet, arXiv:1905.11946."""

    def __init__(self, backbone: str = "tf_efficientnet_lite0", classes: int = 3, pretrained: bool = False):
        super().__init__()
        self.backbone = build_backbone(backbone, classes, pretrained)

    def forward(self, residual: Tensor) -> Tensor:
        """Logits (B, classes) of (B, 3, H, W) residuals with zero mean and unit deviation."""
        return in_best_precision(self.backbone, residual)


def normalize_residual(residual: Tensor, eps: float = 1e-4) -> Tensor:
    """Bring each residual of (B, 3, H, W), in any range, to zero mean and unit deviation over its pixels and channels.

    A constant residual becomes zero: eps is the smallest deviation that is still amplified to one.
    """
    centred = residual - residual.mean(dim=(1, 2, 3), keepdim=True)
    return centred / centred.square().mean(dim=(1, 2, 3), keepdim=True).add(1e-20).sqrt().clamp(min=eps)


class UNetRes(nn.Module):
    """UNet that gives the residual r = G(x) of an image: its fingerprint, bounded in amplitude.

    After GFD-Net, arXiv:2106.08749; the encoder-decoder with skips is Ronneberger et al. 2015, arXiv:1505.04597. Any H
    and W from 8 up, padded by reflection to a multiple of 8. It looks at the image's high-pass part too, and as an
    extractor starts from it (from_high_pass). Levels double channels from `width` on; `bound` is in units of [0, 1].
    """

    def __init__(self, width: int = 16, bound: float = 0.1, from_high_pass: bool = True):
        super().__init__()
        self.bound, self.from_high_pass = bound, from_high_pass
        sides = [width, 2 * width, 4 * width, 8 * width]
        self.down = nn.ModuleList(_block(i, o) for i, o in zip([6, *sides[:-1]], sides, strict=True))
        self.up = nn.ModuleList(_block(low + side, side) for low, side in zip(sides[:0:-1], sides[-2::-1], strict=True))
        self.to(memory_format=torch.channels_last)
        self.head: Any = nn.Conv2d(width, 3, 1)
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
        return (self.bound * torch.tanh(self.head(x) + start))[..., :height, :width]


def _block(inside: int, outside: int) -> nn.Sequential:
    steps: list[nn.Module] = [nn.Conv2d(inside, outside, 3, padding=1), nn.GroupNorm(min(4, outside), outside)]
    return nn.Sequential(*steps, nn.LeakyReLU(0.1), nn.Conv2d(outside, outside, 3, padding=1), nn.LeakyReLU(0.1))


class Attribution(nn.Module):
    """Stage 2 as one module: logits of C(normalize(G(x))).

    G is a unet, or a baseline's highpass residual or image, rgb. clip sees the image; its G, highpass, is for pictures.
    """

    def __init__(self, backbone: str, classes: int, unet_width: int, residual_bound: float, pretrained=False,
                 extractor="unet"):  # fmt: skip
        super().__init__()
        self.sees_image = backbone in CLIPS
        extractor = "highpass" if self.sees_image else extractor
        baselines: dict[str, Any] = {"highpass": high_pass, "rgb": nn.Identity()}
        self.generator = UNetRes(unet_width, residual_bound) if extractor == "unet" else baselines[extractor]
        self.classifier = EncoderClassifier(backbone, classes, pretrained)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of (B, 3, H, W) images in [0, 1]."""
        return self.classifier(images) if self.sees_image else self.name(self.generator(images))

    def name(self, residual: Tensor) -> Tensor:
        """Logits (B, classes) of (B, 3, H, W) residuals of any scale."""
        return self.classifier(normalize_residual(residual.float()))


def describe(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """A stage's logits of (B, 3, H, W) images in [0, 1], and the features (B, D) that its last layer takes."""
    features, own = list[Tensor](), get_ident()  # a hook hears other threads' passes too
    head = getattr(model, "classifier", model).backbone.get_classifier()
    with head.register_forward_pre_hook(lambda _, given: features.append(given[0]) if own == get_ident() else None):
        return model(images), features[0]


class PatchDiscriminator(nn.Module):
    """PatchGAN on frozen features: a logit for each patch from each of three blocks of EfficientNet-Lite0.

    Isola et al. 2017, arXiv:1611.07004; projected as by Sauer et al. 2021, arXiv:2111.01007; the heads have spectral
    normalisation, Miyato et al. 2018, arXiv:1802.05957. It sees eight times an image's high-pass part (docs/method.md).
    """

    BLOCKS = 3, 4, 5  # counted from 1, with strides of 8, 16 and 16 pixels

    def __init__(self, width: int = 64, pretrained: bool = True):
        super().__init__()
        self.network = lite0(pretrained).requires_grad_(False).eval()
        self.network.prune_intermediate_layers(list(self.BLOCKS), prune_head=True, extra_blocks=True)
        self.heads = nn.ModuleList()
        for block in self.BLOCKS:
            layers: list[nn.Module] = []
            channels = self.network.blocks[block - 1][-1].conv_pwl.out_channels
            for inputs, outputs, side in ((channels, width, 1), (width, width, 3), (width, 1, 1)):
                layers += [spectral_norm(nn.Conv2d(inputs, outputs, side, padding=side // 2)), nn.LeakyReLU(0.2)]
            self.heads.append(nn.Sequential(*layers[:-1]))

    def train(self, mode: bool = True) -> Self:
        """Set the heads' mode; what is frozen stays in eval mode."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 3, H / 16, W / 16), high for photos, of (B, 3, H, W) in [0, 1]; H and W at least 16."""
        options = {"indices": list(self.BLOCKS), "intermediates_only": True, "extra_blocks": True}
        maps = self.network.forward_intermediates(8 * high_pass(images), **options)
        logits = [head(x) for head, x in zip(self.heads, maps, strict=True)]
        return torch.cat([F.adaptive_avg_pool2d(part, logits[-1].shape[-2:]) for part in logits], dim=1)


class VGGPerceptual(nn.Module):
    """Perceptual distance of two batches in VGG16's features, after Johnson et al. 2016, arXiv:1603.08155.

    A layer's mean squared difference is divided by the mean square of the reference's features over the batch. ImageNet
    weights, 553 MB, are looked for as for a backbone. Without them it is the first blocks of EfficientNet-Lite0, which
    has them installed. It works in float32.
    """

    def __init__(self, pretrained: bool = True):
        import timm

        super().__init__()
        with torch.device("meta"):  # takes no memory, and nothing from the random generator
            blank: Any = timm.create_model("vgg16", **MAPS)
        self.features, source = blank, "ImageNet weights were not asked for"
        if pretrained:
            self.features, source = with_imagenet_weights(blank, "vgg16", **MAPS)
        self.network = "EfficientNet-Lite0 in place of VGG16" if self.features is blank else "VGG16"
        print(f"Perceptual loss: {self.network}; {source}.")
        if self.features is blank:
            self.features = lite0(pretrained=True, **MAPS)
            self.features.blocks = self.features.blocks[:3]  # as far as it is looked at
        statistics = (self.features.default_cfg[name] for name in ("mean", "std"))
        self.mean, self.std = (nn.Buffer(torch.tensor(values).view(1, 3, 1, 1)) for values in statistics)
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever the mode of the model around it."""
        return super().train(False)

    def forward(self, images: Tensor, reference: Tensor) -> Tensor:
        """Distance () of (B, 3, H, W) images in [0, 1], H and W from 8 up, from a reference, which gets no gradient.

        0 where the two are equal, about 1 where they differ by as much as the reference's features are large.
        """
        with torch.autocast(images.device.type, enabled=False):
            pairs = zip(self._layers(images), self._layers(reference.detach()), strict=True)
            gaps = [F.mse_loss(layer, target) / (target.square().mean() + 1e-6) for layer, target in pairs]
            return torch.stack(gaps).mean()

    def _layers(self, images: Tensor) -> list[Tensor]:
        return self.features(((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last))
