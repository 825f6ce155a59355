"""The detector that ships: its files, and its answers where CLIP's weights can be had."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.metrics import roc_auc_score

from dfd.analysis import explain
from dfd.config import ADAPTER, DETECTOR, SHIPPED, SUMS
from dfd.core.images import load_rgb
from dfd.core.io import sha256_of
from dfd.data.crops import plan
from dfd.data.sample import PHOTOS
from dfd.degrade import compose, to_tensor
from dfd.degrade.registry import parse
from dfd.inference import Detector, Stage
from dfd.inference.detector import files_of
from dfd.models import clip, simulators


@pytest.mark.parametrize("stage", SHIPPED)
def test_the_files_are_small_and_hold_what_a_stage_needs(stage):
    path = DETECTOR / SHIPPED[stage]
    assert path.stat().st_size < 10e6
    with safe_open(path, "pt") as file:
        content, names = json.loads(file.metadata()["stage"]), set(file.keys())
    prefix = "backbone" if stage == "stage1" else "classifier.backbone"
    assert content["stage"] == stage and content["is_held_out"] and f"{prefix}.head.weight" in names
    assert not any("trunk" in name for name in names)
    assert content["adapter"] == (sha256_of(ADAPTER) if stage == "stage1" else None)  # its head goes with no other
    every = {file.name for file in DETECTOR.iterdir()} - {"README.md", SUMS}
    assert {line.split()[1] for line in (DETECTOR / SUMS).read_text("utf-8").splitlines()} == every


def test_its_files_are_all_that_a_worker_elsewhere_needs(tmp_path, monkeypatch):
    for name in files_of(DETECTOR):
        shutil.copy(DETECTOR / name, tmp_path)
    opened = [SimpleNamespace(stage=stage, threshold=0.5) for stage in SHIPPED]
    monkeypatch.setattr(Stage, "load", lambda path, device: opened[list(SHIPPED.values()).index(path.name)])
    assert Detector.load(tmp_path).stages == tuple(opened)  # each is there, and what SHA256SUMS says


def test_names_in_its_sums_lead_nowhere_else(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / SUMS).write_text("0  ../../.bashrc\n0  /dev/zero\n")
    assert files_of(tmp_path / "model") == [*SHIPPED.values(), SUMS, ".bashrc", "zero"]


@pytest.mark.parametrize("sums", ["", "<html>404</html>\n", "0\n", "0 a b\n", b"\xff\xfe\0", None])
def test_a_detector_whose_sums_or_files_are_damaged_is_named_and_not_opened(sums, tmp_path, monkeypatch):
    monkeypatch.setattr(Stage, "load", lambda *_: pytest.fail("opened"))
    for name in files_of(DETECTOR):
        shutil.copy(DETECTOR / name, tmp_path)
    if sums is None:
        (tmp_path / "adapter.safetensors").unlink()
    else:
        (tmp_path / SUMS).write_bytes(sums if isinstance(sums, bytes) else sums.encode())
    named = "adapter" if sums is None else "stage1"
    with pytest.raises(ValueError, match=rf"{named}\.safetensors is not the file that {SUMS} names, or gone"):
        Detector.load(tmp_path)


def test_each_line_of_a_name_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(Stage, "load", lambda *_: pytest.fail("opened"))
    for name in files_of(DETECTOR):
        shutil.copy(DETECTOR / name, tmp_path)
    right = (tmp_path / SUMS).read_text("utf-8")
    (tmp_path / SUMS).write_text(f"{'0' * 64}  {SHIPPED['stage1']}\n{right}", "utf-8")
    with pytest.raises(ValueError, match=rf"{SHIPPED['stage1']} is not the file that {SUMS} names"):
        Detector.load(tmp_path)


@pytest.mark.parametrize("line", ["{0} *{1}", "{2}  {1}"])
def test_sums_of_other_programs_are_read(line, tmp_path, monkeypatch):
    """With the mark of a file that was read as binary, or upper-case digits, as Windows writes them."""
    monkeypatch.setattr(Stage, "load", lambda *_: pytest.fail("opened"))
    for name in files_of(DETECTOR):
        shutil.copy(DETECTOR / name, tmp_path)
    rows = [row.split() for row in (DETECTOR / SUMS).read_text("utf-8").splitlines()]
    (tmp_path / SUMS).write_text("".join(line.format(*row, row[0].upper()) + "\n" for row in rows), "utf-8")
    with pytest.raises(pytest.fail.Exception, match="opened"):
        Detector.load(tmp_path)


@pytest.fixture(scope="module")  # made before each test gets a cache of its own: CLIP's weights are in the user's
def detector():
    try:
        clip.weights_file()
    except ValueError as error:
        pytest.skip(f"no network and no cache: {error}")
    return Detector.load()


@pytest.mark.slow
def test_it_answers_and_a_photo_is_not_called_fake(detector):
    for photo in PHOTOS[:4]:
        image = load_rgb(photo.path)
        verdict = detector(image)
        assert verdict.verdict in ("real", "unsure") and verdict == detector(image), photo.file
        assert abs(sum(verdict.p_source.values()) - 1) < 1e-6 and set(verdict.p_source) == set(detector.stage2.classes)
        assert -0.73 < verdict.log10_lr < 0.5  # 16 sources of fakes carry 3 in 16
    crops = detector.stage1.prepare(image).windows[:2] / 255  # whose tokens are cached: no layer runs for them
    assert explain.grad_cam(detector.stage1, crops, "fake").shape == (2, 128, 128)
    saved = detector(compose(to_tensor(image), parse("jpeg 90").chain)[0])
    assert abs(saved.p_fake - verdict.p_fake) < 0.5


@pytest.mark.slow
def test_what_is_no_picture_of_anything_is_unsure_and_says_why(detector):
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    for pixels in (noise, np.full((128, 128, 3), 90, np.uint8)):
        verdict = detector(pixels)
        assert verdict.verdict == "unsure" and "unlike all images" in verdict.outside
    white = detector(np.full((512, 512, 3), 255, np.uint8))  # near the space of training images
    assert white.verdict == "unsure" and white.outside
    photo = load_rgb(PHOTOS[0].path)
    assert detector(photo.crop((0, 0, 128, 128))).outside is None
    assert "its shorter side has 127 px" in detector(photo.crop((0, 0, 300, 127))).outside  # most such were fakes


@pytest.mark.slow
def test_a_generated_quarter_stands_out_on_the_map(detector, record_property):
    aucs = []
    for photo in [photo for photo in PHOTOS if photo.file in ("astronaut.png", "coffee.png")]:
        pixels = to_tensor(load_rgb(photo.path))
        height, width = (side // 8 * 4 for side in pixels.shape[-2:])
        with torch.inference_mode():
            pixels[..., :height, :width] = simulators.load("ProGAN")(pixels[..., :height, :width])
        stage = detector.stage1
        chosen = plan(*pixels.shape[-2:], stage.crop_size, 100, "grid", stage.crop_size)
        (scored,) = stage.score([stage.cut_out(pixels, chosen)])
        overlap = [max(0, min(128, height - top)) * max(0, min(128, width - left)) / 128**2
                   for top, left in chosen.corners]  # fmt: skip
        whole = [i for i, share in enumerate(overlap) if share < 0.05 or share > 0.95]
        aucs.append(roc_auc_score([overlap[i] > 0.5 for i in whole], scored.crop_logits[whole, 1]))
    record_property("auc over windows", aucs)
    assert min(aucs) > 0.7
