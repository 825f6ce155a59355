"""Folders of pictures to measure with: cuts of the photos that the installed packages bring, PNG and JPEG in turns."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dfd.data.sample import PHOTOS

LABELS = ("RealPhotos", "ProGAN", "StyleGAN2", "BigGAN")


def folder(root: Path, count: int, side: int = 256) -> Path:
    """Fill a data folder: `count` pictures in all, of four classes, each side x side pixels; the same in every run."""
    for label in LABELS:
        (root / label).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda number: _save(root, number, side), range(count)))
    return root


def fill(root: Path, count: int) -> Iterator[None]:
    """The same as the first group of a benchmark, without a row of its own."""
    folder(root, count)
    yield from ()


def _save(root: Path, number: int, side: int) -> None:
    rng = np.random.default_rng(number)
    photos = _photos()
    photo = photos[rng.integers(len(photos))]
    whole = min(photo.size)
    cut = int(rng.integers(min(side, whole), whole + 1))
    left, top = (int(rng.integers(length - cut + 1)) for length in photo.size)
    image = photo.crop((left, top, left + cut, top + cut)).resize((side, side), Image.Resampling.BICUBIC)
    image = ImageOps.mirror(image) if rng.random() < 0.5 else image
    path = root / LABELS[number % len(LABELS)] / f"{number:06}"
    if number // len(LABELS) % 2:
        image.save(path.with_suffix(".jpg"), quality=int(rng.integers(75, 96)))
    else:
        image.save(path.with_suffix(".png"))


@cache
def _photos() -> list[Image.Image]:
    return [Image.open(photo.path).convert("RGB") for photo in PHOTOS]
