"""Built-in data: enough photos, the same content in every class, deterministic, resumable, careful with other files."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from dfd.data import sample
from dfd.models import simulators

CLASSES = ("RealPhotos", "ProGAN", "StyleGAN2", "BigGAN")


@pytest.fixture
def few(monkeypatch):
    """Cut the recipe to two photos, one of them grey, with two tiles each."""
    monkeypatch.setattr(sample, "PHOTOS", tuple(p for p in sample.PHOTOS if p.name in ("chelsea", "clock")))
    monkeypatch.setattr(sample, "MOST", 2)


@pytest.fixture
def built(few, tmp_path):
    return sample.build(tmp_path / "sample", progress=False)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_there_are_enough_photos_and_tiles_and_none_dominates():
    cut = {photo.name: sample.tiles(photo, seed=0) for photo in sample.PHOTOS}
    counts = {name: len(tiles) for name, tiles in cut.items()}
    assert len(counts) >= 12 and min(counts.values()) >= 4 and max(counts.values()) <= 24, counts
    assert 200 <= sum(counts.values()) <= 300
    assert {tile.shape[:2] for tiles in cut.values() for tile in tiles.values()} == {(128, 128)}


def test_a_tile_is_the_part_of_the_photo_that_its_name_says():
    photo = next(p for p in sample.PHOTOS if p.name == "coffee")
    whole = np.asarray(Image.open(photo.path))
    tiles = sample.tiles(photo, seed=0)
    for name, tile in tiles.items():
        left, top = map(int, name.removesuffix(".png").split("_")[1:])
        assert np.array_equal(tile, whole[top : top + 128, left : left + 128])
    assert len(tiles) == 12  # 3 x 4 of 400 x 600


def test_every_class_has_the_same_names_and_a_photo_is_one_group(built):
    names = {label: sorted(p.name for p in (built / label).iterdir()) for label in CLASSES}
    assert len(names["RealPhotos"]) == 4 and all(names[label] == names["RealPhotos"] for label in CLASSES)
    groups = pd.read_csv(built / "groups.csv")
    assert sorted(groups["path"]) == sorted(f"{label}/{name}" for label in CLASSES for name in names[label])
    assert (groups["group"] == groups["path"].str.extract(r"/(\w+?)_\d", expand=False)).all()
    licences = (built / "LICENCES.md").read_text()
    assert all(photo.name in licences and photo.source in licences for photo in sample.PHOTOS)


def test_fakes_are_png_of_one_size_that_resemble_their_photo_and_none_is_the_photo(built):
    for path in built.glob("*/*.png"):
        with Image.open(path) as image:
            assert (image.format, image.size, image.mode) == ("PNG", (128, 128), "RGB")
            pixels = np.asarray(image)
        real = np.asarray(Image.open(built / "RealPhotos" / path.name))
        if path.parent.name != "RealPhotos":
            assert 22 < peak_signal_noise_ratio(real, pixels) < 50
        if path.name.startswith("clock"):
            assert (pixels == pixels[..., :1]).all(), "colour tells this fake of a grey photo apart"


def test_two_builds_are_equal_and_another_seed_is_not(few, built, tmp_path):
    assert contents(sample.build(tmp_path / "again", progress=False)) == contents(built)
    assert contents(sample.build(tmp_path / "other", seed=1, progress=False)) != contents(built)


def test_a_complete_folder_needs_no_model(built, monkeypatch):
    monkeypatch.setattr(simulators, "load", lambda name: pytest.fail("rebuilt a complete folder"))
    sample.build(built, progress=False)


def test_a_killed_build_and_an_old_recipe_are_made_anew(few, built):
    before = contents(built)
    (built / "groups.csv").unlink()
    (built / sample.MARKER).write_text(json.dumps(json.loads(before[sample.MARKER]) | {"complete": False}))
    assert contents(sample.build(built, progress=False)) == before
    (built / "BigGAN" / "old_0_0.png").write_bytes(b"of an older version")
    (built / sample.MARKER).write_text(json.dumps({"recipe": "older", "complete": True}))
    assert contents(sample.build(built, progress=False)) == before


@pytest.mark.parametrize("what", ["BigGAN/{}", "groups.csv"])
def test_what_was_deleted_is_made_anew(few, built, what):
    before = contents(built)
    (built / what.format(next((built / "BigGAN").iterdir()).name)).unlink()
    assert contents(sample.build(built, progress=False)) == before


def test_a_file_of_ones_own_stays_when_the_rest_is_made_anew(few, built):
    before = contents(built)
    (built / "RealPhotos" / "mine.png").write_bytes(b"mine")
    (built / sample.MARKER).write_text(json.dumps({"recipe": "older", "complete": True}))
    assert contents(sample.build(built, progress=False)) == before | {"RealPhotos/mine.png": b"mine"}


def test_a_folder_with_something_else_is_not_touched(few, tmp_path):
    (tmp_path / "RealPhotos").mkdir()
    (tmp_path / "RealPhotos" / "mine.jpg").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="not made by this command"):
        sample.build(tmp_path, progress=False)
    assert contents(tmp_path) == {"RealPhotos/mine.jpg": b"mine"}


def test_missing_weights_are_named_before_anything_is_written(few, tmp_path, monkeypatch):
    monkeypatch.setattr(simulators, "WEIGHTS", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="scripts/train_simulators.py"):
        sample.build(tmp_path / "sample", progress=False)
    assert not (tmp_path / "sample").exists()
