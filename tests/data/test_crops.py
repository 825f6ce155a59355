"""Where crops lie: different, inside, covering what they should, and never more than the cap."""

import numpy as np
import pytest
import torch
from PIL import Image

from dfd.data.crops import MAX_CROPS, MODES, cut, plan


def seen(height, width, size, corners):
    """How often each pixel is looked at."""
    counts = np.zeros((height, width), int)
    for top, left in corners:
        counts[top : top + size, left : left + size] += 1
    return counts


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(32, 32), (33, 32), (40, 35), (200, 310), (64, 1000), (5, 7), (1, 500)])
@pytest.mark.parametrize("crops", [1, 2, 3, 5, 7, 20, 1000])
def test_windows_are_different_inside_and_no_more_than_asked(mode, size, crops):
    height, width = size
    found = plan(height, width, 32, crops, mode)
    assert 1 <= len(found.corners) <= min(crops, MAX_CROPS)
    assert len(set(found.corners)) == len(found.corners)
    assert all(0 <= top <= max(height - 32, 0) and 0 <= left <= max(width - 32, 0) for top, left in found.corners)
    assert found.needed >= len(found.corners)


def test_five_are_the_centre_and_the_corners():
    assert plan(200, 310, 64, 1).corners == [(68, 123)]
    assert plan(200, 310, 64, 5).corners == [(68, 123), (0, 0), (0, 246), (136, 0), (136, 246)]
    assert plan(32, 32, 32, 5).corners == [(0, 0)]
    assert plan(32, 64, 32, 5).corners == [(0, 16), (0, 0), (0, 32), (0, 11), (0, 21)]  # corners coincide


@pytest.mark.parametrize("crops", [6, 9, 15, 20, 60, 255])
def test_more_than_five_go_on_as_a_grid_over_the_whole_image(crops):
    corners = plan(600, 900, 64, crops).corners
    assert len(corners) == crops and corners[:5] == plan(600, 900, 64, 5).corners
    middle = np.mean(corners[5:], axis=0)
    assert crops < 9 or np.abs(middle / [536, 836] - 0.5).max() < 0.1  # nowhere more than elsewhere


def test_many_crops_of_five_cover_the_whole_image():
    assert seen(150, 220, 64, plan(150, 220, 64, 60).corners).all()


@pytest.mark.parametrize("size", [(32, 32), (33, 32), (64, 96), (100, 131), (320, 310), (20, 500), (511, 512)])
def test_a_grid_covers_every_pixel_with_the_fewest_rows_and_columns(size):
    height, width = size
    found = plan(height, width, 32, MAX_CROPS, "grid")
    assert len(found.corners) == found.needed == -(-height // 32) * -(-width // 32)
    assert seen(height, width, 32, found.corners).all()


@pytest.mark.parametrize(("size", "windows"), [((5000, 8000), 79 * 125), ((64, 640_000), 10_000), ((9_999, 8), 157)])
@pytest.mark.parametrize("crops", [1, 2, 7, 100, 256, 10**9])
def test_a_grid_that_may_not_cover_is_thinned_evenly_and_says_so(size, windows, crops):
    found = plan(*size, 64, crops, "grid")
    limit = min(crops, MAX_CROPS, windows)
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
    torch.testing.assert_close(cut(Image.fromarray(pixels), (7, 20), 32), expected)
    tensor = torch.from_numpy(pixels / 255).float().permute(2, 0, 1)[None]
    torch.testing.assert_close(cut(tensor, (7, 20), 32), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (20, 90), (90, 20), (8, 9)])
def test_small_images_are_reflected(size):
    height, width = size
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    corner = (max(height - 32, 0), max(width - 32, 0))
    padding = [(0, max(32 - side, 0)) for side in size]
    padded = np.pad(pixels, [*padding, (0, 0)], mode="reflect")[corner[0] : corner[0] + 32, corner[1] : corner[1] + 32]
    window = cut(Image.fromarray(pixels), corner, 32)
    torch.testing.assert_close(window, torch.from_numpy(padded.transpose(2, 0, 1) / 255).float()[None])
