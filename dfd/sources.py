"""What can be given as an image: a path, a file's bytes, a PIL image, an array or a tensor."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

from dfd.images import ImageError, checked, load_rgb, to_rgb

Source: TypeAlias = str | Path | bytes | Image.Image | np.ndarray | Tensor


def is_batch(source: Any) -> bool:
    """Whether several images were given: a list or tuple, (B, H, W, 3) array, or (B, 3, H, W) tensor."""
    return isinstance(source, list | tuple) or (isinstance(source, np.ndarray | Tensor) and source.ndim == 4)


def as_rgb(source: Source) -> Image.Image:
    """Make an upright RGB image of whatever was given; limits of size hold for all of it.

    Args:
        source: a path or a file's bytes, see `dfd.images.load_rgb`; a PIL image of any mode that it takes; uint8 array
            (H, W, 3) or (H, W); float tensor (3, H, W) in [0, 1], rounded to 8 bits. RGB, not normalised.

    Raises:
        ImageError: a file or picture that cannot be used, and why.
        ValueError: an array or tensor of another shape, type or range.
        TypeError: something else.
    """
    if isinstance(source, str | Path | bytes):
        return load_rgb(source)
    if isinstance(source, Image.Image):
        try:
            with warnings.catch_warnings(action="ignore"):
                checked(source.size)
                source.load()
                return to_rgb(source)
        except (OSError, SyntaxError) as error:  # a file that was opened but not read yet
            raise ImageError(f"damaged or truncated: {error}") from error
    if isinstance(source, Tensor):
        return _from_tensor(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    raise TypeError(f"an image is a path, bytes, a PIL image, an array or a tensor; got {type(source).__name__}")


def _from_tensor(tensor: Tensor) -> Image.Image:
    if tensor.ndim != 3 or tensor.shape[0] != 3 or not tensor.is_floating_point():
        raise ValueError(f"a tensor is float (3, H, W) in [0, 1]; got {tensor.dtype} {tuple(tensor.shape)}")
    tensor = tensor.detach().float().cpu()
    if not (tensor.numel() and tensor.min() >= 0 and tensor.max() <= 1):  # NaN fails too
        raise ValueError("a tensor's values lie in [0, 1], not normalised, and there is at least one")
    return _from_array((tensor * 255).round().byte().permute(1, 2, 0).numpy())


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(f"an array is uint8 (H, W, 3) or (H, W); got {array.dtype} {array.shape}")
    checked(array.shape[1::-1])
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")
