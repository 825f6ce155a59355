"""Features: what the last layer of a stage sees of an image."""

import numpy as np
import pytest
import torch
from networks import untrained

from dfd.analysis import audit
from dfd.data import manifest
from dfd.data.crops import equalise
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


def test_features_come_in_the_tables_order_from_crops_behind_the_stages_codec(table, monkeypatch):
    stage, shuffled = untrained("stage1"), table.sample(frac=1, random_state=0)
    stage.equalise_quality = 60
    monkeypatch.setattr(audit, "BATCH", 5)
    found = audit.image_features([stage], shuffled)
    for position, path in enumerate(shuffled["path"].head(7)):
        crop = equalise(stage_module.center_crops(table, [path], stage.crop_size), 60)
        assert np.allclose(found[position], stage_module.extract_features(stage, crop)[0], atol=1e-5)
    stage.equalise_quality = None
    assert len(found) == len(table) and not np.allclose(found, audit.image_features([stage], shuffled), atol=1e-3)
