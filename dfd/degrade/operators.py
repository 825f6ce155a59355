"""Degradations at a fixed level: one function per operator.

All take and give (B, 3, H, W) float images in [0, 1], RGB, not normalised, and refuse anything else with a ValueError.
Those in EIGHT_BIT also take uint8, 0 to 255, and give it back: the same values, without the way over float.
`dfd.degrade.registry` names them, chains them and draws from them.
"""

from __future__ import annotations

import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

SUBSAMPLING = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}
EIGHT_BIT = ("jpeg", "double_jpeg", "webp", "crop")  # names in `dfd.degrade.registry`
KERNELS = ("nearest", "bilinear", "bicubic", "box", "lanczos")
_PILLOW = {"box": Image.Resampling.BOX, "lanczos": Image.Resampling.LANCZOS}  # kernels that torch lacks


def jpeg(images: Tensor, quality: int, subsampling: str = "4:2:0") -> Tensor:
    """Round-trip a batch through a real JPEG encoder.

    The JPEG axis of the robustness notebook, after Wang et al. 2020, arXiv:1912.11035.

    Args:
        images: (B, 3, H, W) in [0, 1]; RGB, not normalised.
        quality: Pillow quality, 1 (worst) to 100; above 95 files grow fast for little.
        subsampling: chroma subsampling, one of 4:4:4, 4:2:2, 4:2:0.

    Returns:
        (B, 3, H, W) in [0, 1], on the input's device.

    Raises:
        ValueError: values outside [0, 1], a wrong shape, quality or subsampling.
    """
    if subsampling not in SUBSAMPLING:
        raise ValueError(f"subsampling must be one of {', '.join(SUBSAMPLING)}, got {subsampling!r}")
    options = {"quality": _whole("JPEG quality", quality, 1, 100), "subsampling": SUBSAMPLING[subsampling]}
    return _through_codec(images, format="JPEG", **options)


def jpeg_pixels(pixels: np.ndarray, quality: int) -> np.ndarray:
    """What `jpeg` does, at 4:2:0, for pixels that are 8 bits already: (B, H, W, 3) uint8 to the same."""
    return _recode(pixels, format="JPEG", quality=_whole("JPEG quality", quality, 1, 100), subsampling=2)


def double_jpeg(images: Tensor, quality: int, first: int = 90, shift: int = 4, subsampling: str = "4:2:0") -> Tensor:
    """JPEG twice, with the 8 x 8 blocks of the first pass not in line with those of the second.

    What happens to a photo that is saved, cut and saved again. The first pass sees the images with `shift` more rows
    and columns above and left, copies of the border, which are cut off before the second: the size stays.

    Args:
        images: (B, 3, H, W) in [0, 1].
        quality: Pillow quality of the second pass, 1 (worst) to 100.
        first: Pillow quality of the first pass.
        shift: pixels between the two grids, down and right, 0 to 15; 0 aligns them.
        subsampling: chroma subsampling of both passes.

    Returns:
        (B, 3, H, W) in [0, 1], on the input's device.

    Raises:
        ValueError: values outside [0, 1], a wrong shape, quality, shift or subsampling.
    """
    _check(images, eight_bit=True)
    shift = _whole("shift", shift, 0, 15)
    down, right = ((torch.arange(-shift, side).clamp(min=0)).to(images.device) for side in images.shape[-2:])
    saved = jpeg(images[..., down[:, None], right], first, subsampling)
    return jpeg(saved[..., shift:, shift:], quality, subsampling)


def webp(images: Tensor, quality: int) -> Tensor:
    """Round-trip a batch through a lossy WebP encoder.

    Args:
        images: (B, 3, H, W) in [0, 1]; RGB, not normalised.
        quality: Pillow quality, 1 (worst) to 100.

    Returns:
        (B, 3, H, W) in [0, 1], on the input's device.

    Raises:
        ValueError: values outside [0, 1], a wrong shape or quality.
    """
    return _through_codec(images, format="WEBP", quality=_whole("WebP quality", quality, 1, 100))


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian of standard deviation sigma, in pixels, reflecting at the border.

    Args:
        images: (B, 3, H, W) in [0, 1].
        sigma: standard deviation, pixels; 0 returns the images unchanged.

    Returns:
        (B, 3, H, W) in [0, 1].

    Raises:
        ValueError: values outside [0, 1], a wrong shape, or a negative sigma.
    """
    _check(images)
    if not 0 <= sigma < math.inf:
        raise ValueError(f"blur sigma must be 0 or more, got {sigma}")
    if sigma == 0:
        return images
    radius = min(max(1, round(3 * sigma)), min(images.shape[-2:]) - 1)
    return TF.gaussian_blur(images, [2 * radius + 1] * 2, [float(sigma)] * 2).clamp(0, 1)


def rescale(images: Tensor, factor: float, kernel: str = "bicubic") -> Tensor:
    """Resize by a factor; the size changes, as it does when a platform resizes an upload.

    All kernels but nearest are widened when they shrink an image, so that it does not alias. Box is the mean over
    the area of a pixel; when it enlarges it is nearest. Values are not rounded to 8 bits.

    Args:
        images: (B, 3, H, W) in [0, 1].
        factor: new side over old side, above 0.
        kernel: one of nearest, bilinear, bicubic, box, lanczos.

    Returns:
        (B, 3, round(H * factor), round(W * factor)) in [0, 1], at least one pixel.

    Raises:
        ValueError: values outside [0, 1], a wrong shape or kernel, or a factor that is not positive.
    """
    _check(images)
    if not 0 < factor < math.inf:
        raise ValueError(f"rescale factor must be positive, got {factor}")
    if kernel not in KERNELS:
        raise ValueError(f"rescale kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    size = [max(1, round(side * factor)) for side in images.shape[-2:]]
    if kernel == "nearest":
        return F.interpolate(images, size=size, mode="nearest-exact")
    if kernel in _PILLOW:
        return _pillow_resize(images, size, _PILLOW[kernel]).clamp(0, 1)
    return F.interpolate(images, size=size, mode=kernel, antialias=True).clamp(0, 1)


def noise(images: Tensor, sigma: float, generator: torch.Generator | None = None) -> Tensor:
    """Add white Gaussian noise of standard deviation sigma, in units of the [0, 1] range.

    Args:
        images: (B, 3, H, W) in [0, 1].
        sigma: standard deviation; 0.02 is about five grey levels of 255.
        generator: makes the noise repeatable; none uses torch's global one.

    Returns:
        (B, 3, H, W), clipped to [0, 1].

    Raises:
        ValueError: values outside [0, 1], a wrong shape, or a negative sigma.
    """
    _check(images)
    if not 0 <= sigma < math.inf:
        raise ValueError(f"noise sigma must be 0 or more, got {sigma}")
    drawn = torch.randn(images.shape, generator=generator, dtype=images.dtype).to(images.device)
    return (images + sigma * drawn).clamp(0, 1)


def gamma(images: Tensor, exponent: float) -> Tensor:
    """Raise every value to a power: a tone curve that keeps black and white.

    Args:
        images: (B, 3, H, W) in [0, 1].
        exponent: above 0; below 1 brightens, above 1 darkens.

    Returns:
        (B, 3, H, W) in [0, 1].

    Raises:
        ValueError: values outside [0, 1], a wrong shape, or an exponent that is not positive.
    """
    _check(images)
    if not 0 < exponent < math.inf:
        raise ValueError(f"gamma exponent must be positive, got {exponent}")
    return images**exponent


def crop(images: Tensor, fraction: float, position: tuple[float, float] = (0.5, 0.5)) -> Tensor:
    """Keep one window of the images, the same share of both sides.

    Args:
        images: (B, 3, H, W) in [0, 1].
        fraction: side of the window over side of the image, above 0, at most 1.
        position: where it lies, down and across: (0, 0) is the upper left corner, (1, 1) the lower right one.

    Returns:
        (B, 3, round(H * fraction), round(W * fraction)) in [0, 1], at least one pixel.

    Raises:
        ValueError: values outside [0, 1], a wrong shape, fraction or position.
    """
    _check(images, eight_bit=True)
    if not 0 < fraction <= 1:
        raise ValueError(f"crop fraction must be above 0 and at most 1, got {fraction}")
    if not all(0 <= share <= 1 for share in position):
        raise ValueError(f"crop position must be two numbers from 0 to 1, got {position}")
    height, width = (max(1, round(side * fraction)) for side in images.shape[-2:])
    top = round(position[0] * (images.shape[-2] - height))
    left = round(position[1] * (images.shape[-1] - width))
    return images[..., top : top + height, left : left + width]


def as_float(images: Tensor) -> Tensor:
    """uint8 images as float in [0, 1]; others as they are."""
    return images / 255 if images.dtype == torch.uint8 else images


def _check(images: Tensor, eight_bit: bool = False) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected images of shape (B, 3, H, W), got {tuple(images.shape)}")
    if eight_bit and images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise ValueError(f"expected float images, got {images.dtype}")
    if images.numel():
        low, high = images.detach().aminmax()
        if not (0 <= low and high <= 1):
            raise ValueError(f"expected values in [0, 1], got {low:.3f} to {high:.3f}")


def _whole(what: str, value: float, low: int, high: int) -> int:
    if not low <= value <= high or value != int(value):
        raise ValueError(f"{what} must be {low} to {high}, a whole number, got {value}")
    return int(value)


def _through_codec(images: Tensor, **options) -> Tensor:
    _check(images, eight_bit=True)
    whole = images if images.dtype == torch.uint8 else (images * 255).round().byte()
    decoded = _recode(whole.permute(0, 2, 3, 1).cpu().numpy(), **options)  # (B, H, W, 3)
    decoded = torch.from_numpy(decoded).permute(0, 3, 1, 2).to(images.device)
    return decoded if images.dtype == torch.uint8 else decoded.to(images.dtype) / 255


def _recode(pixels: np.ndarray, **options) -> np.ndarray:
    decoded = np.empty_like(pixels)
    for i, image in enumerate(pixels):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, **options)
        decoded[i] = np.asarray(Image.open(buffer))
    return decoded


def _pillow_resize(images: Tensor, size: list[int], kernel: Image.Resampling) -> Tensor:
    planes = images.float().flatten(0, 1).cpu().numpy()  # (3 * B, H, W), each a Pillow image of mode F
    resized = np.stack([np.asarray(Image.fromarray(plane).resize(size[::-1], kernel)) for plane in planes])
    return torch.from_numpy(resized).unflatten(0, (-1, 3)).to(images.device, images.dtype)
