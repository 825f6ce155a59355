"""Configs: bad values and misspelt names stop a run with a text that helps."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from dfd import config


@pytest.mark.parametrize("cls", config.NOTEBOOKS.values())
def test_every_notebook_has_the_shared_parameters(cls):
    assert {"data", "out", "seed"} <= cls.model_fields.keys()
    with pytest.raises(ValidationError, match="frozen"):
        cls().seed = 1


@pytest.mark.parametrize(
    ("cls", "values", "text"),
    [
        (config.Stage1, {"crop_size": 100}, "multiple of 8"),
        (config.Stage1, {"crop_sze": 64}, "'crop_sze'; did you mean 'crop_size'"),
        (config.Eda, {"group_by": "source", "hold_out": '["a'}, "hold_out Unterminated string"),
        (config.Stage1, {"crop_size": 16}, "greater than or equal to 32"),
        (config.Stage1, {"batch_size": 1}, "greater than or equal to 2"),  # a photo and a fake
        (config.Stage1, {"launderer_width": 6}, "multiple of 4"),
        (config.Stage2, {"unet_width": 10}, "multiple of 4"),
        (config.Stage1, {"num_epochs": 0}, "num_epochs must be greater than or equal to 1, got 0"),
        (config.Stage1, {"lr_gc": -1.0}, "lr_gc must be greater than 0"),
        (config.Stage1, {"lr_gc": "fast"}, "lr_gc must be a valid number.*'fast'"),
        (config.Stage1, {"pretrained": 2}, "pretrained must be a valid boolean"),
        (config.Stage1, {"representation": "hsv"}, "'rgb' or 'highpass'"),
        (config.Stage1, {"equalise_quality": 100}, "less than or equal to 95"),
        (config.Stage2, {"residual_bound": 0.0}, "residual_bound"),
        (config.Eda, {"group_by": "source", "hold_out": [1]}, "hold_out.0 must be a valid string, got 1"),
        (config.Robustness, {"conditions": [95]}, "conditions.0 must be a valid string, got 95"),
        (config.Stage2, {"coverage": 70}, "coverage must be less than 1"),
        (config.ErrorAnalysis, {"split": "train"}, "'val' or 'test'"),
        (config.ErrorAnalysis, {"alpha": 0.0}, "alpha must be greater"),
        (config.ErrorAnalysis, {"uncertain": 0}, "uncertain must be greater"),
    ],
)
def test_wrong_values_are_named(cls, values, text):
    with pytest.raises(config.ConfigError, match=text):
        cls(**values)


@pytest.mark.parametrize(
    ("cls", "name", "text", "value"),
    [
        (config.Stage1, "num_epochs", "3", 3),
        (config.Stage1, "lr_gc", "3e-4", 3e-4),
        (config.Stage1, "pretrained", "no", False),
        (config.Stage1, "backbone", "18", "18"),
        (config.Robustness, "conditions", "jpeg 50, blur 1 + jpeg 75", ("jpeg 50", "blur 1 + jpeg 75")),
        (config.Robustness, "conditions", '["jpeg 50"]', ("jpeg 50",)),
        (config.Robustness, "conditions", "", ()),
        (config.Eda, "hold_out", "my camera , scans\r", ("my camera", "scans")),  # the last line end of a table
        (config.Eda, "group_by", Path("source"), None),
    ],
)
def test_words_of_the_command_line_become_values(cls, name, text, value):
    if value is None:
        with pytest.raises(config.ConfigError):
            cls(**{name: text})
    else:
        assert getattr(cls(**{name: text}), name) == value


PARAMETERS, IMPORTS = "num_epochs = 3  # comment\nseed = 0", "import torch\n\ncfg = 1"


def notebook(*cells, **names):
    """Globals of a kernel that has run some cells and is running the one that builds the config."""
    return {"In": ["", *cells, "cfg = config.from_notebook(...)"], "__name__": "x", "config": config, **names}


def test_notebook_globals_become_a_config():
    names = notebook("seed = 0", "# Parameters\nseed = 4", num_epochs=3, seed=4)
    assert config.from_notebook(config.Stage1, names) == config.Stage1(num_epochs=3, seed=4)


def test_misspelt_parameter_suggests_the_right_one_and_can_be_corrected():
    with pytest.raises(config.ConfigError, match="'num_epoch'; did you mean 'num_epochs'"):
        config.from_notebook(config.Stage1, notebook(PARAMETERS, "# Parameters\nnum_epoch = 3", num_epoch=3))
    mended = notebook("num_epoch = 3", "cfg = config.from_notebook(...)", "num_epochs = 3", num_epoch=3, num_epochs=3)
    assert config.from_notebook(config.Stage1, mended) == config.Stage1(num_epochs=3)


PROFILE = "# Parameters\nstage1_real_fake = {'num_epochs': 8, 'crop_size': 96}\nrobustness = {'crops': 3}"


def test_a_profile_goes_before_the_parameters_cell_and_what_is_given_beside_it_before_the_profile():
    cells = ["num_epochs = 3\ncrop_size = 128", PROFILE]
    names = notebook(*cells, num_epochs=3, crop_size=128, robustness="a module")
    assert config.from_notebook(config.Stage1, names) == config.Stage1(num_epochs=8, crop_size=96)
    assert config.from_notebook(config.Robustness, notebook(PROFILE, robustness="a module")).crops == 3
    cells[1] += "\ncrop_size = 64"
    names = notebook(*cells, num_epochs=3, crop_size=64)
    assert config.from_notebook(config.Stage1, names) == config.Stage1(num_epochs=8, crop_size=64)
    cells[1] = cells[1].replace("num_epochs", "num_epoch")
    with pytest.raises(config.ConfigError, match="'num_epoch'; did you mean 'num_epochs'"):
        config.from_notebook(config.Stage1, notebook(*cells))


def test_the_cell_can_be_run_again_after_others_have_left_their_names():
    names = notebook(
        PARAMETERS, IMPORTS, "for split in ('val', 'test'):\n    text = 'x'", PARAMETERS, split="test", text="x"
    )
    assert config.from_notebook(config.Stage1, names | {"num_epochs": 3}) == config.Stage1(num_epochs=3)
    with pytest.raises(config.ConfigError, match="num_epoch"):
        config.from_notebook(config.Stage1, names | {"In": [*names["In"][:-1], "num_epoch = 9", "cfg"]})


@pytest.mark.parametrize("name", config.PROFILES)
@pytest.mark.parametrize("stem", config.NOTEBOOKS)
def test_profiles_set_only_known_valid_parameters(name, stem):
    config.NOTEBOOKS[stem](**config.profile(name, stem))
    assert yaml.safe_load((config.ROOT / "configs" / f"{name}.yaml").read_text()).keys() <= set(
        config.SECTIONS.values()
    )


def test_unknown_profile_lists_the_known():
    with pytest.raises(config.ConfigError, match="demo, quick, full"):
        config.profile("slow", "00_eda")


def test_paths_are_taken_from_the_project_when_a_notebook_runs_in_place(monkeypatch, tmp_path):
    assert config.OwnData(out=f"{tmp_path}/own/").out == f"{tmp_path}/own"  # further folders are named after it
    monkeypatch.chdir(config.ROOT / "notebooks")
    assert config.resolve("data/sample") == config.ROOT / "data/sample"
    monkeypatch.chdir(tmp_path)
    assert config.resolve("data/sample") == tmp_path / "data/sample"
    assert config.resolve("/somewhere") == config.resolve("/somewhere").absolute()
