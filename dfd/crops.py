"""Where an image is cut for scoring, and the cutting: windows of the network's own size, never a resize."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from dfd.datasets import pad_to
from dfd.degrade import to_tensor

MODES = ("five", "grid", "random")
MAX_CROPS = 256  # per image, whatever is asked: time and memory stay bounded for any size

Corner = tuple[int, int]  # (top, left) of a window, pixels


@dataclass(frozen=True)
class Plan:
    """The windows of one image, all different, and how many its mode would take if nothing limited them."""

    corners: list[Corner]
    needed: int  # a grid's windows to cover the image, else the number asked for; above len(corners) when limited


def plan(height: int, width: int, size: int, crops: int, mode: str = "five") -> Plan:
    """Choose the windows of an image.

    Args:
        height, width: of the image, pixels; a side below size is padded to it when the window is cut.
        size: side of the square window, pixels.
        crops: windows at most; never more than MAX_CROPS, and fewer where the image holds fewer different ones.
        mode: five, the centre, then the four corners, then ever finer grids; grid, rows and columns that cover every
            pixel, spread evenly over the image when they may not; random, drawn under a seed made from the image's
            height and width, so that an image always gets the same ones.

    Raises:
        ValueError: an image without pixels, crops below 1, or an unknown mode.
    """
    if min(height, width) < 1:
        raise ValueError(f"an image of {width} x {height} pixels has nothing to cut")
    if crops < 1:
        raise ValueError(f"crops must be at least 1, got {crops}")
    if mode not in MODES:
        raise ValueError(f"crop mode must be one of {', '.join(MODES)}, got {mode!r}")
    down, right = max(height - size, 0), max(width - size, 0)  # the last window's top and left
    limit = min(crops, MAX_CROPS)
    if mode == "grid":
        rows, columns = math.ceil(height / size), math.ceil(width / size)
        return Plan(_grid(down, right, *_at_most(limit, rows, columns)), rows * columns)
    places = (down + 1) * (right + 1)
    if mode == "random":
        drawn = random.Random(f"{height} x {width}").sample(range(places), min(limit, places))
        corners = [divmod(place, right + 1) for place in drawn]
    else:
        corners = _five(down, right, size, limit)
    return Plan(corners, min(crops, places) if len(corners) == MAX_CROPS else len(corners))


def cut(image: Image.Image | Tensor, corner: Corner, size: int) -> Tensor:
    """Cut one window; only its own pixels become float.

    Args:
        image: a PIL image, or (1, 3, H, W) in [0, 1], RGB.
        corner: top and left, pixels.
        size: side S, pixels.

    Returns:
        (1, 3, S, S) in [0, 1], RGB; reflect-padded at the bottom and right where the image is smaller.
    """
    top, left = corner
    if isinstance(image, Image.Image):
        box = (left, top, min(left + size, image.width), min(top + size, image.height))
        window = to_tensor(image.crop(box).convert("RGB"))
    else:
        window = image[..., top : top + size, left : left + size]
    return pad_to(window, size)[..., :size, :size]


def _five(down: int, right: int, size: int, limit: int) -> list[Corner]:
    corners = dict.fromkeys([(down // 2, right // 2), (0, 0), (0, right), (down, 0), (down, right)])
    side = 2
    while len(corners) < limit and side * size < 2 * max(down, right) + 3 * size:  # until neighbours overlap by half
        side += 1
        new = [corner for corner in _grid(down, right, side, side) if corner not in corners]
        chosen = _spread(len(new) - 1, min(limit - len(corners), len(new)))  # evenly, not the topmost ones
        corners |= dict.fromkeys(new[i] for i in chosen)
    return list(corners)[:limit]


def _at_most(limit: int, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of the same proportions whose product is at most the limit."""
    if rows * columns > limit:
        rows = min(max(math.isqrt(limit * rows // columns), 1), limit)
        columns = min(columns, limit // rows)
    return rows, columns


def _grid(down: int, right: int, rows: int, columns: int) -> list[Corner]:
    lefts = _spread(right, columns)
    return [(top, left) for top in _spread(down, rows) for left in lefts]


def _spread(last: int, count: int) -> list[int]:
    """Different places from 0 to last, as even as whole pixels allow; a single one in the middle."""
    if count == 1:
        return [last // 2]
    return list(dict.fromkeys(round(i * last / (count - 1)) for i in range(count)))
