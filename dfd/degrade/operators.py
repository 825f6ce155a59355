"""Degradations at a fixed level: one function per operator, and DEGRADATIONS, all that is said of each, at the end.

All operators take and give (B, 3, H, W) float images in [0, 1], RGB, not normalised, on the input's device. Other
shapes or values, and levels that mean nothing, are a ValueError. The codecs and `crop` also take uint8, 0 to 255, and
give it back: the same values, without the way over float.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

SUBSAMPLING = ("4:4:4", "4:2:2", "4:2:0")
KERNELS = ("nearest", "bilinear", "bicubic", "box", "lanczos")
_PILLOW = {"box": Image.Resampling.BOX, "lanczos": Image.Resampling.LANCZOS}  # kernels that torch lacks


def jpeg(images: Tensor, quality: float, subsampling: str = "4:2:0") -> Tensor:
    """Round-trip a batch through a real JPEG encoder, after Wang et al. 2020, arXiv:1912.11035.

    Pillow quality, 1 (worst) to 100; above 95 files grow fast for little. Chroma is subsampled as SUBSAMPLING names it.
    """
    _need(subsampling in SUBSAMPLING, f"subsampling must be one of {', '.join(SUBSAMPLING)}, got {subsampling!r}")
    return _through_codec(images, "JPEG", quality, subsampling)


def double_jpeg(
    images: Tensor, quality: float, first: float = 90, shift: int = 4, subsampling: str = "4:2:0"
) -> Tensor:
    """JPEG twice, the `first` quality on a grid of 8 x 8 blocks that lies `shift` pixels (0 to 15) further up and left.

    What happens to a photo that is saved, cut and saved again. The first pass sees the images with `shift` more rows
    and columns above and left, copies of the border, which are cut off before the second: the size stays.
    """
    _check(images, eight_bit=True)
    check_range("shift", shift, (0, 15))
    shift = int(shift)
    down, right = (torch.arange(-shift, side, device=images.device).clamp(min=0) for side in images.shape[-2:])
    saved = jpeg(images[..., down[:, None], right], first, subsampling)
    return jpeg(saved[..., shift:, shift:], quality, subsampling)


def webp(images: Tensor, quality: float) -> Tensor:
    """Round-trip a batch, float or uint8, through a lossy WebP encoder; Pillow quality, 1 (worst) to 100."""
    return _through_codec(images, "WebP", quality)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian of standard deviation sigma, 0 or more pixels, reflecting at the border."""
    _check(images)
    _need(0 <= sigma < math.inf, f"blur sigma must be 0 or more, got {sigma}")
    if sigma == 0:
        return images
    radius = min(max(1, round(3 * sigma)), min(images.shape[-2:]) - 1)
    return TF.gaussian_blur(images, [2 * radius + 1] * 2, [float(sigma)] * 2).clamp(0, 1)


def rescale(images: Tensor, factor: float, kernel: str = "bicubic") -> Tensor:
    """Resize by a factor, as a platform does with an upload: (B, 3, round(H * factor), round(W * factor)).

    All KERNELS but nearest are widened when they shrink an image, so that it does not alias. Box is the mean over
    the area of a pixel; when it enlarges it is nearest. Values are not rounded to 8 bits.
    """
    _check(images)
    _need(0 < factor < math.inf, f"rescale factor must be positive, got {factor}")
    _need(kernel in KERNELS, f"rescale kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    size = [max(1, round(side * factor)) for side in images.shape[-2:]]
    if kernel == "nearest":
        return F.interpolate(images, size=size, mode="nearest-exact")
    if kernel in _PILLOW:  # plane by plane, each a Pillow image of mode F
        planes = [Image.fromarray(plane) for plane in images.float().flatten(0, 1).cpu().numpy()]
        resized = np.stack([np.asarray(plane.resize(size[::-1], _PILLOW[kernel])) for plane in planes])
        return torch.from_numpy(resized).unflatten(0, (-1, 3)).to(images.device, images.dtype).clamp(0, 1)
    return F.interpolate(images, size=size, mode=kernel, antialias=True).clamp(0, 1)


def resample(images: Tensor, factor: float, kernel: str = "bicubic") -> Tensor:
    """Rescale by a factor and back, (B, 3, H, W) in [0, 1]: the size stays, give or take a pixel of rounding."""
    return rescale(rescale(images, factor, kernel), 1 / factor, kernel)


def noise(images: Tensor, sigma: float, generator: torch.Generator | None = None) -> Tensor:
    """Add white Gaussian noise, whose sigma of 0.02 is about five grey levels of 255, and clip to [0, 1]."""
    _check(images)
    _need(0 <= sigma < math.inf, f"noise sigma must be 0 or more, got {sigma}")
    drawn = torch.randn(images.shape, generator=generator, dtype=images.dtype).to(images.device)
    return (images + sigma * drawn).clamp(0, 1)


def gamma(images: Tensor, exponent: float) -> Tensor:
    """Raise (B, 3, H, W) images in [0, 1] to a power above 0: below 1 brightens, above 1 darkens."""
    _check(images)
    _need(0 < exponent < math.inf, f"gamma exponent must be positive, got {exponent}")
    return images**exponent


def crop(images: Tensor, fraction: float, position: tuple[float, float] = (0.5, 0.5)) -> Tensor:
    """Keep one window of the images, the same share of both sides: (B, 3, round(H * fraction), round(W * fraction)).

    Its position is down and across: (0, 0) is the upper left corner, (1, 1) the lower right one.
    """
    _check(images, eight_bit=True)
    _need(0 < fraction <= 1, f"crop fraction must be above 0 and at most 1, got {fraction}")
    _need(all(0 <= share <= 1 for share in position), f"crop position must be two numbers from 0 to 1, got {position}")
    height, width = (max(1, round(side * fraction)) for side in images.shape[-2:])
    top = round(position[0] * (images.shape[-2] - height))
    left = round(position[1] * (images.shape[-1] - width))
    return images[..., top : top + height, left : left + width]


def social(images: Tensor, quality: float, factor: float = 0.7) -> Tensor:
    """Imitate an upload to a social network: shrink by a factor (bicubic, antialiased), then JPEG 4:2:0."""
    _need(0 < factor <= 1, f"social only shrinks: factor must be above 0 and at most 1, got {factor}")
    return jpeg(rescale(images, factor), quality)


def recode(pixels: np.ndarray, format: str, quality: float, subsampling: str = "4:2:0") -> np.ndarray:
    """Pass (B, H, W, 3) uint8 pixels through one of Pillow's codecs, JPEG or WebP."""
    check_range(f"{format} quality", quality, (1, 100))
    decoded = np.empty_like(pixels)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(buffer := io.BytesIO(), format, quality=int(quality), subsampling=subsampling)
        decoded[i] = np.asarray(Image.open(buffer))
    return decoded


def as_float(images: Tensor) -> Tensor:
    """uint8 images as float in [0, 1]; others as they are."""
    return images / 255 if images.dtype == torch.uint8 else images


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB PIL image as a (1, 3, H, W) tensor in [0, 1]."""
    return TF.to_dtype(TF.pil_to_tensor(image), torch.float32, scale=True).unsqueeze(0)


def check_range(what: str, value: float, limits: tuple[float, float]) -> None:
    """Refuse what lies outside a range; one that starts with an int holds whole numbers only."""
    whole = isinstance(limits[0], int)
    fits = limits[0] <= value <= limits[1] and not (whole and value != int(value))
    _need(fits, f"{what} must be {limits[0]:g} to {limits[1]:g}{', a whole number' if whole else ''}, got {value:g}")


def _need(condition: bool, text: str) -> None:
    if not condition:
        raise ValueError(text)


def _check(images: Tensor, eight_bit: bool = False) -> None:
    _need(images.ndim == 4 and images.shape[1] == 3, f"expected images of shape (B, 3, H, W), got {(*images.shape,)}")
    if eight_bit and images.dtype == torch.uint8:
        return
    _need(images.is_floating_point(), f"expected float images, got {images.dtype}")
    if images.numel():
        low, high = images.detach().aminmax()
        _need(bool(0 <= low and high <= 1), f"expected values in [0, 1], got {low:.3f} to {high:.3f}")  # NaN fails too


def _through_codec(images: Tensor, *codec: Any) -> Tensor:
    _check(images, eight_bit=True)
    eight_bit = images if images.dtype == torch.uint8 else (images * 255).round().byte()
    decoded = torch.from_numpy(recode(eight_bit.permute(0, 2, 3, 1).cpu().numpy(), *codec))
    decoded = decoded.permute(0, 3, 1, 2).to(images.device)
    return decoded if images.dtype == torch.uint8 else decoded.to(images.dtype) / 255


@dataclass(frozen=True)
class Degradation:
    """One degradation, and all that is said of it. A range that starts with an int holds whole numbers only."""

    name: str
    operator: Callable[..., Tensor]  # images, level and options to images
    range: tuple[float, float]  # of the level
    neutral: float  # the level that changes nothing, or least; the further from it, the worse
    axis: str  # the level in words, for an axis
    text: str  # a caption's template, of the level and the operator's options
    options: Mapping[str, tuple] = field(default_factory=dict)  # of the grammar: words to choose from, or a range
    eight_bit: bool = False  # takes uint8 too
    codec: bool = False  # ends in a file
    label: str = ""  # the probe's slider and its unit
    unit: str = ""
    curve: tuple[float, ...] = ()  # levels of the probe's curve
    steps: tuple[float, ...] = ()  # of its slider, the neutral level among them


_CHROMA = {"subsampling": SUBSAMPLING}
_ALL = (
    Degradation("jpeg", jpeg, (1, 100), 100, "JPEG quality (Pillow)", "JPEG {level:.0f} {subsampling}",
                _CHROMA, eight_bit=True, codec=True, label="JPEG", unit="quality",
                curve=(95, 85, 75, 65, 50, 30), steps=(100, *range(95, 9, -1))),
    Degradation("double_jpeg", double_jpeg, (1, 100), 100, "quality of the second JPEG",
                "JPEG {first:.0f}, shift {shift}, JPEG {level:.0f} {subsampling}",
                _CHROMA | {"first": (1, 100), "shift": (0, 15)}, eight_bit=True, codec=True),
    Degradation("webp", webp, (1, 100), 100, "WebP quality (Pillow)", "WebP {level:.0f}", eight_bit=True, codec=True),
    Degradation("blur", gaussian_blur, (0.05, 50), 0, "sigma of the blur, pixels", "blur {level:.2f} px",
                label="Blur", unit="sigma, pixels",
                curve=(0.5, 1, 1.5, 2, 3), steps=tuple(tenths / 10 for tenths in range(31))),
    Degradation("rescale", rescale, (0.05, 8), 1, "new side / old side", "rescale {level:.2f} {kernel}",
                {"kernel": KERNELS}, label="Rescale", unit="factor",
                curve=(0.5, 0.75, 1.25, 1.5, 2), steps=tuple(part / 20 for part in range(5, 41))),
    Degradation("resample", resample, (0.05, 1), 1, "smaller side / old side",
                "resample {level:.2f} {kernel}", {"kernel": KERNELS}),
    Degradation("noise", noise, (0.0001, 1), 0, "sigma of the noise, share of white", "noise {level:.3f}"),
    Degradation("gamma", gamma, (0.1, 10), 1, "exponent", "gamma {level:.2f}"),
    Degradation("crop", crop, (0.05, 1), 1, "share of each side that is kept", "crop {level:.2f}", eight_bit=True),
    Degradation("social", social, (1, 100), 100, "JPEG quality after shrinking",
                "social {factor:.2f}, JPEG {level:.0f}", {"factor": (0.05, 1)}, codec=True),
)  # fmt: skip
DEGRADATIONS = {degradation.name: degradation for degradation in _ALL}
