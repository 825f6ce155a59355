"""What training needs beside the classifiers: the PatchGAN discriminator D and the perceptual distance V."""

from __future__ import annotations

import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torchvision.models import VGG16_Weights, vgg16

from dfd.models.backbones import hub_answers


class PatchDiscriminator(nn.Module):
    """PatchGAN with spectral normalisation: 2 strided layers see patches of 34 x 34 pixels, 3 of 70 x 70.

    Isola et al. 2017, arXiv:1611.07004; the normalisation that keeps it stable is Miyato et al. 2018, arXiv:1802.05957.
    It holds a logit's change to about the image's, so without a gain a residual of a few hundredths could never be told
    apart by the margin of 1 that a hinge loss asks for. The width doubles with every layer, up to eight times.
    """

    def __init__(self, in_channels: int = 3, width: int = 64, layers: int = 3, gain: float = 1.0):
        super().__init__()
        self.gain = gain
        channels = [in_channels] + [width * min(2**i, 8) for i in range(layers + 1)]
        steps: list[nn.Module] = []
        for level, (inputs, outputs) in enumerate(pairwise(channels)):
            stride = 2 if level < layers else 1
            steps += [spectral_norm(nn.Conv2d(inputs, outputs, 4, stride, 1)), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*steps, spectral_norm(nn.Conv2d(channels[-1], 1, 4, 1, 1)))

    def forward(self, images: Tensor) -> Tensor:
        """One logit per patch, (B, 1, h, w), of (B, in_channels, H, W); H and W at least 2 ** (layers + 2)."""
        return self.gain * self.net(images)


LAYERS = {"relu1_2": 3, "relu2_2": 8, "relu3_3": 15}  # places in torchvision's vgg16().features
ADDRESS = VGG16_Weights.IMAGENET1K_V1.url


class VGGPerceptual(nn.Module):
    """Perceptual distance of two batches in VGG16's features, after Johnson et al. 2016, arXiv:1603.08155.

    LAYERS are the first three of the four that the paper reads; what lies deeper is not built. A layer's mean squared
    difference is divided by the mean square of the reference's features over the batch, so that no layer outweighs the
    others because its features are large.

    ImageNet weights come from torch's hub cache (528 MB), else from the network where it answers quickly. Without them
    the weights are Kaiming-normal, drawn from `seed`: such a distance still grows with the change, but has learnt
    nothing of what people notice (Zhang et al. 2018, arXiv:1801.03924). `weights` says which it has. It never learns,
    and works in float32 under autocast too: bfloat16's rounding is as large as the distance of a change of 1/1000.

    Raises:
        ValueError: a cached file that cannot be read.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, pretrained: bool = True, seed: int = 0):
        super().__init__()
        with torch.device("meta"):  # names and shapes alone: takes no memory, and nothing from the random generator
            features: Any = vgg16().features
        self.features = features[: max(LAYERS.values()) + 1].to_empty(device="cpu")
        path, source = _imagenet_file() if pretrained else (None, "not asked for ImageNet weights")
        if path:
            _load(self.features, path)
        else:
            generator = torch.Generator().manual_seed(seed)
            for layer in self.features:
                if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
                    nn.init.zeros_(layer.bias)
        self.weights = "ImageNet" if path else f"random, seed {seed}"
        print(f"VGG16: {self.weights} weights ({source}).")
        preprocessing = VGG16_Weights.IMAGENET1K_V1.transforms()
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(preprocessing, name)).view(1, 3, 1, 1))
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> VGGPerceptual:
        """Stay in eval mode, whatever the mode of the model around it."""
        return super().train(False)

    def forward(self, images: Tensor, reference: Tensor) -> Tensor:
        """Distance () of (B, 3, H, W) images in [0, 1] from a reference like them, which gets no gradient.

        0 where the two are equal, about 1 where they differ by as much as the reference's features are large. H and W
        are at least 4.
        """
        if images.shape != reference.shape:
            raise ValueError(f"images and reference differ in shape: {tuple(images.shape)}, {tuple(reference.shape)}")
        with torch.autocast(images.device.type, enabled=False):
            with torch.no_grad():
                wanted = self._layers(reference)
            gaps = []
            for features, target in zip(self._layers(images), wanted, strict=True):
                gaps.append(F.mse_loss(features, target) / (target.square().mean() + 1e-6))
            return torch.stack(gaps).mean()

    def _layers(self, images: Tensor) -> list[Tensor]:
        x = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        outputs = []
        for place, layer in enumerate(self.features):
            x = layer(x)
            if place in LAYERS.values():
                outputs.append(x)
        return outputs


def _imagenet_file() -> tuple[Path | None, str]:
    """Where the ImageNet weights lie now, or None; and the reason in words."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(ADDRESS).name
    if path.exists():
        return path, "from the local hub cache"
    if not hub_answers(ADDRESS):
        return None, "no ImageNet weights are cached or reachable"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(ADDRESS, str(path), hash_prefix=path.stem.split("-")[1])
    except (OSError, RuntimeError) as error:  # RuntimeError: the file does not have its hash
        return None, f"the download of ImageNet weights failed: {type(error).__name__}"
    return path, "downloaded"


def _load(features: nn.Sequential, path: Path) -> None:
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        features.load_state_dict({name: stored[f"features.{name}"] for name in features.state_dict()})
    except (EOFError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} does not hold VGG16's weights ({type(error).__name__}); delete it and run again"
        ) from error
