"""Attacks on stage 1: they stay within their bound, and hide what a detector looks for."""

from types import SimpleNamespace

import pytest
import torch
from folders import scan
from networks import content

from dfd.analysis import ablation, removal
from dfd.config import CHECKPOINTS
from dfd.data import manifest
from dfd.inference.files import save_checkpoint
from dfd.models.backbones import high_pass

BOARD = 0.02 * ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2 - 1)


@pytest.fixture
def stage():
    """A detector that calls fake what has much of a checkerboard, and knows nothing else."""

    def logits(images):
        return 1000 * ((high_pass(images) * BOARD).mean((1, 2, 3)) - 0.5 * (BOARD * BOARD).mean())

    facts = {"stage": "stage1", "crop_size": 32, "equalise_quality": None, "device": torch.device("cpu")}
    return SimpleNamespace(model=logits, temperature=0.01, threshold=0.5, **facts)


@pytest.fixture
def fakes():
    torch.manual_seed(0)
    return 0.3 + 0.4 * torch.rand(20, 3, 1, 1).expand(20, 3, 32, 32) + BOARD


def test_the_gradient_hides_what_the_detector_sees_and_noise_does_not(stage, fakes):
    assert removal.share_found(stage, fakes) == 1 and removal.share_found(stage, fakes - BOARD) == 0
    changed = removal.along_gradient(stage, fakes)
    assert (changed - fakes).abs().max() <= removal.BOUND + 1e-6
    assert removal.share_found(stage, changed) == 0
    noise = removal.BOUND * (2 * torch.rand(fakes.shape).round() - 1)
    assert removal.share_found(stage, fakes + noise) == 1


def test_a_launderer_learns_to_hide_it_within_the_bound(stage, fakes, monkeypatch):
    monkeypatch.setattr(removal, "sample_crops", lambda *_: (fakes, None))
    network = removal.launderer(stage, None, steps=60)
    with torch.no_grad():
        laundered = fakes + network(fakes)
    assert (laundered - fakes).abs().max() <= removal.BOUND + 1e-6
    assert removal.share_found(stage, laundered) < 0.2


def test_attacks_are_judged_as_they_are_and_behind_a_jpeg_that_hides_the_trace(stage, fakes, monkeypatch):
    monkeypatch.setattr(removal, "sample_crops", lambda *_: (fakes, None))
    table = removal.attacked({"ours": stage}, None, None, steps=60).loc["ours"]
    assert table["as it is"].to_dict()["untouched"] == 1 and table.loc["along its gradient", "as it is"] == 0
    assert table.loc["laundered against it", "as it is"] < 0.2
    assert table.loc["untouched", f"JPEG {min(removal.QUALITIES)}"] == 0  # a board of 5 grey levels is rounded away


def test_the_table_has_each_detector_against_each_attack(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(removal, "TRIED", 2)
    other = tmp_path / "ablation_stage1" / "without_adversarial_part"
    other.mkdir(parents=True)
    images = scan(tiny_data)
    save_checkpoint(content("stage1"), tmp_path / CHECKPOINTS["stage1"])
    for is_finished, of in ((False, manifest.digest(images)), (True, "another manifest")):
        save_checkpoint(content("stage1", finished=is_finished, manifest_hash=of), other / CHECKPOINTS["stage1"])
        assert ablation.trained(images, tmp_path, "stage1", ablation.NO_ADVERSARIES) is None
    ours = content("stage1", finished=True, manifest_hash=manifest.digest(images))
    save_checkpoint(ours, other / CHECKPOINTS["stage1"])
    table = removal.measure(tmp_path, images, steps=1)
    attacks = [
        "untouched",
        "along its gradient",
        "laundered against it",
        "laundered against one without adversaries",
    ]
    assert [name for _, name in table.index[:3]] == attacks[:3] and table.index[3][1] == attacks[3]
    assert set(table.index.get_level_values(0)) == {"this detector", "one without adversaries"} and len(table) == 8
    assert list(table) == ["as it is", "JPEG 95", "JPEG 75", "JPEG 50"]
    first, second = (table.loc[name].to_numpy() for name in ("this detector", "one without adversaries"))
    assert (first[:2] == second[:2]).all()  # they are one network


def test_a_share_is_counted_at_the_threshold_and_behind_the_codec(stage, fakes):
    stage.temperature, stage.threshold = 1e3, 0.51
    assert removal.share_found(stage, fakes) == 0  # all have a little more than 0.5
    stage.threshold, stage.equalise_quality = 0.5, None
    assert removal.share_found(stage, fakes) == 1
    stage.equalise_quality = 50
    assert removal.share_found(stage, fakes) == 0


def test_launderers_learn_on_training_images_and_test_images_are_attacked(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(removal, "attacked", lambda stages, *images: images[:2])
    save_checkpoint(content("stage1"), tmp_path / CHECKPOINTS["stage1"])
    for split, rows in zip(("train", "test"), removal.measure(tmp_path, scan(tiny_data), steps=1), strict=True):
        assert rows["is_fake"].all() and set(rows["split"]) == {split}


def test_a_launderer_repeats_under_its_seed(stage, fakes, monkeypatch):
    monkeypatch.setattr(removal, "sample_crops", lambda *_: (fakes, None))
    first, again = (removal.launderer(stage, None, steps=2, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
