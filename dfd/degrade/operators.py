"""Degradations at a fixed level: one function per operator, and DEGRADATIONS, all that is said of each, at the end.

All operators take and give (B, 3, H, W) float images in [0, 1], RGB, not normalised, on the input's device. They also
take uint8, 0 to 255, which JPEG, WebP and `crop` give back: the same values, without the way over float. Images, levels
and options are checked where chains are applied, in `dfd.degrade.registry.compose`; the codecs check images too.
"""

import io
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

SUBSAMPLING = ("4:4:4", "4:2:2", "4:2:0")
KERNELS = ("nearest", "bilinear", "bicubic", "lanczos")


def jpeg(images: Tensor, quality: float, subsampling: str = "4:2:0") -> Tensor:
    """Round-trip a batch through a real JPEG encoder, after Wang et al. 2020, arXiv:1912.11035.

    Pillow quality, 1 (worst) to 100; above 95 files grow fast for little. Chroma is subsampled as SUBSAMPLING names it.
    """
    return _through_codec(images, "JPEG", quality, subsampling)


def double_jpeg(images: Tensor, quality: float, first: float = 90, shift: int = 4, subsampling="4:2:0") -> Tensor:
    """JPEG twice, as of a photo saved, cut and saved again: `first` on a grid `shift` pixels (0 to 15) up and left.

    The first pass sees copies of the border above and left, which are cut off before the second: the size stays.
    """
    shift = int(shift)
    down, right = (torch.arange(-shift, side, device=images.device).clamp(min=0) for side in images.shape[-2:])
    return jpeg(jpeg(images[..., down[:, None], right], first, subsampling)[..., shift:, shift:], quality, subsampling)


def webp(images: Tensor, quality: float) -> Tensor:
    """Round-trip a batch, float or uint8, through a lossy WebP encoder; Pillow quality, 1 (worst) to 100."""
    return _through_codec(images, "WebP", quality)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian of standard deviation sigma, 0 or more pixels, reflecting at the border."""
    images = as_float(images)
    if sigma == 0:
        return images
    from torchvision.transforms.v2.functional import gaussian_blur as blur  # it takes 1.5 s, and scanning blurs nothing

    radius = min(max(1, round(3 * sigma)), min(images.shape[-2:]) - 1)
    return blur(images, [2 * radius + 1] * 2, [float(sigma)] * 2).clamp(0, 1)


def rescale(images: Tensor, factor: float, kernel: str = "bicubic") -> Tensor:
    """Resize by a factor, as a platform does with an upload: (B, 3, round(H * factor), round(W * factor)).

    All KERNELS but nearest are widened when they shrink an image, so that it does not alias. Values are not rounded.
    """
    images = as_float(images)
    size = [max(1, round(side * factor)) for side in images.shape[-2:]]
    if kernel == "lanczos":  # torch lacks it: plane by plane, each a Pillow image of mode F
        planes = [Image.fromarray(plane) for plane in images.float().flatten(0, 1).cpu().numpy()]
        resized = np.stack([np.asarray(plane.resize(size[::-1], Image.Resampling.LANCZOS)) for plane in planes])
        return torch.from_numpy(resized).unflatten(0, (-1, 3)).to(images.device, images.dtype).clamp(0, 1)
    mode = "nearest-exact" if kernel == "nearest" else kernel
    return F.interpolate(images, size=size, mode=mode, antialias=kernel != "nearest").clamp(0, 1)


def resample(images: Tensor, factor: float, kernel: str = "bicubic") -> Tensor:
    """Rescale by a factor and back, (B, 3, H, W) in [0, 1]: the size stays, but for 0.5 / factor + 0.5 pixels."""
    return rescale(rescale(images, factor, kernel), 1 / factor, kernel)


def noise(images: Tensor, sigma: float, generator: torch.Generator | None = None) -> Tensor:
    """Add white Gaussian noise, whose sigma of 0.02 is about five grey levels of 255, and clip to [0, 1]."""
    images = as_float(images)
    drawn = torch.randn(images.shape, generator=generator, dtype=images.dtype).to(images.device)
    return (images + sigma * drawn).clamp(0, 1)


def gamma(images: Tensor, exponent: float) -> Tensor:
    """Raise (B, 3, H, W) images in [0, 1] to a power above 0: below 1 brightens, above 1 darkens."""
    return as_float(images) ** exponent


def crop(images: Tensor, fraction: float, position: tuple[float, float] = (0.5, 0.5)) -> Tensor:
    """Keep one window, this share of both sides; its position is down and across, (0, 0) the upper left corner."""
    height, width = (max(1, round(side * fraction)) for side in images.shape[-2:])
    top = round(position[0] * (images.shape[-2] - height))
    left = round(position[1] * (images.shape[-1] - width))
    return images[..., top : top + height, left : left + width]


def social(images: Tensor, quality: float, factor: float = 0.7) -> Tensor:
    """Imitate an upload to a social network: shrink by a factor (bicubic, antialiased), then JPEG 4:2:0."""
    return jpeg(rescale(images, factor), quality)


def recode(pixels: np.ndarray, format: str, quality: float, subsampling: str = "4:2:0") -> np.ndarray:
    """Pass (B, H, W, 3) uint8 pixels through one of Pillow's codecs, JPEG or WebP."""
    check(f"{format} quality", quality, (1, 100))
    decoded = np.empty_like(pixels)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(buffer := io.BytesIO(), format, quality=int(quality), subsampling=subsampling)
        decoded[i] = np.asarray(Image.open(buffer))
    return decoded


def as_float(images: Tensor) -> Tensor:
    """uint8 images as float in [0, 1]; others as they are."""
    return images / 255 if images.dtype == torch.uint8 else images


def to_bytes(image: Image.Image) -> Tensor:
    """An RGB PIL image as a (1, 3, H, W) uint8 tensor."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB PIL image as a (1, 3, H, W) tensor in [0, 1]."""
    return as_float(to_bytes(image))


def check(what: str, value: Any, allowed: tuple) -> None:
    """Refuse what is none of the words, or outside the range; one that starts with an int holds whole numbers only."""
    low, high, *_ = allowed
    is_whole = isinstance(low, int)
    if not (value in allowed if isinstance(low, str) else low <= value <= high and not (is_whole and value % 1)):
        raise ValueError(f"{what} must be in {allowed}{', a whole number' if is_whole else ''}, got {value}")


def check_images(images: Tensor) -> None:
    """Refuse other shapes, types and values than the operators take."""
    low, high = images.detach().aminmax() if images.numel() else (torch.nan, torch.nan)
    in_range = images.dtype == torch.uint8 or (images.is_floating_point() and 0 <= low and high <= 1)  # NaN fails too
    if images.ndim != 4 or images.shape[1] != 3 or not in_range:
        got = f"{images.dtype} of shape {(*images.shape,)}, {low:.3f} to {high:.3f}"
        raise ValueError(f"expected uint8 or float images of shape (B, 3, H, W), values in [0, 1], got {got}")


def _through_codec(images: Tensor, *codec: Any) -> Tensor:
    check_images(images)
    eight_bit = images if images.dtype == torch.uint8 else (images * 255).round().byte()
    decoded = torch.from_numpy(recode(eight_bit.permute(0, 2, 3, 1).cpu().numpy(), *codec))
    decoded = decoded.permute(0, 3, 1, 2).to(images)
    return decoded if images.dtype == torch.uint8 else decoded / 255


class Degradation(NamedTuple):
    """One degradation, and all that is said of it. A range that starts with an int holds whole numbers only."""

    name: str
    operator: Callable[..., Tensor]  # images, level and options to images
    range: tuple[float, float]  # of the level
    neutral: float  # the level that changes nothing, or least; the further from it, the worse
    options: Mapping[str, tuple] = {}  # of the grammar: words to choose from, or a range
    codec: bool = False  # saves a file, and does nothing else


_CHROMA, _KERNEL = {"subsampling": SUBSAMPLING}, {"kernel": KERNELS}
DEGRADATIONS = {row.name: row for row in (
    Degradation("jpeg", jpeg, (1, 100), 100, _CHROMA, codec=True),
    Degradation("double_jpeg", double_jpeg, (1, 100), 100, _CHROMA | {"first": (1, 100), "shift": (0, 15)}, codec=True),
    Degradation("webp", webp, (1, 100), 100, codec=True),
    Degradation("blur", gaussian_blur, (0.05, 50), 0),
    Degradation("rescale", rescale, (0.05, 8), 1, _KERNEL),
    Degradation("resample", resample, (0.05, 1), 1, _KERNEL),
    Degradation("noise", noise, (0.0001, 1), 0),
    Degradation("gamma", gamma, (0.1, 10), 1),
    Degradation("crop", crop, (0.05, 1), 1),
    Degradation("social", social, (1, 100), 100, {"factor": (0.05, 1)}))}  # fmt: skip
