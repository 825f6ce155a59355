"""The built-in data set: tiles of photos that scikit-image, scikit-learn and matplotlib install, and simulated fakes.

Every tile is rebuilt by each simulator, so a class differs from the next in its traces and not in its content. All are
PNG of one size with the same names; `groups.csv` says which photo a tile or a fake comes from. Nothing is downloaded.
"""

from __future__ import annotations

import shutil
from dataclasses import astuple, dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from dfd.config import REAL
from dfd.core.io import atomic_write, digest, read_json, write_json, write_text
from dfd.core.runs import bar
from dfd.models import simulators

TILE = 128  # side of a tile, pixels
MOST, FEWEST = 24, 12  # tiles of one photo: more are thinned out at random, of a small photo they overlap
FLAT = 0.01  # a tile whose standard deviation is lower shows nothing
VERSION = 1  # raise it when the same seed and weights give other files
MARKER = "sample.json"
NOTE = (
    "The fakes of this run are simulated: photos rebuilt by small decoders made of each generator's blocks. In a "
    "trial, a detector trained on such fakes alone was worse than chance on real ones of unseen sources (AUC 0.30)."
)
LICENCES = """# Where these pictures come from

`RealPhotos/` holds tiles of photographs that Python packages install; the other folders hold the same
tiles rebuilt by *simulated* generators (`dfd/models/simulators.py`): no picture here comes from a real GAN.
Photos stored as JPEG carry its traces in their real tiles; the PNG format here adds none.

| photo | installed file | source and licence |
|---|---|---|
"""
SKIMAGE, SKLEARN, MATPLOTLIB = "skimage/data", "sklearn/datasets/images", "matplotlib/mpl-data/sample_data"


@dataclass(frozen=True)
class Photo:
    """One installed photograph and what its package says of its source."""

    name: str  # neutral name of its tiles, and its group
    folder: str  # inside the installed packages
    file: str
    source: str  # author or source, and licence

    @property
    def path(self) -> Path:
        package, *inner = self.folder.split("/")
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise FileNotFoundError(f"the package {package} is missing; install it")
        return Path(spec.origin).parent.joinpath(*inner, self.file)


PHOTOS = (
    Photo("astronaut", SKIMAGE, "astronaut.png", "NASA; public domain"),
    Photo("brick", SKIMAGE, "brick.png", "CC0Textures, Bricks25; CC0; warped, grey"),
    Photo("camera", SKIMAGE, "camera.png", "Lav Varshney; CC0; grey"),
    Photo("chelsea", SKIMAGE, "chelsea.png", "Stefan van der Walt; CC0"),
    Photo("clock", SKIMAGE, "clock_motion.png", "Stefan van der Walt; public domain; grey"),
    Photo("coffee", SKIMAGE, "coffee.png", "Rachel Michetti, Pikolo Espresso Bar; CC0"),
    Photo("coins", SKIMAGE, "coins.png", "Brooklyn Museum Collection; no known copyright restrictions; grey"),
    Photo("grass", SKIMAGE, "grass.png", "linolafett (DeviantArt, Grass-01); CC0; grey"),
    Photo("gravel", SKIMAGE, "gravel.png", "CC0Textures, Gravel04; CC0; grey"),
    Photo("hubble", SKIMAGE, "hubble_deep_field.jpg", "NASA, HubbleSite; public domain; stored as JPEG"),
    Photo("tissue", SKIMAGE, "ihc.png", "CMMI, immunohistochemistry; no known copyright restrictions"),
    Photo("moon", SKIMAGE, "moon.png", "not stated by scikit-image; grey"),
    Photo("motorcycle", SKIMAGE, "motorcycle_left.png", "Middlebury 2014 stereo benchmark; licence not stated"),
    Photo("retina", SKIMAGE, "retina.jpg", "Mikael Häggström; CC0; stored as JPEG"),
    Photo("rocket", SKIMAGE, "rocket.jpg", "SpaceX; public domain; stored as JPEG"),
    Photo("china", SKLEARN, "china.jpg", "Daniel Buechele; CC BY 2.0; stored as JPEG"),
    Photo("flower", SKLEARN, "flower.jpg", "vultilion; CC BY 2.0; stored as JPEG"),
    Photo("hopper", MATPLOTLIB, "grace_hopper.jpg", "James S. Davis, US Navy; public domain; stored as JPEG"),
)


LABELS = (REAL, *simulators.NAMES)


def build(folder: str | Path = "data/sample", seed: int = 0, progress: bool = True) -> Path:
    """Write the built-in data set, or what of it is missing, and give the folder back.

    Makes RealPhotos/ and one folder per simulator, all with the same file names, `groups.csv` (path, group),
    LICENCES.md and a marker. A complete folder of the same recipe (seed, weights, photos) is left alone, a partial one
    completed, an older one replaced. Of a grey photo the fakes are grey too: colour must not tell them apart.

    Args:
        folder: where to write.
        seed: of the choice of tiles and StyleGAN2's noise.
        progress: show a bar over the photos.

    Raises:
        FileNotFoundError: a package without its photo, or a simulator without weights.
        FileExistsError: the folder holds something else, which is not touched.
    """
    folder, recipe = Path(folder), _recipe(seed)
    complete = _begin(folder, recipe)
    groups = {photo.name: tiles(photo, seed) for photo in PHOTOS}
    rows = [(f"{label}/{name}", group) for label in LABELS for group, cut in groups.items() for name in cut]
    missing = {group for path, group in rows if not (folder / path).is_file()}
    if missing or not complete:
        _write(folder, groups, missing, seed, progress)
        write_text(folder / "groups.csv", pd.DataFrame(rows, columns=["path", "group"]).to_csv(index=False))
        photos = (f"| {photo.name} | {photo.folder}/{photo.file} | {photo.source} |\n" for photo in PHOTOS)
        write_text(folder / "LICENCES.md", LICENCES + "".join(photos))
        write_json(folder / MARKER, {"recipe": recipe, "complete": True})
    return folder


def is_sample(folder: str | Path) -> bool:
    """Whether `build` made this folder, so that its fakes are simulated."""
    return (Path(folder) / MARKER).is_file()


def tiles(photo: Photo, seed: int) -> dict[str, np.ndarray]:
    """Cut a photo in tiles that show something; where there are more than MOST, the seed chooses.

    Returns:
        Tiles by file name <photo>_<left>_<top>.png, each (TILE, TILE, 3) uint8 RGB, or (TILE, TILE) of a grey photo.
    """
    if not photo.path.is_file():
        raise FileNotFoundError(f"{photo.path} is missing; reinstall the package {photo.folder.split('/')[0]}")
    with Image.open(photo.path) as image:
        pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    height, width = pixels.shape[:2]
    overlap = (height // TILE) * (width // TILE) < FEWEST
    corners = [(x, y) for y in _starts(height, overlap) for x in _starts(width, overlap)]
    cut = {f"{photo.name}_{x}_{y}.png": pixels[y : y + TILE, x : x + TILE] for x, y in corners}
    cut = {name: tile for name, tile in cut.items() if tile.std() / 255 > FLAT}
    names = list(cut)
    chosen = np.random.default_rng([seed, PHOTOS.index(photo)]).permutation(len(names))[:MOST]
    return {names[i]: cut[names[i]] for i in sorted(chosen)}


def _starts(side: int, overlap: bool) -> list[int]:
    """First pixel of each tile along a side: side by side from zero, or spread evenly with one more where it fits."""
    if not overlap:
        return list(range(0, side - TILE + 1, TILE))
    return np.linspace(0, side - TILE, -(-side // TILE)).astype(int).tolist()


@torch.inference_mode()
def _write(folder: Path, groups: dict, missing: set, seed: int, progress: bool) -> None:
    """Write the photo tiles of the missing groups, and their reconstructions."""
    models = {}
    if missing:
        models = {name: simulators.load(name).to(memory_format=torch.channels_last) for name in simulators.NAMES}
    number = 0  # of the group's first tile, from which its noise follows
    for group, cut in bar(groups.items(), desc="sample", unit="photo", disable=not progress):
        if group in missing:
            grey = next(iter(cut.values())).ndim == 2
            stack = np.stack([np.stack([tile] * 3, axis=-1) if grey else tile for tile in cut.values()])
            images = torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255  # (tiles, 3, TILE, TILE)
            _save(folder / REAL, cut, stack)
            for name, model in models.items():
                rebuilt = model(images, seed=seed + number)
                if grey:
                    rebuilt = rebuilt.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
                _save(folder / name, cut, (rebuilt * 255).round().byte().permute(0, 2, 3, 1).numpy())
        number += len(cut)


def _save(folder: Path, names: dict, stack: np.ndarray) -> None:
    """Write (N, TILE, TILE, 3) uint8 pictures as PNG, each whole or not at all."""
    folder.mkdir(exist_ok=True)
    for name, pixels in zip(names, stack, strict=True):
        with atomic_write(folder / name, sync=False) as draft:
            Image.fromarray(pixels).save(draft, format="PNG")


def _recipe(seed: int) -> str:
    """Digest of all that the files follow from: version, seed, tile size, photos, weights."""
    paths = [simulators.WEIGHTS / f"{name}.safetensors" for name in simulators.NAMES]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"no weights at {path}; make them with: {simulators.REMAKE}")
    weights = [path.read_bytes() for path in paths]
    return digest(VERSION, seed, TILE, MOST, FEWEST, FLAT, [astuple(photo) for photo in PHOTOS], weights)


def _begin(folder: Path, recipe: str) -> bool:
    """Make the folder, or empty one of another recipe, and say whether it is complete already."""
    state = read_json(folder / MARKER)
    if state.get("recipe") == recipe:
        return state["complete"]
    if not state and folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty and was not made by this command; give another folder")
    for label in LABELS:
        shutil.rmtree(folder / label, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MARKER, {"recipe": recipe, "complete": False})
    return False
