"""The detector that ships: its files, and its answers where CLIP's weights can be had."""

import json

import pytest
from safetensors import safe_open

from dfd.config import DETECTOR, SHIPPED, SUMS
from dfd.core.images import load_rgb
from dfd.data.sample import PHOTOS
from dfd.degrade import compose, to_tensor
from dfd.degrade.registry import parse
from dfd.inference import Detector
from dfd.models import clip


@pytest.mark.parametrize("stage", SHIPPED)
def test_the_files_are_small_and_hold_what_a_stage_needs(stage):
    path = DETECTOR / SHIPPED[stage]
    assert path.stat().st_size < 10e6 and f"  {path.name}\n" in (DETECTOR / SUMS).read_text("utf-8")
    with safe_open(path, "pt") as file:
        content, names = json.loads(file.metadata()["stage"]), set(file.keys())
    prefix = "backbone" if stage == "stage1" else "classifier.backbone"
    assert content["stage"] == stage and content["is_held_out"] and f"{prefix}.head.weight" in names
    assert not any("trunk" in name for name in names)


@pytest.mark.slow
def test_it_answers_and_a_photo_is_not_called_fake(monkeypatch):
    monkeypatch.delenv("DFD_CACHE")
    try:
        clip.weights_file()
    except ValueError as error:
        pytest.skip(f"no network and no cache: {error}")
    detector = Detector.load()
    for photo in PHOTOS[:4]:
        image = load_rgb(photo.path)
        verdict = detector(image)
        assert verdict.verdict in ("real", "unsure") and verdict == detector(image), photo.file
        assert abs(sum(verdict.p_source.values()) - 1) < 1e-6 and set(verdict.p_source) == set(detector.stage2.classes)
    saved = detector(compose(to_tensor(image), parse("jpeg 90").chain)[0])
    assert abs(saved.p_fake - verdict.p_fake) < 0.5
