"""Configs: bad values and misspelt names stop a run with a text that helps."""

import dataclasses

import pytest

from dfd import config


@pytest.mark.parametrize("cls", config.NOTEBOOKS.values())
def test_every_notebook_has_the_shared_parameters(cls):
    assert {"data", "out", "seed"} <= {field.name for field in dataclasses.fields(cls)}
    with pytest.raises(dataclasses.FrozenInstanceError):
        cls().seed = 1


@pytest.mark.parametrize(
    ("cls", "values", "text"),
    [
        (config.Stage1, {"crop_size": 100}, "multiple of 8"),
        (config.Stage1, {"crop_size": 16}, "at least 32"),
        (config.Stage1, {"num_epochs": 0}, "num_epochs must be at least 1"),
        (config.Stage1, {"lr_gc": -1.0}, "lr_gc must be positive"),
        (config.Stage1, {"lr_gc": "fast"}, "lr_gc must be of type float"),
        (config.Stage1, {"pretrained": 1}, "pretrained must be of type bool"),
        (config.Stage1, {"representation": "hsv"}, "rgb or highpass"),
        (config.Stage1, {"equalise_quality": 100}, "1 to 95"),
        (config.Stage2, {"residual_bound": 0.0}, "residual_bound"),
        (config.Eda, {"val_fraction": 0.6, "test_fraction": 0.5}, "room to train"),
        (config.Eda, {"hold_out": ["a"]}, "hold_out needs group_by"),
        (config.Eda, {"group_by": "source", "hold_out": "a"}, r"hold_out must be of type tuple\[str, ...\], got 'a'"),
        (config.Eda, {"group_by": "source", "hold_out": [1]}, r"type tuple\[str, ...\], got \[1\]"),
        (config.Robustness, {"conditions": [95]}, r"type tuple\[str, ...\]"),
        (config.Robustness, {"accuracy": 70}, "accuracy is a share"),
        (config.ErrorAnalysis, {"split": "train"}, "val or test"),
        (config.ErrorAnalysis, {"alpha": 0.0}, "alpha must lie in"),
        (config.ErrorAnalysis, {"uncertain": 0}, "uncertain must be at least 1"),
    ],
)
def test_wrong_values_are_named(cls, values, text):
    with pytest.raises(config.ConfigError, match=text):
        cls(**values)


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


def test_unknown_profile_lists_the_known():
    with pytest.raises(config.ConfigError, match="demo, quick, full"):
        config.profile("slow", "00_eda")


def test_paths_are_taken_from_the_project_when_a_notebook_runs_in_place(monkeypatch, tmp_path):
    monkeypatch.chdir(config.ROOT / "notebooks")
    assert config.resolve("data/sample") == config.ROOT / "data/sample"
    monkeypatch.chdir(tmp_path)
    assert config.resolve("data/sample") == tmp_path / "data/sample"
    assert config.resolve("/somewhere") == config.resolve("/somewhere").absolute()
