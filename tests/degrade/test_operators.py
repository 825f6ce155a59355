"""Operators at a fixed level: each changes what it says, nothing else."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from dfd.degrade import operators, registry


@pytest.fixture
def images():
    pixels = torch.from_numpy(data.astronaut()[:96, 160:288].copy()).permute(2, 0, 1).float() / 255
    return torch.stack([pixels, pixels.flip(-1)])  # (2, 3, 96, 128)


def by_pillow(array, format, **options):
    """A (H, W, 3) uint8 array through one of Pillow's codecs."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format, **options)
    return np.array(Image.open(buffer))


def as_array(image):
    return (image * 255).round().byte().permute(1, 2, 0).numpy()  # (H, W, 3)


def test_jpeg_loses_more_at_lower_quality(images):
    error = {q: (operators.jpeg(images, q) - images).abs().mean() for q in (95, 50, 10)}
    assert error[95] < error[50] < error[10]


def test_codecs_are_what_pillow_writes(images):
    first = as_array(images[0])
    assert np.array_equal(as_array(operators.jpeg(images, 60)[0]), by_pillow(first, "JPEG", quality=60, subsampling=2))
    assert np.array_equal(as_array(operators.webp(images, 60)[0]), by_pillow(first, "WEBP", quality=60))


def test_jpeg_keeps_more_colour_without_subsampling(images):
    def chroma_error(subsampling):
        change = operators.jpeg(images, 90, subsampling) - images
        return (change[:, 0] - change[:, 2]).abs().mean()

    assert chroma_error("4:4:4") < 0.8 * chroma_error("4:2:0")


@pytest.mark.parametrize(("subsampling", "code"), [("4:2:0", 2), ("4:4:4", 0)])
def test_double_jpeg_is_two_passes_on_grids_that_do_not_align(images, subsampling, code):
    larger = np.pad(as_array(images[1]), ((5, 0), (5, 0), (0, 0)), mode="edge")
    once = by_pillow(larger, "JPEG", quality=80, subsampling=code)[5:, 5:]
    twice = by_pillow(np.ascontiguousarray(once), "JPEG", quality=60, subsampling=code)
    out = operators.double_jpeg(images, 60, first=80, shift=5, subsampling=subsampling)
    assert np.array_equal(as_array(out[1]), twice)


def test_double_jpeg_without_a_shift_is_jpeg_of_jpeg(images):
    expected = operators.jpeg(operators.jpeg(images, 70), 85)
    assert torch.equal(operators.double_jpeg(images, 85, first=70, shift=0), expected)


def test_blur_is_a_gaussian():
    point = torch.zeros(1, 3, 31, 31)
    point[..., 15, 15] = 1
    spread = operators.gaussian_blur(point, 1.5)[0, 0]
    rows = torch.arange(31) - 15.0
    assert spread.sum() == pytest.approx(1, abs=1e-4)
    assert (spread.sum(1) * rows**2).sum() == pytest.approx(1.5**2, rel=0.05)
    assert torch.equal(operators.gaussian_blur(point, 0), point)


@pytest.mark.parametrize("factor", [0.37, 0.5, 1.4])
@pytest.mark.parametrize("kernel", ["bilinear", "bicubic", "lanczos"])
def test_rescale_is_pillows_in_floating_point(images, kernel, factor):
    out = operators.rescale(images, factor, kernel)
    height, width = round(96 * factor), round(128 * factor)
    assert out.shape == (2, 3, height, width)
    for image, resized in zip(images.flatten(0, 1), out.flatten(0, 1), strict=True):
        pillow = Image.fromarray(image.numpy()).resize((width, height), Image.Resampling[kernel.upper()])
        assert np.abs(np.asarray(pillow).clip(0, 1) - resized.numpy()).max() < 1e-4


@pytest.mark.parametrize("side", [32, 64, 160])  # of 96: no new pixel lies half way between two old ones
def test_nearest_copies_the_pixel_at_the_same_place(images, side):
    square = images[..., :96]
    nearest = (2 * np.arange(side) + 1) * 96 // (2 * side)
    expected = square[..., nearest, :][..., nearest]
    assert torch.equal(operators.rescale(square, side / 96, "nearest"), expected)


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic", "lanczos"])
def test_rescale_down_does_not_alias(kernel):
    stripes = (torch.arange(64) % 2).float().expand(1, 3, 64, 64)
    assert operators.rescale(stripes, 0.5, kernel)[..., 8:-8].std() < 0.05


def test_noise_has_the_asked_deviation_and_repeats():
    grey = torch.full((4, 3, 64, 64), 0.5)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = operators.noise(grey, 0.02)
        torch.manual_seed(3)
        again = operators.noise(grey, 0.02)
    assert (first - grey).std() == pytest.approx(0.02, rel=0.02)
    assert torch.equal(first, again)


def test_gamma_is_a_power(images):
    expected = np.power(images.numpy().astype(np.float64), 1.7)
    assert np.abs(operators.gamma(images, 1.7).numpy() - expected).max() < 1e-6
    assert torch.equal(operators.gamma(images, 1), images)


def test_crop_keeps_the_window_it_names():
    places = torch.arange(20 * 30).view(20, 30) / 600  # the value says where a pixel was
    images = places.expand(1, 3, 20, 30)
    assert torch.equal(operators.crop(images, 0.8)[0, 0], places[2:18, 3:27])
    assert torch.equal(operators.crop(images, 0.5, position=(0, 1))[0, 2], places[:10, 15:])
    assert torch.equal(operators.crop(images, 0.5, position=(1, 0.2))[0, 2], places[10:, 3:18])
    assert torch.equal(operators.crop(images, 1), images)
    assert torch.equal(operators.crop(images, 0.01)[0, 0], places[10:11, 14:15])  # one pixel at least


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (("jpeg", 101, {}), "the level of jpeg must be in .1, 100., a whole number, got 101"),
        (("jpeg", 0, {}), "level of jpeg"),
        (("jpeg", 50.5, {}), "whole number, got 50.5"),
        (("jpeg", 80, {"subsampling": "4:1:0"}), "subsampling must be in .*, got 4:1:0"),
        (("double_jpeg", 80, {"first": 101}), "first must be in .1, 100."),
        (("double_jpeg", 80, {"shift": 16}), "shift must be in .0, 15."),
        (("webp", 101, {}), "level of webp"),
        (("rescale", 0, {}), "level of rescale"),
        (("rescale", 0.5, {"kernel": "hamming"}), "kernel must be in .* got hamming"),
        (("blur", -1, {}), "level of blur"),
        (("blur", float("nan"), {}), "level of blur must be in .* got nan"),
        (("noise", -1, {}), "level of noise"),
        (("gamma", 0, {}), "level of gamma"),
        (("crop", 0, {}), "level of crop"),
        (("crop", 1.1, {}), "level of crop"),
        (("social", 75, {"factor": 1.5}), "factor must be in"),
        (("fog", 1, {}), "unknown degradation 'fog'; choose one of jpeg"),
    ],
)
def test_a_step_that_the_table_does_not_allow_is_named(images, step, text):
    with pytest.raises(ValueError, match=text):
        registry.compose(images, [("jpeg", 90, {}), step])


@pytest.mark.parametrize("name", registry.DEGRADATIONS)
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x: x + 1, r"values in \[0, 1\]"),
        (lambda x: x * float("nan"), "nan"),
        (lambda x: x[0], "shape"),
        (lambda x: x[:, :2], "shape"),
        (lambda x: (x * 255).int(), "torch.int32"),
    ],
)
def test_images_of_another_kind_are_refused(images, name, change, text):
    with pytest.raises(ValueError, match=text):
        registry.compose(change(images), [(name, registry.DEGRADATIONS[name].neutral, {})])
    with pytest.raises(ValueError, match=text):
        operators.jpeg(change(images), 80)


def test_the_codecs_check_their_quality_themselves(images):
    for codec in (operators.jpeg, operators.webp):
        with pytest.raises(ValueError, match="quality must be in .1, 100., a whole number, got 101"):
            codec(images, 101)


@pytest.mark.parametrize(
    ("name", "level", "options"),
    [("jpeg", 60, {"subsampling": "4:4:4"}), ("double_jpeg", 60, {"shift": 5}), ("webp", 60, {}), ("crop", 0.7, {})],
)
def test_eight_bit_images_stay_so_with_the_same_values(name, level, options):
    pixels = torch.randint(0, 256, (2, 3, 40, 33), generator=torch.Generator().manual_seed(0)).byte()
    found = registry.compose(pixels, [(name, level, options)])
    assert found.dtype == torch.uint8
    assert torch.equal(found / 255, registry.compose(pixels / 255, [(name, level, options)]))


@pytest.mark.parametrize("name", ["blur", "rescale", "resample", "gamma", "social"])
def test_other_operators_make_floats_of_eight_bits(name):
    pixels = torch.randint(0, 256, (2, 3, 40, 33), generator=torch.Generator().manual_seed(0)).byte()
    found = registry.compose(pixels, [(name, 1, {})])
    assert found.is_floating_point() and torch.equal(found, registry.compose(pixels / 255, [(name, 1, {})]))


def test_a_codec_gets_the_nearest_of_256_levels():
    grey = torch.full((1, 3, 16, 16), 100.6 / 255)
    assert (255 * operators.jpeg(grey, 100)).round().unique().tolist() == [101]
