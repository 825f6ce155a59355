"""Decoded images in memory that loader processes share, for a training reads every file once an epoch."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, multiprocessing
from torchvision.transforms.v2 import functional as TF

from dfd.images import load_rgb

if TYPE_CHECKING:
    import pandas as pd


def read_pixels(path: str | Path) -> Tensor:
    """Decode a file to (3, H, W) uint8, RGB.

    Raises:
        ImageError: as in `load_rgb`.
    """
    return TF.pil_to_tensor(load_rgb(path))


class Decoded:
    """Reads files as `read_pixels` does, and keeps the pixels of as many as fit, for all processes forked later.

    Processes that are spawned, as on macOS and Windows, share no memory and decode each time.

    Args:
        table: rows of the manifest; `path`, `width` and `height` are read.
        root: the folder that the paths are relative to.
        limit: bytes; which images are kept is chosen at random, so that no class is kept before another.
    """

    def __init__(self, table: pd.DataFrame, root: str | Path, limit: float):
        rows = table.drop_duplicates("path").sample(frac=1, random_state=0)
        sizes = 3 * rows["width"].astype(int) * rows["height"].astype(int)
        ends = sizes.cumsum()
        kept = (ends <= limit).to_numpy()
        paths = [Path(root) / path for path in rows["path"][kept]]
        columns = [rows["height"][kept], rows["width"][kept], (ends - sizes)[kept]]
        self.places = dict(zip(paths, zip(*columns, strict=True), strict=True))  # path -> height, width, first byte
        self.numbers = {path: number for number, path in enumerate(paths)}
        self.memory = mmap.mmap(-1, max(int(sizes[kept].sum()) + len(paths), 1))  # the last: one byte an image, if kept
        self.bytes = torch.frombuffer(self.memory, dtype=torch.uint8)
        self.lock = multiprocessing.get_context().Lock()  # also a barrier: pixels before the byte that tells of them

    def __getstate__(self) -> dict:
        return {}  # nothing to share with a process that is not forked

    def __call__(self, path: Path) -> Tensor:
        """Pixels of a file, (3, H, W) uint8; they may be shared, so nobody writes to them."""
        places = getattr(self, "places", {})
        if path not in places:
            return read_pixels(path)
        height, width, first = places[path]
        pixels = self.bytes[first : first + 3 * height * width].view(height, width, 3).permute(2, 0, 1)
        flag = len(self.bytes) - len(places) + self.numbers[path]
        with self.lock:
            is_there = self.memory[flag]
        if not is_there:
            found = read_pixels(path)
            if found.shape != pixels.shape:  # changed since the scan
                return found
            pixels.copy_(found)
            with self.lock:
                self.memory[flag] = 1
        return pixels
