"""The grid's grammar: what is read, what is refused with which words, and that the operators agree."""

import pytest
import torch

from dfd import config
from dfd.degrade import registry


def test_a_chain_is_read_step_by_step():
    found = registry.parse("rescale 0.5 lanczos + jpeg 80 4:4:4")
    assert found.name == "rescale 0.5 lanczos + jpeg 80 4:4:4"
    assert found.chain == (("rescale", 0.5, {"kernel": "lanczos"}), ("jpeg", 80, {"subsampling": "4:4:4"}))
    assert (found.degradation, found.level) == ("rescale 0.5 lanczos + jpeg 4:4:4", 80)


def test_what_is_not_said_is_the_usual_and_one_condition_has_one_name():
    assert registry.parse("rescale  0.50") == registry.parse("rescale 0.5 bicubic")
    assert registry.parse("double_jpeg 75 first=95 shift=3").chain[0][2] == {"first": 95, "shift": 3}
    assert registry.parse("jpeg 75").chain == (("jpeg", 75, {}),)


def test_resampling_comes_back_to_the_size():
    chain = registry.parse("resample 0.8 bilinear").chain
    image = torch.rand(1, 3, 50, 40)
    assert registry.compose(image, chain).shape == image.shape
    assert torch.equal(registry.compose(image, chain[:1]), registry.at_level(image, "rescale", 0.8, kernel="bilinear"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("jpg 75", "'jpg 75': unknown operator 'jpg'; choose one of jpeg, double_jpeg"),
        ("none 0", "unknown operator 'none'"),
        ("jpeg", "an operator and a level"),
        ("jpeg 75 +", "an operator and a level"),
        ("", "an operator and a level"),
        ("jpeg high", "'jpeg high': the level of jpeg must be a number, got 'high'"),
        ("jpeg 0", "must be 1 to 100, a whole number, got 0"),
        ("jpeg 75.5", "a whole number, got 75.5"),
        ("blur nan", "must be 0.05 to 50, got nan"),
        ("crop 1.5", "must be 0.05 to 1, got 1.5"),
        ("jpeg 75 lanczos", "jpeg has no option 'lanczos'; it takes 4:4:4, 4:2:2, 4:2:0"),
        ("blur 1 lanczos", "blur has no option 'lanczos'; it takes none"),
        ("social 75 factor=2", "factor must be 0.05 to 1, got 2"),
        ("double_jpeg 75 shift=1.5", "shift must be 0 to 15, a whole number, got 1.5"),
    ],
)
def test_what_is_not_understood_is_shown_with_what_would_be_right(text, reason):
    with pytest.raises(registry.GridError) as error:
        registry.parse(text)
    assert reason in str(error.value)


def test_a_grid_starts_with_the_images_as_they_are_and_has_no_condition_twice():
    assert [one.name for one in registry.parse_all(["jpeg 75", "blur 1"])] == ["as it is", "jpeg 75", "blur 1"]
    with pytest.raises(registry.GridError, match="twice"):
        registry.parse_all(["rescale 0.5", "rescale 0.5 bicubic"])


@pytest.mark.parametrize("operator", registry.RULES)
def test_every_operator_takes_what_its_rule_allows(operator):
    """At both ends of the level and of each option, on an image of odd size."""
    rule, image = registry.RULES[operator], torch.rand(1, 3, 21, 16)
    words = ["", *(word for _, choices in rule.words for word in choices)]
    words += [f"{key}={value:g}" for key, limits in rule.numbers for value in limits]
    for text in [f"{operator} {level:g} {word}" for level in (rule.low, rule.high) for word in words]:
        degraded = registry.compose(image, registry.parse(text).chain)
        assert degraded.shape[:2] == (1, 3) and 0 <= degraded.min() and degraded.max() <= 1


def test_the_grammar_covers_every_operator_and_its_names():
    assert set(registry.RULES) == set(registry.OPERATORS) | {"resample"}
    from dfd.degrade import operators

    assert operators.KERNELS == registry.GRID_KERNELS and tuple(operators.SUBSAMPLING) == registry.SUBSAMPLING


def test_the_default_grid_is_large_and_a_table_row_tells_its_condition():
    conditions = registry.parse_all(config.Robustness().conditions)
    assert len(conditions) > 40
    assert [registry.name(one.degradation, one.level) for one in conditions] == [one.name for one in conditions]
    assert len({(one.degradation, one.level) for one in conditions}) == len(conditions)
    demo = config.profile("demo", "03_robustness")["conditions"]
    assert {registry.last_operator(registry.parse(one).degradation) for one in demo} == set(registry.RULES)


def test_series_run_from_mild_to_severe():
    order = {
        "jpeg": [95, 75, 30], "blur": [0.5, 1, 2], "crop": [0.9, 0.5], "resample bilinear": [0.8, 0.5],
        "rescale bicubic, below 1": [0.75, 0.5], "rescale bicubic, above 1": [1.5, 2], "gamma, below 1": [0.7, 0.5],
    }  # fmt: skip
    for name, levels in order.items():
        found = [registry.family(name.split(",")[0], level) for level in levels]
        assert {one for one, _ in found} == {name}
        assert [severity for _, severity in found] == sorted(severity for _, severity in found)
