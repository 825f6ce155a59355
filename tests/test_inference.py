"""Inference: crops without resizing, averaged logits, checkpoints, and one Verdict per path."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dfd import inference
from dfd.inference import Detector, Stage, crop_corners


def content(stage="stage1", crop_size=32, quality=90, **changes):
    settings = {"backbone": "test_resnet.r160_in1k", "representation": "rgb", "unet_width": 4, "residual_bound": 0.1}
    classes = ["real", "fake"] if stage == "stage1" else ["BigGAN", "ProGAN", "StyleGAN2"]
    torch.manual_seed(1)
    model = inference.build_model(stage, settings, len(classes))
    basic = {"stage": stage, "classes": classes, "config": settings, "weights": model.state_dict()}
    preprocessing = {"preprocessing": {"crop_size": crop_size, "equalise_quality": quality}, "crops": 5}
    rest = {"threshold": 0.5, "temperature": 1.0, "history": [], "manifest_hash": "x"}
    return {**basic, **preprocessing, **rest, **changes}


@pytest.fixture
def run(tmp_path):
    for stage, name in inference.CHECKPOINTS.items():
        inference.save_checkpoint(content(stage), tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(("size", "crops", "expected"), [((32, 32), 5, 1), ((64, 64), 5, 5), ((32, 64), 5, 5)])
def test_crops_are_different_windows(size, crops, expected):
    assert len(crop_corners(*size, 32, crops)) == expected


def test_crops_stay_inside_and_number_what_was_asked():
    for crops in (1, 4, 9, 20):
        corners = crop_corners(200, 310, 64, crops)
        assert len(set(corners)) == crops
        assert all(0 <= y <= 136 and 0 <= x <= 246 for y, x in corners)
    assert crop_corners(200, 310, 64, 1) == [(68, 123)]


def test_many_crops_cover_the_whole_image():
    seen = np.zeros((150, 220), bool)
    for y, x in crop_corners(150, 220, 64, 60):
        seen[y : y + 64, x : x + 64] = True
    assert seen.all()


def test_logits_are_the_mean_over_separately_scored_crops():
    stage = Stage(content(quality=None), torch.device("cpu"))
    image = torch.rand(1, 3, 50, 70)
    logits, count, spread = next(stage.stream([image], crops=5))
    cuts = [image[..., y : y + 32, x : x + 32] for y, x in crop_corners(50, 70, 32, 5)]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, inference.uses_bfloat16(torch.device("cpu"))):
        alone = torch.cat([stage.model(cut) for cut in cuts]).float()
    assert count == 5
    assert logits[0] == 0 and logits[1].item() == pytest.approx(alone.mean().item(), abs=0.02)
    assert spread == pytest.approx(alone.std(correction=0).item(), abs=0.02)


def test_batching_images_of_many_sizes_changes_nothing(monkeypatch):
    stage = Stage(content(quality=None), torch.device("cpu"))
    images = [torch.rand(1, 3, *size) for size in ((32, 32), (20, 90), (64, 64), (5, 7), (100, 40))]
    together = [logits for logits, _, _ in stage.stream(images)]
    monkeypatch.setattr(inference, "BATCH", 1)
    one_by_one = [logits for logits, _, _ in stage.stream(images)]
    torch.testing.assert_close(torch.stack(together), torch.stack(one_by_one), atol=0.03, rtol=0.02)


def test_predict_gives_one_verdict_per_path_and_names_what_it_cannot_read(run, tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(good)
    bad.write_bytes(b"no image")
    first, second, third = Detector.load(run).predict([good, bad, tmp_path / "missing.png"])
    assert first.error is None and 0 <= first.p_fake <= 1 and first.crops == 5
    assert sum(first.p_source.values()) == pytest.approx(1)
    named = max(first.p_source, key=first.p_source.get)
    assert first.source == (named if first.is_fake else "RealPhotos")
    assert first.is_fake == (first.p_fake >= 0.5)
    for verdict in (second, third):
        assert verdict.error and verdict.p_fake is None and verdict.source is None
    expected = {"path", "is_fake", "p_fake", "source", "p_source", "crops", "crop_std", "error"}
    assert set(json.loads(json.dumps(first.asdict()))) == expected


def test_threshold_and_temperature_of_the_checkpoint_are_used(run, tmp_path):
    path = tmp_path / "x.png"
    Image.new("RGB", (64, 64), (90, 120, 30)).save(path)
    before = next(Detector.load(run).predict([path]))
    stage1 = run / inference.CHECKPOINTS["stage1"]
    inference.update_checkpoint(stage1, threshold=before.p_fake + 1e-3)
    assert not next(Detector.load(run).predict([path])).is_fake
    inference.update_checkpoint(stage1, threshold=before.p_fake - 1e-3, temperature=2.0)
    warm = next(Detector.load(run).predict([path])).p_fake
    odds = np.log(before.p_fake / (1 - before.p_fake))
    assert warm == pytest.approx(1 / (1 + np.exp(-odds / 2)), abs=1e-5)


def test_a_stage_takes_a_pil_image(run):
    logits = Stage.load(run / inference.CHECKPOINTS["stage2"])(Image.new("L", (40, 300)))
    assert logits.shape == (3,) and torch.isfinite(logits).all()


@pytest.mark.parametrize("bad", [b"", b"not a checkpoint at all", b"PK\x03\x04 broken zip"])
def test_a_foreign_file_is_no_checkpoint(tmp_path, bad):
    path = tmp_path / "model.pt"
    path.write_bytes(bad)
    with pytest.raises(ValueError, match="not a dfd checkpoint"):
        Stage.load(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"stage": Evil()}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="not a dfd checkpoint"):
        Stage.load(tmp_path / "model.pt")
    assert not (tmp_path / "owned").exists()


def test_without_a_model_the_error_says_how_to_get_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="make demo"):
        Detector.load(tmp_path)
