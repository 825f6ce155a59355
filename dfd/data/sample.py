"""The built-in data set: tiles of photos that scikit-image, scikit-learn and matplotlib install, and simulated fakes.

Every tile is rebuilt by each simulator, so classes differ in their traces and not in content, size, format or names.
"""

import itertools
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image

from dfd.config import REAL
from dfd.core import bar, io
from dfd.models import simulators

TILE = 128  # side of a tile, pixels
MOST, FEWEST = 24, 12  # tiles of one photo: more are thinned out at random, of a small photo they overlap
FLAT = 0.01  # a tile whose standard deviation is lower shows nothing
VERSION = 1  # raise it when the same seed and weights give other files
MARKER = "sample.json"
NOTE = (io.TEMPLATES / "sample.txt").read_text("utf-8").rstrip()
LABELS = (REAL, *simulators.NAMES)


class Photo(NamedTuple):
    """One installed photograph and what its package says of its source."""

    name: str  # neutral name of its tiles, and its group
    folder: str  # inside the installed packages
    file: str
    source: str  # author or source, and licence

    @property
    def path(self) -> Path:
        package, *inner = self.folder.split("/")
        return Path(str(files(package)), *inner, self.file)


PHOTOS = tuple(Photo(*row) for row in pd.read_csv(io.TEMPLATES / "photos.csv").itertuples(index=False))


@torch.inference_mode()
def build(folder: str | Path = "data/sample", seed: int = 0, progress: bool = True) -> Path:
    """Write the built-in data set and give the folder back; the seed is of the choice of tiles and StyleGAN2's noise.

    A complete folder of the same recipe (seed, weights, photos) is left alone, a partial or older one made anew; one
    with something else is a FileExistsError, a photo or weights that are missing a FileNotFoundError.
    """
    weights = [p.read_bytes() for n in simulators.NAMES if (p := simulators.WEIGHTS / f"{n}.safetensors").exists()]
    recipe = io.digest(VERSION, seed, TILE, MOST, FEWEST, FLAT, PHOTOS, weights)  # all that the files follow from
    folder, done = Path(folder), {"recipe": recipe, "complete": True}
    made = io.read_table(ties).get("path", [""]) if (ties := folder / "groups.csv").exists() else [""]
    if (state := io.read_json(folder / MARKER)) == done and all((folder / path).is_file() for path in made):
        return folder
    if not state and folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty and was not made by this command; give another folder")
    models = {name: simulators.load(name, simulators.WEIGHTS) for name in simulators.NAMES}  # which names a missing one
    groups = {photo.name: tiles(photo, seed) for photo in PHOTOS}
    folder.mkdir(parents=True, exist_ok=True)
    io.write_json(folder / MARKER, done | {"complete": False})
    for label in LABELS:
        (folder / label).mkdir(exist_ok=True)
        for tile in (folder / label).glob("*_[0-9]*_[0-9]*.png"):  # other files, which are not ours, stay
            tile.unlink()
    for cut in bar(groups.values(), desc="sample", unit="photo", disable=not progress):
        stack = np.stack(list(cut.values()))
        images = torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255  # (tiles, 3, TILE, TILE)
        pictures = {REAL: stack}
        for name, model in models.items():
            rebuilt = model.to(memory_format=torch.channels_last)(images, seed=seed)
            if (stack == stack[..., :1]).all():  # colour must not tell fakes of grey photos apart
                rebuilt = rebuilt.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
            pictures[name] = (rebuilt * 255).round().byte().permute(0, 2, 3, 1).numpy()
        for label, batch in pictures.items():
            for name, pixels in zip(cut, batch, strict=True):
                Image.fromarray(pixels).save(folder / label / name)
        seed += len(cut)  # the noise of each tile follows from its number
    rows = [(f"{label}/{name}", group) for label in LABELS for group, cut in groups.items() for name in cut]
    io.write_text(folder / "groups.csv", pd.DataFrame(rows, columns=["path", "group"]).to_csv(index=False))
    io.write_text(folder / "LICENCES.md", io.template("licences.md.j2").render(photos=PHOTOS))
    io.write_json(folder / MARKER, done)
    return folder


def tiles(photo: Photo, seed: int) -> dict[str, np.ndarray]:
    """The tiles of a photo that show something, at most MOST, by seed: (TILE, TILE, 3) uint8 RGB by file name."""
    with Image.open(photo.path) as image:
        pixels = np.asarray(image.convert("RGB"))
    sides = np.array(pixels.shape[:2])
    starts = [range(0, side - TILE + 1, TILE) for side in sides]
    if (sides // TILE).prod() < FEWEST:  # spread evenly, with one more where it fits
        starts = [np.linspace(0, side - TILE, -(-side // TILE)).astype(int) for side in sides]
    windows = ((top, left, pixels[top : top + TILE, left : left + TILE]) for top, left in itertools.product(*starts))
    cut = {f"{photo.name}_{left}_{top}.png": tile for top, left, tile in windows if tile.std() / 255 > FLAT}
    chosen = set(np.random.default_rng([seed, PHOTOS.index(photo)]).permutation(list(cut))[:MOST])
    return {name: tile for name, tile in cut.items() if name in chosen}
