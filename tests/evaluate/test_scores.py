"""Score tables: how images are read, and what is said where crops were not enough."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_inference import content, noise

from dfd.degrade import registry
from dfd.evaluate import scores
from dfd.inference.stage import Stage


@pytest.fixture
def table(tmp_path):
    """Three images: of one window of 32, of 20 and of 50."""
    names = ["a.png", "b.png", "c.png"]
    for name, size in zip(names, [(32, 32), (160, 128), (320, 160)], strict=True):
        noise(*size).save(tmp_path / name)
    rows = pd.DataFrame({"path": names, "label": "ProGAN", "split": "val", "group": names, "is_fake": True})
    rows.attrs["root"] = str(tmp_path)
    return rows


def test_a_mode_and_a_number_are_passed_on_and_the_lack_of_crops_is_printed_once(table, capsys):
    stage = Stage(content(), torch.device("cpu"))
    assert scores.score(stage, table)["crops"].tolist() == [1, 5, 5]
    assert capsys.readouterr().out == ""
    assert scores.score(stage, table, mode="grid")["crops"].tolist() == [1, 20, 50]
    assert capsys.readouterr().out == ""
    assert scores.score(stage, table, crops=12, mode="grid")["crops"].tolist() == [1, 12, 12]
    assert capsys.readouterr().out == "stage1 clean: 2 of 3 images needed more crops, up to 50\n"
    scores.score(stage, table, "blur", 1.0, 12, "grid")
    assert capsys.readouterr().out == "stage1 blur 1: 2 of 3 images needed more crops, up to 50\n"


def test_rows_hold_what_the_stage_says_of_each_image(table):
    stage = Stage(content(), torch.device("cpu"))
    found = scores.score(stage, table, crops=4)
    for name, row in zip(table["path"], found.itertuples(), strict=True):
        (alone,) = stage.stream([Image.open(f"{table.attrs['root']}/{name}")], 4)
        assert (row.path, row.crops) == (name, alone.crops)
        assert [row.logit_real, row.logit_fake] == pytest.approx(alone.logits.tolist(), abs=0.03)
        assert row.crop_std == pytest.approx(alone.crop_std, abs=0.03)


def test_only_degraded_images_become_float_as_a_whole(table, monkeypatch):
    sizes = []
    whole = registry.to_tensor
    monkeypatch.setattr(registry, "to_tensor", lambda image: sizes.append(image.size) or whole(image))
    stage = Stage(content(), torch.device("cpu"))
    clean = scores.score(stage, table)
    assert sizes == []
    blurred = scores.score(stage, table, "blur", 2.0)
    assert sizes == [(32, 32), (160, 128), (320, 160)]
    assert not np.allclose(clean["logit_fake"], blurred["logit_fake"], atol=0.01)
