"""Datasets: crops without resizing, the same codec for all, fair draws, and carriers from their own split only."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dfd.core.images import ImageError
from dfd.data import crops
from dfd.degrade import operators, registry


@pytest.fixture
def folder(tmp_path):
    """Six classes' worth of flat pictures whose colour says which file they are."""
    rows = []
    for label, count in (("RealPhotos", 8), ("ProGAN", 4), ("BigGAN", 2)):
        (tmp_path / label).mkdir()
        for i in range(count):
            grey = 10 * len(rows) + 5
            Image.new("RGB", (70, 50), (grey, grey, grey)).save(tmp_path / label / f"{i}.png")
            split = "test" if label == "RealPhotos" and i >= 6 else "train"
            rows.append((f"{label}/{i}.png", label, label != "RealPhotos", split, grey))
    table = pd.DataFrame(rows, columns=["path", "label", "is_fake", "split", "grey"])
    table.attrs["root"] = str(tmp_path)
    return table


def test_pad_reflects_and_never_resizes():
    ramp = torch.arange(5.0).expand(1, 3, 4, 5) / 10
    padded = crops.pad_to(ramp, 8)
    assert padded.shape == (1, 3, 8, 8)
    assert torch.equal(padded[..., :4, :5], ramp)
    assert (padded[0, 0, 0, 5:8] * 10).tolist() == pytest.approx([3, 2, 1])
    assert crops.pad_to(torch.rand(1, 3, 1, 1), 40).shape == (1, 3, 40, 40)
    assert crops.pad_to(ramp, 3) is ramp


def test_random_crop_cuts_pixels_that_are_there():
    image = torch.arange(20 * 30).float().view(1, 1, 20, 30).expand(1, 3, 20, 30)
    torch.manual_seed(0)
    corners = {float(crops.random_crop(image, 16)[0, 0, 0, 0]) for _ in range(200)}
    crop = crops.random_crop(image, 16)
    assert crop.shape == (1, 3, 16, 16)
    assert float(crop[0, 0, 1, 0] - crop[0, 0, 0, 0]) == 30
    assert corners <= {30.0 * y + x for y in range(5) for x in range(15)} and len(corners) > 40


def test_real_fake_items_are_crops_in_range(folder):
    data = crops.RealFakeDataset(folder, folder.attrs["root"], crop_size=32, degrade=registry.RandomDegrade())
    for i in range(len(data)):
        crop, is_fake = data[i]
        assert crop.shape == (3, 32, 32) and 0 <= crop.min() and crop.max() <= 1
        assert bool(is_fake) == folder["is_fake"][i]


def test_items_show_the_file_they_name(folder):
    data = crops.RealFakeDataset(folder, folder.attrs["root"], crop_size=32, equalise_quality=None)
    assert [round(float(data[i][0].mean()) * 255) for i in range(len(data))] == folder["grey"].tolist()


def test_equalise_gives_every_crop_a_jpeg_history(folder, monkeypatch):
    """A second pass at the same quality must change next to nothing: the crop has been through that codec."""
    rng = np.random.default_rng(0)
    for path in folder["path"]:
        Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(f"{folder.attrs['root']}/{path}")

    def second_pass(quality):
        crop = crops.RealFakeDataset(folder, folder.attrs["root"], 32, equalise_quality=quality)[0][0][None]
        return float((operators.jpeg(crop, 75) - crop).abs().mean())

    assert second_pass(75) < 0.35 * second_pass(None)


def test_two_views_differ_and_share_the_source(folder):
    fakes = folder[folder["is_fake"]]
    rng = np.random.default_rng(0)
    for path in fakes["path"]:
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(f"{folder.attrs['root']}/{path}")
    classes = ["BigGAN", "ProGAN"]
    data = crops.GFDTwoViewDataset(fakes, folder.attrs["root"], classes, 32, registry.RandomDegrade(p_codec=1))
    for i, label in enumerate(fakes["label"]):
        item = data[i]
        assert classes[item["source"]] == label
        assert set(item) == {"view1", "view2", "source"}
        assert item["view1"].shape == item["view2"].shape == (3, 32, 32)
        assert not torch.equal(item["view1"], item["view2"])


def test_two_view_data_refuses_photos_and_strangers(folder):
    with pytest.raises(ValueError, match="photos"):
        crops.GFDTwoViewDataset(folder, folder.attrs["root"], ["BigGAN", "ProGAN", "RealPhotos"], 32)
    with pytest.raises(ValueError, match="BigGAN"):
        crops.GFDTwoViewDataset(folder[folder["is_fake"]], folder.attrs["root"], ["ProGAN"], 32)


def test_carriers_are_photos_of_their_split(folder):
    carriers = crops.CarrierBuilder(folder, folder.attrs["root"], "train", 32, equalise_quality=None)
    torch.manual_seed(0)
    seen = {round(float(carriers().mean()) * 255) for _ in range(80)}
    assert seen == set(folder.loc[~folder["is_fake"] & (folder["split"] == "train"), "grey"])
    with pytest.raises(ValueError, match="val"):
        crops.CarrierBuilder(folder, folder.attrs["root"], "val", 32)


def test_two_view_items_carry_a_carrier_when_given_one(folder):
    carriers = crops.CarrierBuilder(folder, folder.attrs["root"], "test", 32, equalise_quality=None)
    fakes = folder[folder["is_fake"]]
    item = crops.GFDTwoViewDataset(fakes, folder.attrs["root"], ["BigGAN", "ProGAN"], 32, carriers=carriers)[0]
    assert round(float(item["carrier"].mean()) * 255) in folder.loc[folder["split"] == "test", "grey"].tolist()


@pytest.mark.parametrize(
    ("binary", "expected"),
    [(True, {"RealPhotos": 1 / 2, "ProGAN": 1 / 4, "BigGAN": 1 / 4}), (False, {"ProGAN": 1 / 2, "BigGAN": 1 / 2})],
)
def test_sampler_weighs_classes_alike(folder, binary, expected):
    table = folder if binary else folder[folder["is_fake"]]
    drawn = list(crops.balanced_sampler(table, 6000, binary, torch.Generator().manual_seed(0)))
    shares = table["label"].iloc[drawn].value_counts(normalize=True).to_dict()
    assert shares == pytest.approx(expected, abs=0.03)


def test_spread_draws_give_every_batch_its_share_and_keep_the_order_of_each_kind():
    is_fake = np.random.default_rng(0).random(4000) < 0.3
    order = crops.spread(is_fake)
    assert sorted(order) == list(range(4000))
    for kind in (False, True):
        assert (np.diff([place for place in order if is_fake[place] == kind]) > 0).all()
    counts = is_fake[order].reshape(-1, 32).sum(1)
    assert counts.max() - counts.min() <= 1 and abs(counts.mean() / 32 - is_fake.mean()) < 1e-9
    assert crops.spread(np.ones(5, dtype=bool)).tolist() == [0, 1, 2, 3, 4]


def test_a_seeded_item_hangs_on_its_draw_alone(folder):
    root, classes = folder.attrs["root"], ["BigGAN", "ProGAN"]
    rng = np.random.default_rng(0)
    for path in folder["path"]:
        Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(f"{root}/{path}")
    carriers = crops.CarrierBuilder(folder, root, "train", 32, registry.RandomDegrade())
    fakes = folder[folder["is_fake"]]
    data = crops.Seeded(crops.GFDTwoViewDataset(fakes, root, classes, 32, registry.RandomDegrade(), 90, carriers))
    torch.manual_seed(0)
    state, first = torch.get_rng_state(), data[0, 5]
    assert torch.equal(torch.get_rng_state(), state)
    data[3, 7]
    torch.rand(3)
    again, other = data[0, 5], data[0, 6]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in ("view1", "view2", "carrier"))


def test_a_seed_follows_from_its_place_and_key_alone():
    assert crops.seeds(9, 0, 1)[:4] == crops.seeds(4, 0, 1)
    keys = [(0, 1), (1, 0), (0, 2), (0, 1, 1), (0, 1, 2)]
    assert len({seed for key in keys for seed in crops.seeds(50, *key)}) == 250


def test_unreadable_file_stops_by_name(folder):
    path = folder["path"][3]
    with open(f"{folder.attrs['root']}/{path}", "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n broken")
    data = crops.RealFakeDataset(folder, folder.attrs["root"], 32)
    with pytest.raises(ImageError, match="3.png"):
        data[3]


def test_empty_table_is_an_error(folder):
    with pytest.raises(ValueError, match="no image"):
        crops.RealFakeDataset(folder.iloc[:0], folder.attrs["root"], 32)


@pytest.mark.parametrize("quality", [None, 90])
def test_eight_bit_windows_give_what_float_ones_give(tmp_path, quality):
    """Whatever chain is drawn, and where the image has to be padded too."""
    rng = np.random.default_rng(0)
    for name, side in (("large", 100), ("small", 40)):
        Image.fromarray(rng.integers(0, 256, (side, side + 7, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    table = pd.DataFrame({"path": ["large.png", "small.png"], "is_fake": [False, True]})
    often = registry.RandomDegrade(p_history=0.5, p_crop=0.5, p_noise=0.5, p_codec=0.9, p_double=0.4, p_webp=0.4)
    data = crops.RealFakeDataset(table, tmp_path, 48, often, quality)
    kinds = set()
    for index in (0, 1):
        for seed in range(40):
            torch.manual_seed(seed)
            window = data.window(index)
            kinds.add(window.dtype)
            state = torch.get_rng_state()
            as_bytes = data.view(window)
            torch.set_rng_state(state)
            as_floats = data.view(window / 255 if window.dtype == torch.uint8 else window)
            assert torch.equal(as_bytes, as_floats) and as_bytes.dtype == torch.float32
    assert kinds == {torch.uint8, torch.float32}
