"""Degradations: one function per operator at a fixed level, and RandomDegrade, which draws from them.

All take and give (B, 3, H, W) float images in [0, 1], RGB, not normalised. Training, the robustness sweep and
prediction use the same functions, so that a level means the same everywhere.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

SUBSAMPLING = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}


def jpeg(images: Tensor, quality: int, subsampling: str = "4:2:0") -> Tensor:
    """Round-trip a batch through a real JPEG encoder.

    The JPEG axis of the robustness notebook, after Wang et al. 2020, arXiv:1912.11035.

    Args:
        images: (B, 3, H, W) in [0, 1]; RGB, not normalised.
        quality: Pillow quality, 1 (worst) to 95.
        subsampling: chroma subsampling, one of 4:4:4, 4:2:2, 4:2:0.

    Returns:
        (B, 3, H, W) in [0, 1], on the input's device.

    Raises:
        ValueError: values outside [0, 1], a wrong shape, quality or subsampling.
    """
    if not 1 <= quality <= 95:
        raise ValueError(f"JPEG quality must be 1 to 95, got {quality}")
    if subsampling not in SUBSAMPLING:
        raise ValueError(f"subsampling must be one of {', '.join(SUBSAMPLING)}, got {subsampling!r}")
    return _through_codec(images, format="JPEG", quality=int(quality), subsampling=SUBSAMPLING[subsampling])


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
    if not 1 <= quality <= 100:
        raise ValueError(f"WebP quality must be 1 to 100, got {quality}")
    return _through_codec(images, format="WEBP", quality=int(quality))


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
    if sigma < 0:
        raise ValueError(f"sigma must not be negative, got {sigma}")
    if sigma == 0:
        return images
    radius = min(max(1, round(3 * sigma)), min(images.shape[-2:]) - 1)
    return TF.gaussian_blur(images, [2 * radius + 1] * 2, [float(sigma)] * 2).clamp(0, 1)


def rescale(images: Tensor, factor: float, kernel: str = "bicubic") -> Tensor:
    """Resize by a factor with antialiasing; the size changes, as it does when a platform resizes an upload.

    Args:
        images: (B, 3, H, W) in [0, 1].
        factor: new side over old side, above 0.
        kernel: bilinear or bicubic.

    Returns:
        (B, 3, round(H * factor), round(W * factor)) in [0, 1].

    Raises:
        ValueError: values outside [0, 1], a wrong shape, or a factor that is not positive.
    """
    _check(images)
    if factor <= 0:
        raise ValueError(f"factor must be positive, got {factor}")
    size = [max(1, round(side * factor)) for side in images.shape[-2:]]
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
    if sigma < 0:
        raise ValueError(f"sigma must not be negative, got {sigma}")
    drawn = torch.randn(images.shape, generator=generator, dtype=images.dtype).to(images.device)
    return (images + sigma * drawn).clamp(0, 1)


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "jpeg": jpeg,
    "webp": webp,
    "blur": gaussian_blur,
    "rescale": rescale,
    "noise": noise,
}


def at_level(images: Tensor, degradation: str, level: float) -> Tensor:
    """Apply one named degradation at a fixed level; "none" gives the images back.

    Args:
        images: (B, 3, H, W) in [0, 1].
        degradation: none, or a name in OPERATORS.
        level: quality for jpeg and webp, sigma for blur and noise, factor for rescale.

    Raises:
        ValueError: an unknown name, or a level that the operator refuses.
    """
    if degradation == "none":
        return images
    if degradation not in OPERATORS:
        raise ValueError(f"unknown degradation {degradation!r}; choose one of none, {', '.join(OPERATORS)}")
    return OPERATORS[degradation](images, int(level) if degradation in ("jpeg", "webp") else level)


class RandomDegrade:
    """Draw a chain of degradations for one training image: rescale, blur, noise, then one codec.

    Each step is taken with its own probability, in the order in which images meet them on their way through a
    social network. Draws come from torch's global generator, so a seeded loader makes them repeatable.

    Args:
        p_rescale, p_blur, p_noise, p_codec: probability of each step.
        factors: smallest and largest rescaling factor, drawn log-uniformly.
        sigmas: smallest and largest blur, pixels.
        noises: smallest and largest noise, in units of the [0, 1] range.
        qualities: lowest and highest codec quality; four draws in five are JPEG, the others WebP.
    """

    def __init__(
        self,
        p_rescale: float = 0.2,
        p_blur: float = 0.15,
        p_noise: float = 0.1,
        p_codec: float = 0.6,
        factors: tuple[float, float] = (0.6, 1.4),
        sigmas: tuple[float, float] = (0.2, 1.5),
        noises: tuple[float, float] = (0.003, 0.02),
        qualities: tuple[int, int] = (40, 95),
    ):
        self.p_rescale, self.p_blur, self.p_noise, self.p_codec = p_rescale, p_blur, p_noise, p_codec
        self.factors, self.sigmas, self.noises, self.qualities = factors, sigmas, noises, qualities

    def __call__(self, images: Tensor) -> Tensor:
        """Degrade (B, 3, H, W) images in [0, 1], all in the same way; a rescale changes H and W."""
        for name, level, options in self.draw():
            images = OPERATORS[name](images, level, **options)
        return images

    def draw(self) -> list[tuple[str, float, dict]]:
        """One chain: (operator, level, options) in the order of application; empty for an untouched image."""
        chain = []
        if _uniform() < self.p_rescale:
            low, high = np.log(self.factors)
            kernel = "bilinear" if _uniform() < 0.5 else "bicubic"
            chain.append(("rescale", float(np.exp(_uniform(low, high))), {"kernel": kernel}))
        if _uniform() < self.p_blur:
            chain.append(("blur", _uniform(*self.sigmas), {}))
        if _uniform() < self.p_noise:
            chain.append(("noise", _uniform(*self.noises), {}))
        if _uniform() < self.p_codec:
            quality = round(_uniform(*self.qualities))
            if _uniform() < 0.2:
                chain.append(("webp", quality, {}))
            else:
                chain.append(("jpeg", quality, {"subsampling": "4:4:4" if _uniform() < 0.3 else "4:2:0"}))
        return chain


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB PIL image as a (1, 3, H, W) tensor in [0, 1]."""
    return TF.to_dtype(TF.pil_to_tensor(image), torch.float32, scale=True).unsqueeze(0)


def _uniform(low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand(()))


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected images of shape (B, 3, H, W), got {tuple(images.shape)}")
    if images.numel() and not (0 <= images.min() and images.max() <= 1):
        raise ValueError(f"expected values in [0, 1], got {images.min():.3f} to {images.max():.3f}")


def _through_codec(images: Tensor, **options) -> Tensor:
    _check(images)
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()  # (B, H, W, 3)
    decoded = np.empty_like(pixels)
    for i, image in enumerate(pixels):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, **options)
        decoded[i] = np.asarray(Image.open(buffer))
    return torch.from_numpy(decoded).permute(0, 3, 1, 2).to(images.device, images.dtype) / 255
