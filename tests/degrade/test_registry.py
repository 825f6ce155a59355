"""The registry: degradations by name, in chains, in the grammar of the grid, and at random under a seed."""

import dataclasses
import itertools
import re

import numpy as np
import pytest
import torch
from skimage import data

from dfd import config
from dfd.degrade import operators, registry

LEVELS = {
    "jpeg": 50,
    "double_jpeg": 50,
    "webp": 50,
    "blur": 1.0,
    "rescale": 0.75,
    "resample": 0.5,
    "noise": 0.05,
    "gamma": 0.7,
    "crop": 0.8,
    "social": 70,
}
NAMES = [field.name for field in dataclasses.fields(registry.RandomDegrade)]
STEPS = [name for name in NAMES if name.startswith("p_") and name != "p_clean"]
OFF = dict.fromkeys(STEPS, 0.0)


@pytest.fixture
def images():
    pixels = torch.from_numpy(data.astronaut()[:96, 160:288].copy()).permute(2, 0, 1).float() / 255
    return torch.stack([pixels, pixels.flip(-1)])  # (2, 3, 96, 128)


@pytest.mark.parametrize("name", registry.DEGRADATIONS)
def test_every_operator_stays_in_range_and_does_something(images, name):
    out = registry.compose(images, [(name, LEVELS[name], {})])
    assert 0 <= out.min() and out.max() <= 1
    assert out.shape != images.shape or (out - images).abs().mean() > 1e-3


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2)])
@pytest.mark.parametrize("name", registry.DEGRADATIONS)
def test_tiny_images_survive(name, size):
    torch.manual_seed(0)
    out = registry.compose(torch.rand(2, 3, *size), [(name, LEVELS[name], {})])
    assert out.shape[:2] == (2, 3) and min(out.shape[2:]) >= 1
    assert 0 <= out.min() and out.max() <= 1


@pytest.mark.parametrize("grey", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", sorted(set(registry.DEGRADATIONS) - {"noise"}))
def test_a_constant_image_stays_constant(name, grey):
    out = registry.compose(torch.full((1, 3, 20, 24), grey), [(name, LEVELS[name], {})])
    expected = grey**0.7 if name == "gamma" else grey
    assert (out - expected).abs().max() < 2.5 / 255  # codecs may end one or two grey levels off


def test_none_gives_the_images_back(images):
    assert registry.compose(images, [("none", 0, {})]) is images


def test_levels_mean_what_they_are_said_to_mean(images):
    """What a chain promises about the options that it does not name."""
    shrunk = operators.rescale(images, 0.7, "bicubic")
    assert torch.equal(registry.compose(images, [("social", 60.0, {})]), operators.jpeg(shrunk, 60, "4:2:0"))
    double = operators.double_jpeg(images, 60, first=90, shift=4)
    assert torch.equal(registry.compose(images, [("double_jpeg", 60.0, {})]), double)
    assert torch.equal(registry.compose(images, [("crop", 0.5, {})]), images[..., 24:72, 32:96])
    assert torch.equal(registry.compose(images, [("gamma", 2.0, {})]), images * images)
    assert not torch.equal(
        registry.compose(images, [("jpeg", 60, {"subsampling": "4:4:4"})]), operators.jpeg(images, 60)
    )


def test_compose_is_one_operator_after_another(images):
    chain = [("rescale", 0.5, {"kernel": "lanczos"}), ("none", 0, {}), ("blur", 0.8, {}), ("jpeg", 70, {})]
    by_hand = operators.jpeg(operators.gaussian_blur(operators.rescale(images, 0.5, "lanczos"), 0.8), 70)
    assert torch.equal(registry.compose(images, chain), by_hand)
    assert torch.equal(registry.compose(images, "rescale 0.5 lanczos + blur 0.8 + jpeg 70"), by_hand)
    assert registry.compose(images, []) is images


def test_random_degrade_repeats_under_a_seed_and_varies_without(images):
    everything = registry.RandomDegrade(**dict.fromkeys(STEPS, 0.7))

    def run(seed):
        torch.manual_seed(seed)
        return [everything(images) for _ in range(12)]

    same = [torch.equal(a, b) for a, b in zip(run(1), run(1), strict=True)]
    other = [a.shape == b.shape and torch.equal(a, b) for a, b in zip(run(1), run(2), strict=True)]
    assert all(same) and not all(other)


def test_random_degrade_applies_the_chain_that_it_draws(images):
    everything = registry.RandomDegrade(**dict.fromkeys(STEPS, 0.7) | {"p_noise": 0.0})  # noise draws when applied
    for seed in range(8):
        torch.manual_seed(seed)
        by_hand = images
        for name, level, options in everything.draw():
            by_hand = registry.compose(by_hand, [(name, level, options)])
        torch.manual_seed(seed)
        assert torch.equal(everything(images), by_hand)


def test_random_degrade_draws_every_step_at_its_rate():
    torch.manual_seed(0)
    steps = {"p_crop": 0.1, "p_rescale": 0.3, "p_blur": 0.15, "p_gamma": 0.1, "p_noise": 0.1, "p_social": 0.1}
    degraded = registry.RandomDegrade(**steps, p_history=0, p_codec=0.7, p_double=0.15, p_webp=0.2)
    draws = [[name for name, _, _ in degraded.draw()] for _ in range(2000)]
    rate = {name: np.mean([name in chain for chain in draws]) for name in set(itertools.chain(*draws))}
    single = 0.9 * 0.7 * 0.85  # no social chain, but a codec, and that once
    expected = {name.removeprefix("p_"): rate for name, rate in steps.items()}
    expected |= {"double_jpeg": 0.9 * 0.7 * 0.15, "webp": single * 0.2, "jpeg": single * 0.8}
    assert rate == pytest.approx(expected, abs=0.03)


def test_random_degrade_draws_the_history_at_its_rate_and_first():
    torch.manual_seed(0)
    draws = [registry.RandomDegrade(p_history=0.3, p_codec=0).draw() for _ in range(2000)]
    first = [chain[0] for chain in draws if "jpeg" in [name for name, _, _ in chain]]
    assert len(first) / 2000 == pytest.approx(0.3, abs=0.03)
    assert all(name == "jpeg" and 60 <= level <= 95 for name, level, _ in first)
    assert np.mean([options["subsampling"] == "4:4:4" for _, _, options in first]) == pytest.approx(0.3, abs=0.06)


def test_random_degrade_draws_from_the_whole_of_each_range():
    torch.manual_seed(0)
    every = registry.RandomDegrade(**dict.fromkeys(STEPS, 0.5) | {"p_history": 0}, p_clean=0)
    levels = {}
    for name, level, _ in itertools.chain(*(every.draw() for _ in range(2000))):
        levels.setdefault(name, []).append(level)
    ranges = {"crop": (0.8, 1), "rescale": (0.6, 1.4), "blur": (0.2, 1.5), "gamma": (0.7, 1.4), "noise": (0.003, 0.02)}
    ranges |= {"social": (60, 90), "jpeg": (40, 95), "webp": (40, 95), "double_jpeg": (40, 95)}
    assert set(levels) == set(ranges)
    for name, (low, high) in ranges.items():
        near = 0.06 * (high - low)
        assert low <= min(levels[name]) < low + near and high - near < max(levels[name]) <= high, name


def test_steps_come_in_order_and_one_codec_last():
    torch.manual_seed(0)
    everything = registry.RandomDegrade(**dict.fromkeys(STEPS, 1.0) | {"p_social": 0.3, "p_double": 0.5, "p_webp": 0.5})
    endings = set()
    for _ in range(200):
        names = [name for name, _, _ in everything.draw()]
        assert names[:-1] == ["jpeg", "crop", "rescale", "blur", "gamma", "noise"]
        endings.add(names[-1])
    assert endings == {"social", "double_jpeg", "webp", "jpeg"}


def test_random_degrade_off_changes_nothing(images):
    assert torch.equal(registry.RandomDegrade(**OFF)(images), images)


def test_random_degrade_stops_at_the_smallest_side():
    degraded = registry.RandomDegrade(p_rescale=1, p_crop=1, p_social=1, smallest=48)
    torch.manual_seed(0)
    sides = [min(degraded(torch.rand(1, 3, 64, 80)).shape[-2:]) for _ in range(20)]
    assert min(sides) == 48
    assert min(degraded(torch.rand(1, 3, 32, 32)).shape[-2:]) == 32


def test_what_is_cut_before_a_chain_leaves_enough_for_all_its_steps(monkeypatch):
    """No step is held back, though only a part of the image goes through the chain; without a chain that is little."""
    seen = []
    compose = registry.compose
    monkeypatch.setattr(
        registry, "compose", lambda images, chain: seen.append((images.shape, chain)) or compose(images, chain)
    )
    image = torch.rand(1, 3, 1000, 1200)
    everything = registry.RandomDegrade(**dict.fromkeys(STEPS, 0.7), smallest=160)
    for seed in range(30):
        seen.clear()
        torch.manual_seed(seed)
        drawn = everything.draw()
        torch.manual_seed(seed)
        left = everything(image)
        assert [(name, level) for _, [(name, level, _)] in seen] == [(name, level) for name, level, _ in drawn]
        assert 160 <= min(left.shape[-2:]) and all(max(shape[-2:]) < 1000 for shape, _ in seen)
    assert registry.RandomDegrade(**OFF, smallest=160)(image).shape == (1, 3, 176, 176)
    corners = {float(registry.RandomDegrade(**OFF, smallest=160)(image)[0, 0, 0, 0]) for _ in range(30)}
    assert len(corners) > 25


def test_a_chain_is_read_step_by_step():
    found = registry.parse("rescale 0.5 lanczos + jpeg 80 4:4:4")
    assert found.name == "rescale 0.5 lanczos + jpeg 80 4:4:4"
    assert found.chain == (("rescale", 0.5, {"kernel": "lanczos"}), ("jpeg", 80, {"subsampling": "4:4:4"}))
    assert (found.degradation, found.level) == ("rescale 0.5 lanczos + jpeg 4:4:4", 80)


def test_what_is_not_said_is_the_usual_and_one_condition_has_one_name():
    assert registry.parse("rescale  0.50") == registry.parse("rescale 0.5 bicubic")
    assert registry.parse("double_jpeg 75 first=95 shift=3").chain[0][2] == {"first": 95, "shift": 3}
    assert registry.parse("jpeg 75").chain == (("jpeg", 75, {}),)


def test_resampling_is_rescaling_there_and_back():
    chain = registry.parse("resample 0.8 bilinear").chain
    image = torch.rand(1, 3, 50, 40)
    small = operators.rescale(image, 0.8, "bilinear")
    assert torch.equal(registry.compose(image, chain), operators.rescale(small, 1.25, "bilinear"))
    assert registry.compose(image, chain).shape == image.shape


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("jpg 75", "'jpg 75': unknown degradation 'jpg'; choose one of jpeg, double_jpeg"),
        ("none 0", "unknown degradation 'none'"),
        ("jpeg", "an operator and a level"),
        ("jpeg 75 +", "an operator and a level"),
        ("", "an operator and a level"),
        ("jpeg high", "'jpeg high': could not convert string to float: 'high'"),
        ("jpeg 0", "the level of jpeg must be in (1, 100), a whole number, got 0"),
        ("jpeg 75.5", "a whole number, got 75.5"),
        ("blur nan", "must be in (0.05, 50), got nan"),
        ("crop 1.5", "must be in (0.05, 1), got 1.5"),
        ("jpeg 75 lanczos", "jpeg has no option 'lanczos'; it takes {'subsampling': ('4:4:4', '4:2:2', '4:2:0')}"),
        ("blur 1 lanczos", "blur has no option 'lanczos'; it takes none"),
        ("rescale 0.5 box", "rescale has no option 'box'; it takes {'kernel': ('nearest', 'bilinear', "),
        ("rescale 0.5 kernel=1", "kernel must be in ('nearest', "),
        ("rescale 0.5 factor=1", "rescale has no option 'factor=1'"),
        ("social 75 factor=2", "factor must be in (0.05, 1), got 2"),
        ("double_jpeg 75 shift=1.5", "shift must be in (0, 15), a whole number, got 1.5"),
    ],
)
def test_what_is_not_understood_is_shown_with_what_would_be_right(text, reason):
    with pytest.raises(ValueError) as error:
        registry.parse(text)
    assert reason in str(error.value)


def test_a_grid_starts_with_the_images_as_they_are_and_has_no_condition_twice():
    assert [condition.name for condition in registry.parse_all(["jpeg 75", "blur 1"])] == [
        "as it is",
        "jpeg 75",
        "blur 1",
    ]
    with pytest.raises(ValueError, match="twice"):
        registry.parse_all(["rescale 0.5", "rescale 0.5 bicubic"])


@pytest.mark.parametrize("name", registry.DEGRADATIONS)
def test_every_operator_takes_what_the_registry_allows(name):
    """At both ends of the level and of each option, on an image of odd size."""
    degradation, image = registry.DEGRADATIONS[name], torch.rand(1, 3, 21, 16)
    words = [""]
    for key, values in degradation.options.items():
        words += [value if isinstance(value, str) else f"{key}={value:g}" for value in values]
    for text in [f"{name} {level:g} {word}" for level in degradation.range for word in words]:
        degraded = registry.compose(image, registry.parse(text).chain)
        assert degraded.shape[:2] == (1, 3) and 0 <= degraded.min() and degraded.max() <= 1


def test_the_default_grid_is_large_and_a_table_row_tells_its_condition():
    conditions = registry.parse_all(config.Robustness().conditions)
    assert len(conditions) > 40
    assert [registry.name(row.degradation, row.level) for row in conditions] == [row.name for row in conditions]
    assert len({(row.degradation, row.level) for row in conditions}) == len(conditions)
    demo = config.profile("demo", "03_robustness")["conditions"]
    assert {registry.parse(text).chain[-1][0] for text in demo} == set(registry.DEGRADATIONS)


def test_the_documented_table_is_the_registry():
    """Operators in the same order, with the same range of the level and the same kernels."""
    text = (config.ROOT / "docs/degradations.md").read_text("utf-8")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    assert [row[0].strip("`") for row in cells] == list(registry.DEGRADATIONS)
    for (_, level, options, _), row in zip(cells, registry.DEGRADATIONS.values(), strict=True):
        assert f", {row.range[0]:g} to {row.range[1]:g}" in level
        kernels = {"kernel"} & set(row.options) and "the same" not in options
        assert not kernels or set(re.findall("`([a-z]+)`", options)) == set(row.options["kernel"])


def test_a_share_of_the_draws_is_left_clean_and_the_rest_is_drawn_as_ever():
    torch.manual_seed(0)
    half = registry.RandomDegrade(p_history=1, p_clean=0.5)
    clean = sum(not half.draw() for _ in range(400))
    assert 160 < clean < 240
    torch.manual_seed(1)
    plain = [registry.RandomDegrade().draw() for _ in range(20)]
    torch.manual_seed(1)
    assert plain == [registry.RandomDegrade(p_clean=0.0).draw() for _ in range(20)]


def test_every_kernel_and_every_shift_is_drawn():
    torch.manual_seed(0)
    often = registry.RandomDegrade(**dict.fromkeys(STEPS, 0.5) | {"p_codec": 1, "p_double": 1})
    options = [how for _ in range(1000) for _, _, how in often.draw()]
    assert {how["kernel"] for how in options if "kernel" in how} == {"bilinear", "bicubic", "lanczos"}
    assert {how["shift"] for how in options if "shift" in how} == set(range(16))


def test_the_documented_training_draws_are_the_defaults():
    text = (config.ROOT / "docs/degradations.md").read_text("utf-8").split("## In training")[1]
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")][1:]
    default = registry.RandomDegrade()
    assert [float(row[2]) for row in rows] == [getattr(default, name) for name in STEPS[:8]]
    shares = [default.p_double, default.p_webp, default.p_full_chroma]
    assert [int(share) / 100 for share in re.findall(r"(\d+) %", rows[-1][3])] == shares
