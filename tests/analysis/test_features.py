"""Cached features: what the last layer sees, made once for each content and each set of weights."""

import numpy as np
import pytest
import torch
from networks import untrained

from dfd.analysis import label_errors
from dfd.data import manifest
from dfd.inference import stage as stage_module


@pytest.fixture
def table(tiny_data, tmp_path):
    return manifest.scan(tiny_data, tmp_path, progress=False)


@pytest.mark.parametrize("name", ["stage1", "stage2"])
def test_the_last_layer_makes_the_logits_from_the_features(name):
    stage = untrained(name)
    crops = torch.rand(3, 3, 64, 64)
    found = torch.from_numpy(stage_module.extract_features(stage, crops))
    head = stage.backbone.get_classifier()
    with torch.inference_mode():
        logits = head(found)
        expected = stage.model(crops)
    assert torch.allclose(logits.reshape(expected.shape), expected, atol=1e-5)
    assert not head._forward_pre_hooks


def test_features_are_made_once_and_anew_for_other_weights(table, tmp_path, monkeypatch):
    made = []
    extract = label_errors.extract_features
    monkeypatch.setattr(
        label_errors, "extract_features", lambda stage, crops: made.append(len(crops)) or extract(stage, crops)
    )
    stage = untrained("stage1")
    first = label_errors.cached_features(stage, table.head(5), tmp_path)
    table.head(5).to_csv(tmp_path / "unrelated.csv")
    whole = label_errors.cached_features(stage, table, tmp_path)
    assert made == [5, len(table) - 5]
    assert np.array_equal(whole[:5], first) and whole.dtype == np.float32
    shuffled = table.sample(frac=1, random_state=0)
    assert np.array_equal(label_errors.cached_features(stage, shuffled, tmp_path), whole[shuffled.index])
    assert sum(made) == len(table)
    for number, stage in enumerate([untrained("stage1", seed=1), untrained("stage1", seed=1, crop_size=96)], 1):
        other = label_errors.cached_features(stage, table.head(5), tmp_path)
        assert sum(made) == len(table) + 5 * number and not np.allclose(other, first)
