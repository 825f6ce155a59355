"""Degradations: each changes what it says, nothing else, and the same way under one seed."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from dfd import degrade


@pytest.fixture
def images():
    pixels = torch.from_numpy(data.astronaut()[:96, 160:288].copy()).permute(2, 0, 1).float() / 255
    return torch.stack([pixels, pixels.flip(-1)])  # (2, 3, 96, 128)


def test_jpeg_loses_more_at_lower_quality(images):
    error = {q: (degrade.jpeg(images, q) - images).abs().mean() for q in (95, 50, 10)}
    assert error[95] < error[50] < error[10]


def test_jpeg_is_what_pillow_writes(images):
    buffer = io.BytesIO()
    pixels = (images[0] * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=60, subsampling=2)
    expected = np.asarray(Image.open(buffer)) / 255
    assert np.abs(degrade.jpeg(images, 60)[0].permute(1, 2, 0).numpy() - expected).max() < 1e-6


def test_jpeg_keeps_more_colour_without_subsampling(images):
    def chroma_error(subsampling):
        change = degrade.jpeg(images, 90, subsampling) - images
        return (change[:, 0] - change[:, 2]).abs().mean()

    assert chroma_error("4:4:4") < 0.8 * chroma_error("4:2:0")


def test_blur_is_a_gaussian():
    point = torch.zeros(1, 3, 31, 31)
    point[..., 15, 15] = 1
    spread = degrade.gaussian_blur(point, 1.5)[0, 0]
    rows = torch.arange(31) - 15.0
    assert spread.sum() == pytest.approx(1, abs=1e-4)
    assert (spread.sum(1) * rows**2).sum() == pytest.approx(1.5**2, rel=0.05)
    assert torch.equal(degrade.gaussian_blur(point, 0), point)


def test_rescale_changes_the_size_and_keeps_the_mean(images):
    half = degrade.rescale(images, 0.5)
    assert half.shape == (2, 3, 48, 64)
    assert half.mean() == pytest.approx(images.mean().item(), abs=0.01)
    assert degrade.rescale(images, 1.25, "bilinear").shape == (2, 3, 120, 160)


def test_rescale_down_does_not_alias():
    stripes = (torch.arange(64) % 2).float().expand(1, 3, 64, 64)
    assert degrade.rescale(stripes, 0.5)[..., 8:-8].std() < 0.05


def test_noise_has_the_asked_deviation_and_repeats():
    grey = torch.full((4, 3, 64, 64), 0.5)
    first, again = (degrade.noise(grey, 0.02, torch.Generator().manual_seed(3)) for _ in range(2))
    assert (first - grey).std() == pytest.approx(0.02, rel=0.02)
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("name", "level"), [("jpeg", 50), ("webp", 50), ("blur", 1.0), ("rescale", 0.75), ("noise", 0.05)]
)
def test_every_operator_stays_in_range_and_does_something(images, name, level):
    out = degrade.at_level(images, name, level)
    assert 0 <= out.min() and out.max() <= 1
    assert out.shape != images.shape or (out - images).abs().mean() > 1e-3


def test_none_gives_the_images_back(images):
    assert degrade.at_level(images, "none", 0) is images


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: degrade.jpeg(x, 96), "quality must be 1 to 95"),
        (lambda x: degrade.jpeg(x, 0), "quality must be 1 to 95"),
        (lambda x: degrade.jpeg(x, 80, "4:1:0"), "subsampling"),
        (lambda x: degrade.webp(x, 101), "WebP quality"),
        (lambda x: degrade.jpeg(x + 1, 80), r"values in \[0, 1\]"),
        (lambda x: degrade.jpeg(x[0], 80), "shape"),
        (lambda x: degrade.rescale(x, 0), "factor"),
        (lambda x: degrade.gaussian_blur(x, -1), "sigma"),
        (lambda x: degrade.noise(x, -1), "sigma"),
        (lambda x: degrade.at_level(x, "fog", 1), "unknown degradation 'fog'"),
    ],
)
def test_wrong_input_is_named(images, call, text):
    with pytest.raises(ValueError, match=text):
        call(images)


def test_random_degrade_repeats_under_a_seed_and_varies_without(images):
    def run(seed):
        torch.manual_seed(seed)
        return [degrade.RandomDegrade()(images) for _ in range(6)]

    same = [torch.equal(a, b) for a, b in zip(run(1), run(1), strict=True)]
    other = [a.shape == b.shape and torch.equal(a, b) for a, b in zip(run(1), run(2), strict=True)]
    assert all(same) and not all(other)


def test_random_degrade_draws_every_operator_at_its_rate():
    torch.manual_seed(0)
    draws = [[name for name, _, _ in degrade.RandomDegrade().draw()] for _ in range(2000)]
    rate = {name: np.mean([name in chain for chain in draws]) for name in degrade.OPERATORS}
    expected = {"rescale": 0.2, "blur": 0.15, "noise": 0.1, "jpeg": 0.6 * 0.8, "webp": 0.6 * 0.2}
    assert rate == pytest.approx(expected, abs=0.04)
    assert all(chain[-1] in ("jpeg", "webp") for chain in draws if {"jpeg", "webp"} & set(chain))


def test_random_degrade_off_changes_nothing(images):
    off = degrade.RandomDegrade(p_rescale=0, p_blur=0, p_noise=0, p_codec=0)
    assert torch.equal(off(images), images)
