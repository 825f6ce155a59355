"""Where crops lie, and the data sets: no resizing, one codec for all, fair draws, carriers from their split only."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from dfd.config import CROP_MODES, Stage1
from dfd.core.images import ImageError, load_rgb
from dfd.data import crops
from dfd.data.crops import MAX_CROPS, cut, plan
from dfd.degrade import operators, registry
from dfd.train import bank


def seen(height, width, size, corners):
    """How often each pixel is looked at."""
    counts = np.zeros((height, width), int)
    for top, left in corners:
        counts[top : top + size, left : left + size] += 1
    return counts


@pytest.mark.parametrize("mode", CROP_MODES)
@pytest.mark.parametrize("size", [(32, 32), (33, 32), (40, 35), (200, 310), (64, 1000), (5, 7), (1, 500)])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 20, 1000])
def test_windows_are_different_inside_and_no_more_than_asked(mode, size, count):
    height, width = size
    found = plan(height, width, 32, count, mode)
    assert 1 <= len(found.corners) <= min(count, MAX_CROPS)
    assert len(set(found.corners)) == len(found.corners)
    assert all(0 <= top <= max(height - 32, 0) and 0 <= left <= max(width - 32, 0) for top, left in found.corners)
    assert found.needed >= len(found.corners)


def test_five_are_the_centre_and_the_corners():
    assert plan(200, 310, 64, 1).corners == [(68, 123)]
    assert plan(200, 310, 64, 5).corners == [(68, 123), (0, 0), (0, 246), (136, 0), (136, 246)]
    assert plan(32, 32, 32, 5).corners == [(0, 0)]
    assert plan(32, 64, 32, 5).corners == [(0, 16), (0, 0), (0, 32), (0, 11), (0, 21)]  # corners coincide


@pytest.mark.parametrize("count", [6, 9, 15, 20, 60, 255])
def test_more_than_five_go_on_as_a_grid_over_the_whole_image(count):
    corners = plan(600, 900, 64, count).corners
    assert len(corners) == count and corners[:5] == plan(600, 900, 64, 5).corners
    middle = np.mean(corners[5:], axis=0)
    assert count < 9 or np.abs(middle / [536, 836] - 0.5).max() < 0.1  # nowhere more than elsewhere


def test_many_crops_of_five_cover_the_whole_image():
    assert seen(150, 220, 64, plan(150, 220, 64, 60).corners).all()


@pytest.mark.parametrize("size", [(32, 32), (33, 32), (64, 96), (100, 131), (320, 310), (20, 500), (511, 512)])
def test_a_grid_covers_every_pixel_with_the_fewest_rows_and_columns(size):
    height, width = size
    found = plan(height, width, 32, MAX_CROPS, "grid")
    assert len(found.corners) == found.needed == -(-height // 32) * -(-width // 32)
    assert seen(height, width, 32, found.corners).all()


@pytest.mark.parametrize(("size", "windows"), [((5000, 8000), 79 * 125), ((64, 640_000), 10_000), ((9_999, 8), 157)])
@pytest.mark.parametrize("count", [1, 2, 7, 100, 256, 10**9])
def test_a_grid_that_may_not_cover_is_thinned_evenly_and_says_so(size, windows, count):
    found = plan(*size, 64, count, "grid")
    limit = min(count, MAX_CROPS, windows)
    assert found.needed == windows
    assert limit / 2 < len(found.corners) <= limit
    for places, last in zip(zip(*found.corners, strict=True), (max(side - 64, 0) for side in size), strict=True):
        steps = np.diff(np.unique(places))
        if len(steps):
            assert (min(places), max(places)) == (0, last) and steps.max() - steps.min() <= 1
        else:
            assert set(places) == {last // 2}


def test_random_windows_repeat_and_differ_between_counts_and_sizes():
    found = plan(200, 310, 64, 9, "random").corners
    assert found == plan(200, 310, 64, 9, "random").corners
    torch.manual_seed(5)
    np.random.seed(5)
    assert found == plan(200, 310, 64, 9, "random").corners
    assert len(plan(200, 310, 64, 12, "random").corners) == 12
    assert found != plan(201, 310, 64, 9, "random").corners and found != plan(310, 200, 64, 9, "random").corners


def test_random_windows_lie_everywhere():
    places = np.array(plan(2000, 3000, 64, MAX_CROPS, "random").corners) / [1936, 2936]
    counts = np.histogram2d(*places.T, bins=3, range=[[0, 1], [0, 1]])[0]
    assert counts.min() > 256 / 9 / 2


def test_random_takes_every_place_where_there_are_few():
    assert sorted(plan(34, 33, 32, 50, "random").corners) == [(y, x) for y in range(3) for x in range(2)]


@pytest.mark.parametrize(("mode", "asked", "needed"), [("five", 256, 256), ("five", 300, 300), ("random", 9999, 9999)])
def test_asking_for_more_than_the_cap_is_noted(mode, asked, needed):
    found = plan(3000, 4000, 64, asked, mode)
    assert (len(found.corners), found.needed) == (MAX_CROPS, needed)


@pytest.mark.parametrize(("mode", "windows"), [("five", 6), ("random", 6), ("grid", 4)])
def test_an_image_with_few_windows_is_not_short_of_any(mode, windows):
    found = plan(34, 33, 32, 9999, mode)
    assert len(found.corners) == found.needed == windows


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((0, 5, 32, 5), "5 x 0 pixels"), ((9, 9, 32, 0), "crops must be at least 1"), ((9, 9, 32, 5, "all"), "'all'")],
)
def test_nonsense_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        plan(*arguments)


def test_a_window_is_cut_from_pil_images_and_tensors_alike():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    expected = torch.from_numpy(pixels[7:39, 20:52].transpose(2, 0, 1) / 255).float()[None]
    assert torch.allclose(cut(Image.fromarray(pixels), (7, 20), 32), expected)
    tensor = torch.from_numpy(pixels / 255).float().permute(2, 0, 1)[None]
    assert torch.allclose(cut(tensor, (7, 20), 32), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (20, 90), (90, 20), (8, 9)])
def test_small_images_are_reflected(size):
    height, width = size
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    corner = (max(height - 32, 0), max(width - 32, 0))
    padding = [(0, max(32 - side, 0)) for side in size]
    padded = np.pad(pixels, [*padding, (0, 0)], mode="reflect")[corner[0] : corner[0] + 32, corner[1] : corner[1] + 32]
    window = cut(Image.fromarray(pixels), corner, 32)
    torch.testing.assert_close(window, torch.from_numpy(padded.transpose(2, 0, 1) / 255).float()[None])


# The data sets


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
    cfg = Stage1(images_per_epoch=6000, batch_size=8)
    drawn = [index for index, _ in crops.EpochSampler(table, cfg, binary)]
    shares = table["label"].iloc[drawn].value_counts(normalize=True).to_dict()
    assert shares == pytest.approx(expected, abs=0.03)


def test_windows_are_moved_into_the_image_by_less_than_a_block():
    corners = plan(200, 310, 64, 30).corners
    moved = crops.off_grid(corners, 200, 310, 64, 5)
    assert moved == crops.off_grid(corners, 200, 310, 64, 5) != crops.off_grid(corners, 200, 310, 64, 6)
    shifts = np.abs(np.array(moved) - corners)
    assert shifts.max() == 7 and len(np.unique(shifts)) == 8
    assert (np.array(moved) >= 0).all() and (np.array(moved) <= [200 - 64, 310 - 64]).all()
    assert crops.off_grid([(0, 0)], 64, 40, 64, 5) == [(0, 0)]  # no room


def test_windows_that_meet_in_a_small_image_count_once():
    counts = set()
    for seed in range(20):
        pixels = np.random.default_rng(seed).integers(0, 256, (66, 65, 3), dtype=np.uint8)
        chosen = crops.windows_of(Image.fromarray(pixels), 64, 5)
        assert len(set(chosen.corners)) == len(chosen.corners) == chosen.needed
        counts.add(len(chosen.corners))
    assert len(counts) > 1 and max(counts) <= 5


def test_sampler_weighs_sources_by_the_root_of_their_size(folder, tmp_path):
    photos = [f"{number}.png" for number in range(100)]
    table = pd.DataFrame({"path": photos + ["f"] * 10, "label": ["RealPhotos"] * 100 + ["ProGAN"] * 10})
    table = table.assign(is_fake=table["label"] == "ProGAN", source=["large"] * 81 + ["small"] * 19 + ["fakes"] * 10)
    drawn = [index for index, _ in crops.EpochSampler(table, Stage1(images_per_epoch=6000), binary=True)]
    shares = table["source"].iloc[drawn].value_counts(normalize=True)
    assert shares["large"] / shares["small"] == pytest.approx((81 / 19) ** 0.5, rel=0.1)
    assert shares["fakes"] == 0.5
    rows = table[1:].rename(columns={"path": "file"})[["file", "source"]]
    rows.to_csv(tmp_path / "provenance.csv", index=False)
    part = table.drop(columns="source")[1:]  # the manifest has no column, for not all images have a source
    part.attrs["root"] = str(tmp_path)
    drawn = [index for index, _ in crops.EpochSampler(part, Stage1(images_per_epoch=6000), binary=True)]
    shares = rows["source"].iloc[drawn].value_counts(normalize=True)
    assert shares["large"] / shares["small"] == pytest.approx(80 / 19, rel=0.1)  # though all of these have one


def test_draws_take_turns_and_hang_on_seed_and_epoch_alone(folder):
    cfg = Stage1(images_per_epoch=807, batch_size=8)
    sampler = crops.EpochSampler(folder, cfg, binary=True)
    draws = list(sampler)
    assert len(draws) == len(sampler) == 800 and draws == list(crops.EpochSampler(folder, cfg, binary=True))
    indices, seeds = zip(*draws, strict=True)
    assert folder["is_fake"].iloc[list(indices)].tolist() == [False, True] * 400 and len(set(seeds)) == 800
    sampler.epoch = 1
    assert draws != list(sampler)
    shifted = [index >= len(folder) for index, _ in crops.EpochSampler(folder, cfg, binary=False, every=4)]
    assert shifted == ([False] * 8 + [True] * 24) * 25


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


@pytest.mark.parametrize("size", [(300, 200), (130, 40), (40, 130), (30, 20)])
def test_of_an_image_no_more_becomes_a_tensor_than_its_window(folder, monkeypatch, size):
    """The window is what `random_crop` cuts of the whole image for the same draws."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    data = crops.RealFakeDataset(folder.drop(columns=["width", "height"], errors="ignore"), "", 48)
    whole, made = crops.to_bytes(image), []
    monkeypatch.setattr(crops, "to_bytes", lambda part: made.append(part.size) or operators.to_bytes(part))
    for seed in range(20):
        torch.manual_seed(seed)
        window, state = data.window(image), torch.get_rng_state()
        torch.manual_seed(seed)
        cut = crops.random_crop(whole, data.side)
        cut = cut.flip(-1) if torch.rand(()) < 0.5 else cut
        left, top = (int(torch.randint(crops.MARGIN, ())) for _ in range(2))
        assert torch.equal(window[..., top:, left:], cut) and torch.equal(torch.get_rng_state(), state)
    assert set(made) == {(min(size[1], data.side), min(size[0], data.side))}


@pytest.mark.parametrize("quality", [None, 90])
def test_eight_bit_windows_give_what_float_ones_give(tmp_path, quality):
    """Whatever chain is drawn, and where the image has to be padded too."""
    rng = np.random.default_rng(0)
    for name, side in (("large", 100), ("small", 40)):
        Image.fromarray(rng.integers(0, 256, (side, side + 7, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    table = pd.DataFrame({"path": ["large.png", "small.png"], "is_fake": [False, True]})
    often = registry.RandomDegrade(p_history=0.5, p_crop=0.5, p_noise=0.5, p_codec=0.9, p_double=0.4, p_webp=0.4)
    data = crops.RealFakeDataset(table, tmp_path, 48, often, quality)
    for index in (0, 1):
        for seed in range(40):
            torch.manual_seed(seed)
            window = data.window(load_rgb(data.paths[index]))
            assert window.dtype == torch.uint8
            state = torch.get_rng_state()
            as_bytes = data.view(window)
            torch.set_rng_state(state)
            assert torch.equal(as_bytes, data.view(window / 255)) and as_bytes.dtype == torch.float32


@pytest.mark.parametrize(("chain", "statistic"), [("none", "grid"), ("shrinking", "detail")])
def test_a_photo_and_its_own_tile_cannot_be_told_apart(tmp_path, chain, statistic):
    table = photos_and_tiles(tmp_path)
    off = dict.fromkeys(("p_history", "p_crop", "p_blur", "p_gamma", "p_noise", "p_social", "p_codec"), 0.0)
    degrade = None if chain == "none" else registry.RandomDegrade(**off, p_rescale=1.0, smallest=64)
    data = crops.RealFakeDataset(table, tmp_path, 64, degrade, equalise_quality=None)
    torch.manual_seed(0)
    found = np.stack([data[index][0].mean(0).numpy() for index in range(len(table))])
    assert 0.4 < roc_auc_score(table["is_fake"], of_columns(found, statistic)) < 0.6


@pytest.mark.parametrize("statistic", ["grid", "detail"])
def test_a_photo_and_its_own_tile_cannot_be_told_apart_in_the_bank(tmp_path, statistic):
    table = photos_and_tiles(tmp_path)
    cfg = Stage1(crop_size=64, equalise=False, data="x", out="y")
    views = bank.Views(table, cfg)
    torch.manual_seed(0)
    found = np.stack([views[index][:4].mean(1).numpy() for index in range(len(table))])
    for place in range(4):  # as it is, JPEG 95, 75 and 50
        assert 0.35 < roc_auc_score(table["is_fake"], of_columns(found[:, place], statistic)) < 0.65, place


def photos_and_tiles(folder):
    """JPEG photos of 288 px and of each a lossless tile of 64 px, on its grid, where crops are as large as the tile."""
    rng, rows = np.random.default_rng(0), []
    for number in range(80):
        photo = ndimage.gaussian_filter(rng.normal(size=(288, 288, 3)), (1, 1, 0))
        photo = np.clip(128 + 120 * photo, 0, 255).astype(np.uint8)
        Image.fromarray(photo).save(folder / f"{number}.jpg", quality=40)
        top, left = 8 * rng.integers(28, size=2)
        tile = np.asarray(Image.open(folder / f"{number}.jpg"))[top : top + 64, left : left + 64]
        Image.fromarray(tile).save(folder / f"{number}.png")
        rows += [(f"{number}.jpg", False, 288, 288), (f"{number}.png", True, 64, 64)]
    table = pd.DataFrame(rows, columns=["path", "is_fake", "width", "height"])
    table.attrs["root"] = str(folder)
    return table


def of_columns(found, statistic):
    """Of grey crops (N, 64, 64): the mean step, or how much of it stands where an aligned grid has its edges."""
    steps = np.abs(np.diff(found, axis=2)).mean(1)  # (N, 63), by column
    return steps[:, 7::8].mean(1) / steps.mean(1) if statistic == "grid" else steps.mean(1)


def test_the_last_codec_sees_the_crop_and_has_the_quality_that_was_asked_for(folder, monkeypatch):
    given, root, fakes = [], folder.attrs["root"], folder[folder["is_fake"]]
    monkeypatch.setattr(crops, "jpeg", lambda images, quality: given.append((*images.shape, quality)) or images)
    crops.RealFakeDataset(folder, root, 32, registry.RandomDegrade(), 77)[0]
    carriers = crops.CarrierBuilder(folder, root, "train", 32, equalise_quality=66)
    crops.GFDTwoViewDataset(fakes, root, ["BigGAN", "ProGAN"], 32, None, 77, carriers)[0]
    assert given == [(1, 3, 32, 32, 77)] * 3 + [(1, 3, 32, 32, 66)]


@pytest.mark.parametrize(("smaller", "plain", "degraded"), [([], 72, 136), ([40, 100], 72, 100), ([64], 64, 64)])
def test_a_window_leaves_room_for_half_the_size_unless_an_image_that_holds_a_crop_is_smaller(smaller, plain, degraded):
    table = pd.DataFrame({"path": "x", "is_fake": True, "width": [300, *smaller], "height": 300})
    for degrade, side in ((None, plain), (registry.RandomDegrade(), degraded)):
        assert crops.RealFakeDataset(table, "", 64, degrade).side == side


def test_both_views_are_of_one_window(folder):
    table = folder[folder["label"] == "ProGAN"]
    ramp = np.tile(np.arange(256, dtype=np.uint8)[:, None], (64, 1, 3))
    for path in table["path"]:
        Image.fromarray(ramp).save(f"{folder.attrs['root']}/{path}")
    data = crops.GFDTwoViewDataset(table, folder.attrs["root"], ["ProGAN"], 32, equalise_quality=None)
    torch.manual_seed(0)
    views = [data[index % 4] for index in range(20)]
    assert max(255 * abs(float(item["view1"].mean() - item["view2"].mean())) for item in views) < 16


def test_few_images_fill_a_batch(folder):
    assert len(list(crops.EpochSampler(folder, Stage1(batch_size=64), binary=True))) == 64
