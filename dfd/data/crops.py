"""Windows of images: the data sets of training, which cut and degrade at random, and the plan that scoring follows.

Images are (B, 3, H, W) in [0, 1], RGB, not normalised. Nothing is resized; what is too small is reflect-padded.
"""

import math
import random
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from dfd.config import CROP_MODES, Training
from dfd.core.images import load_rgb
from dfd.degrade.operators import as_float, jpeg, to_bytes, to_tensor

MARGIN = 8  # pixels, a side of a JPEG block: so much is cut around a training crop, and by less its grid is moved
MAX_CROPS = 256  # per image, whatever is asked: time and memory stay bounded for any size
Corner = tuple[int, int]  # (top, left) of a window, pixels


def pad_to(images: Tensor, size: int) -> Tensor:
    """Reflect-pad (B, 3, H, W) to at least size on both sides, as often as it takes for tiny images."""
    if min(images.shape[-2:]) >= size:
        return images
    rows, columns = (np.pad(np.arange(side), (0, max(size - side, 0)), mode="reflect") for side in images.shape[-2:])
    return images[..., rows[:, None], columns]


def random_crop(images: Tensor, size: int) -> Tensor:
    """Cut one random window of size x size from (B, 3, H, W), padding where the image is smaller."""
    images = pad_to(images, size)
    top, left = (int(torch.randint(side - size + 1, ())) for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]


def equalise(crops: Tensor, quality: int | None) -> Tensor:
    """Give crops one JPEG, unless none, as the last codec of every class (Grommelt et al. 2024, arXiv:2403.17608)."""
    return crops if quality is None else jpeg(crops, quality)


class RealFakeDataset(Dataset):
    """Stage 1: (crop, is_fake), one random view of an image of the table: cut, degraded, cut, equalised.

    The crop is (3, S, S) in [0, 1], RGB, S = `crop_size`; is_fake is 0.0 or 1.0. `degrade` takes and gives
    (B, 3, H, W) in [0, 1], or uint8. Draws come from torch's global generator; `Seeded` repeats them. A file that
    cannot be read is an ImageError, an empty table a ValueError.
    """

    def __init__(self, table, root, crop_size=128, degrade: Callable | None = None, equalise_quality: int | None = 90):
        if table.empty:
            raise ValueError("the table has no image for this data set")
        self.paths = [Path(root) / path for path in table["path"]]
        self.is_fake = torch.tensor(table["is_fake"].to_numpy(dtype=float), dtype=torch.float32)
        self.crop_size, self.degrade, self.equalise_quality = crop_size, degrade, equalise_quality
        sides = table.filter(["width", "height"]).to_numpy()
        smallest = min(sides[sides >= crop_size].tolist(), default=crop_size)  # those below are padded anyway
        self.side = min((2 * crop_size if degrade else crop_size) + MARGIN, smallest)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self.view(self.window(load_rgb(self.paths[index]))), self.is_fake[index]

    def view(self, window: Tensor) -> Tensor:
        """Degrade and cut a (1, 3, H, W) window, float or uint8, to (3, S, S) float."""
        window = self.degrade(window) if self.degrade else window
        return as_float(equalise(random_crop(window, self.crop_size), self.equalise_quality))[0]

    def window(self, image: Image.Image) -> Tensor:
        """A (1, 3, H, W) uint8 cut of an RGB image, mirrored or not, large enough for a rescaling to half the size.

        Where the smallest image that holds a crop is smaller, all are cut as small, and the grid of an earlier codec
        starts anywhere, by a border that is reflected: an image's size says nothing of its class.
        """
        top, left = (int(torch.randint(max(side - self.side, 0) + 1, ())) for side in (image.height, image.width))
        part = image.crop((left, top, min(left + self.side, image.width), min(top + self.side, image.height)))
        window = pad_to(to_bytes(part), self.side)
        window = window.flip(-1) if torch.rand(()) < 0.5 else window
        left, top = (int(torch.randint(MARGIN, ())) for _ in range(2))
        return F.pad(window.float(), [left, 0, top, 0], "reflect").byte()


class GFDTwoViewDataset(RealFakeDataset):
    """Stage 2: two independently degraded views, cut from one window of a fake, and its source.

    After GFD-Net, arXiv:2106.08749. Items are dicts: `view1`, `view2` (3, S, S) in [0, 1], RGB; `source`, an index of
    `classes`; and `carrier` (3, S, S), where `carriers` draws them. Photos and labels beyond classes are a ValueError.
    """

    def __init__(self, table, root, classes, crop_size=128, degrade=None, equalise_quality=90, carriers=None):
        super().__init__(table, root, crop_size, degrade, equalise_quality)
        strangers = sorted(set(table["label"]) - set(classes))
        if strangers or not table["is_fake"].all():
            raise ValueError(f"stage 2 takes fakes of {list(classes)} only; the table also has {strangers or 'photos'}")
        self.source, self.carriers = [list(classes).index(label) for label in table["label"]], carriers

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        window = self.window(load_rgb(self.paths[index]))
        item = {"view1": self.view(window), "view2": self.view(window), "source": torch.tensor(self.source[index])}
        return item | ({"carrier": self.carriers()} if self.carriers else {})


class CarrierBuilder(RealFakeDataset):
    """Draws real photos of one split, never of another, as carriers; a split without photos is a ValueError."""

    def __init__(self, table, root, split="train", crop_size=128, degrade=None, equalise_quality: int | None = 90):
        photos = table[~table["is_fake"] & (table["split"] == split)]
        if photos.empty:
            raise ValueError(f"no real photo in split {split!r} to carry a fingerprint")
        super().__init__(photos, root, crop_size, degrade, equalise_quality)

    def __call__(self) -> Tensor:
        """One carrier, (3, S, S) in [0, 1], drawn at random."""
        return self[int(torch.randint(len(self), ()))][0]


class Seeded(Dataset):
    """Another data set, indexed by draws (index, seed), on which alone an item hangs; torch's state stays as it was."""

    def __init__(self, data: RealFakeDataset):
        self.data = data

    def __len__(self) -> int:  # accelerate drops what it repeats in the last batch of a set whose length it knows
        return len(self.data)

    def __getitem__(self, draw: tuple[int, int]):
        index, seed = draw
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPU too
            return self.data[index]


def seeds(count: int, *key: int) -> list[int]:
    """As many seeds of 32 bits; each follows from the key and its own place alone, whatever the count."""
    return np.random.SeedSequence(key).generate_state(count).tolist()


class EpochSampler(Sampler):
    """The draws of an epoch, (index, seed) each: balanced, and a function of the seed and of `epoch` alone.

    With `binary`, photos and fakes take turns; else fakes alone are drawn. Generators weigh alike, and where sources
    are known these by the root of their size within a label; draws are with replacement and fill whole batches. All but
    each `every`-th batch have indices that count on from len(table).
    """

    def __init__(self, table: pd.DataFrame, cfg: Training, binary: bool, every: int = 1):
        is_fake = table["is_fake"].to_numpy(dtype=bool)
        label, source = table["label"], table.get("source", table["label"])
        root = table.groupby([label, source])["label"].transform("size") ** -0.5
        weight = (root / root.groupby(label).transform("sum")).to_numpy(dtype=float)
        self.sides = [np.flatnonzero(side) for side in ((~is_fake, is_fake) if binary else (is_fake,))]
        self.weights = [weight[rows] / weight[rows].sum() for rows in self.sides]
        self.images, self.seed, self.every, self.epoch = len(table), cfg.seed, every, 0
        self.batches, self.batch_size = max(1, (cfg.images_per_epoch or len(table)) // cfg.batch_size), cfg.batch_size

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng, count = np.random.default_rng([self.seed, self.epoch + 1]), -(-len(self) // len(self.sides))
        columns = [rng.choice(rows, count, p=p) for rows, p in zip(self.sides, self.weights, strict=True)]
        indices = np.stack(columns, axis=1).ravel()[: len(self)]
        is_shifted = np.arange(len(self)) // self.batch_size % self.every > 0
        yield from np.stack([indices + self.images * is_shifted, rng.integers(2**32, size=len(self))], axis=1).tolist()


class Plan(NamedTuple):
    """The windows of one image, all different, and how many its mode would take if nothing limited them."""

    corners: list[Corner]
    needed: int  # a grid's windows to cover the image, else the number asked for; above len(corners) when limited


def plan(height: int, width: int, size: int, crops: int, mode: str = "five", stride: int = 0) -> Plan:
    """Choose at most `crops` windows, of 1 and more pixels, by one of CROP_MODES; a side below size is padded later.

    Five is the centre, the corners, then ever finer grids; grid has one each `stride` pixels, or its size, or is spread
    evenly when it may not; random hangs on the size alone. Without stride MAX_CROPS is a limit. Else a ValueError.
    """
    if min(height, width, crops) < 1 or mode not in CROP_MODES:
        got = f"{crops} crops, mode {mode!r}, of {width} x {height} pixels"
        raise ValueError(f"crops must be at least 1, and their mode one of {', '.join(CROP_MODES)}; got {got}")
    down, right = max(height - size, 0), max(width - size, 0)  # the last window's top and left
    limit = crops if stride else min(crops, MAX_CROPS)
    if mode == "grid":
        rows, columns = (math.ceil(last / (stride or size)) + 1 for last in (down, right))
        if (needed := rows * columns) > limit:  # as many of each in the same proportions
            rows = min(max(math.isqrt(limit * rows // columns), 1), limit)
            columns = min(columns, limit // rows)
        return Plan(list(product(_spread(down, rows), _spread(right, columns))), needed)
    places = (down + 1) * (right + 1)
    if mode == "random":
        drawn = random.Random(f"{height} x {width}").sample(range(places), min(limit, places))
        corners = [divmod(place, right + 1) for place in drawn]
    else:
        corners = _five(down, right, size, limit)
    return Plan(corners, min(crops, places) if len(corners) == MAX_CROPS else len(corners))


def off_grid(corners: list[Corner], height: int, width: int, size: int, seed: int) -> list[Corner]:
    """The windows moved by up to MARGIN - 1 pixels into the image, so that they start anywhere on its codec's grid."""
    draw = random.Random(seed)

    def move(place: int, last: int) -> int:
        by = draw.randrange(MARGIN)
        return place + by if place + by <= last else max(place - by, 0)

    down, right = max(height - size, 0), max(width - size, 0)
    return [(move(top, down), move(left, right)) for top, left in corners]


def windows_of(image: Image.Image | Tensor, size: int, crops: int, mode: str = "five") -> Plan:
    """Plan for a PIL image or (1, 3, H, W) in [0, 1]; its content moves mode five's anywhere on its codec's grid."""
    height, width = image.shape[-2:] if isinstance(image, Tensor) else (image.height, image.width)
    chosen = plan(height, width, size, crops, mode)
    if mode != "five":
        return chosen
    seed = crc32(pixels_of(image, chosen.corners[0], size).tobytes())
    moved = [*dict.fromkeys(off_grid(chosen.corners, height, width, size, seed))]  # in a small image some may meet
    return Plan(moved, chosen.needed - len(chosen.corners) + len(moved))


def pixels_of(image: Image.Image | Tensor, corner: Corner, size: int) -> np.ndarray:
    """What there is of a window of an image, (H, W, 3) uint8; without torch for PIL's, whose threads get in the way."""
    top, left = corner
    if isinstance(image, Tensor):
        return (image[0, :, top : top + size, left : left + size] * 255).round().byte().permute(1, 2, 0).numpy()
    box = (left, top, min(left + size, image.width), min(top + size, image.height))
    return np.asarray(image.crop(box).convert("RGB"))


def cut(image: Image.Image | Tensor, corner: Corner, size: int) -> Tensor:
    """Cut one (1, 3, size, size) window in [0, 1], reflect-padded, of a PIL image or (1, 3, H, W) in [0, 1], RGB."""
    top, left = corner
    if isinstance(image, Image.Image):
        return pad_to(to_tensor(Image.fromarray(pixels_of(image, corner, size))), size)
    return pad_to(image[..., top : top + size, left : left + size], size)


def _five(down: int, right: int, size: int, limit: int) -> list[Corner]:
    corners, side = dict.fromkeys([(down // 2, right // 2), *product((0, down), (0, right))]), 2
    while len(corners) < limit and side * size < 2 * max(down, right) + 3 * size:  # until neighbours overlap by half
        side += 1
        new = [corner for corner in product(_spread(down, side), _spread(right, side)) if corner not in corners]
        chosen = _spread(len(new) - 1, min(limit - len(corners), len(new)))  # evenly, not the topmost ones
        corners |= dict.fromkeys(new[i] for i in chosen)
    return list(corners)[:limit]


def _spread(last: int, count: int) -> list[int]:
    """Different places from 0 to last, as even as whole pixels allow; a single one in the middle."""
    return [last // 2] if count == 1 else list(dict.fromkeys(round(i * last / (count - 1)) for i in range(count)))
