"""Torch datasets over the manifest: whole images in, equalised crops in [0, 1] out. Nothing is resized."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, WeightedRandomSampler

from dfd.decoded import read_pixels
from dfd.degrade import jpeg
from dfd.operators import as_float

if TYPE_CHECKING:
    import pandas as pd

MARGIN = 8  # pixels cut around a training crop before it is degraded, so that codec grids fall anywhere in the crop


def pad_to(images: Tensor, size: int) -> Tensor:
    """Reflect-pad (B, 3, H, W) to at least size on both sides, as often as it takes for tiny images."""
    if min(images.shape[-2:]) == 1:
        images = F.pad(images, (0, 1, 0, 1), mode="replicate")  # one pixel has nothing to reflect
    while min(images.shape[-2:]) < size:
        height, width = images.shape[-2:]
        down, right = min(max(size - height, 0), height - 1), min(max(size - width, 0), width - 1)
        images = F.pad(images, (0, right, 0, down), mode="reflect")
    return images


def random_crop(images: Tensor, size: int) -> Tensor:
    """Cut one random window of size x size from (B, 3, H, W), padding where the image is smaller (then it is float)."""
    if min(images.shape[-2:]) < size:
        images = pad_to(as_float(images), size)
    top, left = (int(torch.randint(side - size + 1, ())) for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]


def equalise(crops: Tensor, quality: int | None) -> Tensor:
    """Give crops of every class the same last codec: one JPEG round trip, 4:2:0, aligned with the crop.

    Without it a network learns "JPEG = real" (Grommelt et al. 2024, arXiv:2403.17608).

    Args:
        crops: (B, 3, S, S) in [0, 1], or uint8, which stays so.
        quality: Pillow quality; none leaves the crops as they are.
    """
    return crops if quality is None else jpeg(crops, quality)


class _Crops(Dataset):
    """One random view of one image of the table: cut, degrade, cut, equalise."""

    def __init__(
        self,
        table: pd.DataFrame,
        root: str | Path,
        crop_size: int,
        degrade: Callable[[Tensor], Tensor] | None,
        equalise_quality: int | None,
        read: Callable[[Path], Tensor] = read_pixels,
    ):
        if table.empty:
            raise ValueError("the table has no image for this data set")
        self.paths = [Path(root) / path for path in table["path"]]
        self.crop_size, self.degrade, self.equalise_quality, self.read = crop_size, degrade, equalise_quality, read

    def __len__(self) -> int:
        return len(self.paths)

    def view(self, window: Tensor) -> Tensor:
        """Degrade and cut a (1, 3, H, W) window, float or uint8, to (3, S, S) float."""
        window = self.degrade(window) if self.degrade else window
        return as_float(equalise(random_crop(window, self.crop_size), self.equalise_quality))[0]

    def window(self, index: int) -> Tensor:
        """A (1, 3, S + margin, S + margin) cut of the image, large enough for a rescaling to half the size.

        uint8, for as many steps as can do with it: JPEG needs 8 bits anyway. float where the image has to be padded.
        """
        image = self.read(self.paths[index])[None]
        height, width = image.shape[-2:]
        size = 2 * self.crop_size if self.degrade else self.crop_size
        window = random_crop(image, min(size + MARGIN, max(min(height, width), self.crop_size)))
        return window.flip(-1) if torch.rand(()) < 0.5 else window


class RealFakeDataset(_Crops):
    """Stage 1: (crop, is_fake) with the crop (3, S, S) in [0, 1], RGB, and is_fake 0.0 or 1.0.

    Draws come from torch's global generator: seed it, or wrap the set in `Seeded`, to repeat them.

    Args:
        table: rows of the manifest; `path` and `is_fake` are read.
        root: the folder that the paths are relative to.
        crop_size: S, pixels.
        degrade: takes and gives (B, 3, H, W) in [0, 1]; none trains on untouched crops.
        equalise_quality: JPEG quality that every crop passes; none leaves formats as they are.
        read: gives a file's pixels, (3, H, W) uint8; `decoded.Decoded` keeps them.

    Raises:
        ValueError: an empty table.
        ImageError: a file that cannot be read, by name.
    """

    def __init__(self, table, root, crop_size=128, degrade=None, equalise_quality=90, read=read_pixels):
        super().__init__(table, root, crop_size, degrade, equalise_quality, read)
        self.is_fake = torch.tensor(table["is_fake"].to_numpy(dtype=float), dtype=torch.float32)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.view(self.window(index)), self.is_fake[index]


class GFDTwoViewDataset(_Crops):
    """Stage 2: two independently degraded views, cut from one window of a fake, and its source.

    After GFD-Net, arXiv:2106.08749. Items are dicts: `view1`, `view2` (3, S, S) in [0, 1], RGB; `source`, the index
    of the generator in classes; and `carrier` (3, S, S), a real photo's crop, where carriers are given.

    Args:
        table: rows of the manifest; rows that are not fake are refused.
        root: the folder that the paths are relative to.
        classes: generator names, in the order of the logits.
        crop_size, degrade, equalise_quality, read: as in RealFakeDataset.
        carriers: draws the carrier; none leaves the key out.

    Raises:
        ValueError: an empty table, real photos in it, or a label that classes does not name.
    """

    def __init__(
        self, table, root, classes, crop_size=128, degrade=None, equalise_quality=90, carriers=None, read=read_pixels
    ):
        super().__init__(table, root, crop_size, degrade, equalise_quality, read)
        strangers = sorted(set(table["label"]) - set(classes))
        if strangers or not table["is_fake"].all():
            raise ValueError(f"stage 2 takes fakes of {list(classes)} only; the table also has {strangers or 'photos'}")
        self.source = [list(classes).index(label) for label in table["label"]]
        self.carriers = carriers

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        window = self.window(index)
        item = {"view1": self.view(window), "view2": self.view(window), "source": torch.tensor(self.source[index])}
        if self.carriers is not None:
            item["carrier"] = self.carriers()
        return item


class CarrierBuilder(_Crops):
    """Draws real photos of one split as carriers, cut and degraded like the fakes.

    Args:
        table: the whole manifest; real photos of `split` are used, and never those of another split.
        root: the folder that the paths are relative to.
        split: train, val or test.

    Raises:
        ValueError: the split has no real photo.
    """

    def __init__(self, table, root, split="train", crop_size=128, degrade=None, equalise_quality=90, read=read_pixels):
        photos = table[~table["is_fake"] & (table["split"] == split)]
        if photos.empty:
            raise ValueError(f"no real photo in split {split!r} to carry a fingerprint")
        super().__init__(photos, root, crop_size, degrade, equalise_quality, read)

    def __getitem__(self, index: int) -> Tensor:
        return self.view(self.window(index))

    def __call__(self) -> Tensor:
        """One carrier, (3, S, S) in [0, 1], drawn at random."""
        return self[int(torch.randint(len(self), ()))]


class Seeded(Dataset):
    """Another data set, whose items hang on the index and a seed alone: not on what was drawn before, nor by whom.

    It takes draws, (index, seed), in place of an index. torch's global generator is left as it was found.
    """

    def __init__(self, data: Dataset):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, draw: tuple[int, int]):
        index, seed = draw
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPU too
            return self.data[index]


def seeds(count: int, *key: int) -> list[int]:
    """As many seeds of 32 bits; each follows from the key and its own place alone, whatever the count."""
    return np.random.SeedSequence(key).generate_state(count).tolist()


def balanced_sampler(table: pd.DataFrame, draws: int, binary: bool, generator: torch.Generator | None = None):
    """Draw images so that classes weigh the same: real and fake halves, and generators alike within the fakes.

    Args:
        table: rows of the manifest, in the data set's order.
        draws: images per epoch; drawn with replacement.
        binary: stage 1 (real photos weigh as much as all fakes) or stage 2 (generators only).
        generator: makes the order repeatable.
    """
    counts = table["label"].value_counts()
    fakes = table.loc[table["is_fake"], "label"].nunique()
    weight = 1 / table["label"].map(counts).astype(float)
    if binary:
        weight = weight.where(~table["is_fake"], weight / max(fakes, 1))
    return WeightedRandomSampler(weight.tolist(), draws, replacement=True, generator=generator)


def spread(is_fake: np.ndarray) -> np.ndarray:
    """An order of draws in which photos and fakes are spread evenly, each kind in its own order: (N,) bool to indices.

    Batches then hold as many of each as the whole, give or take one, and the networks meet few sizes: for each new one
    a CPU's kernels have to be made anew.
    """
    place = np.empty(len(is_fake))
    for kind in (False, True):
        where = np.flatnonzero(is_fake == kind)
        place[where] = (np.arange(len(where)) + 0.5) / max(len(where), 1)
    return np.argsort(place, kind="stable")
