"""Inference: crops without resizing, averaged logits, checkpoints, and one Verdict per path."""

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_files import png_header
from networks import CPU, content, noise
from PIL import Image

from dfd.analysis import explain
from dfd.config import CHECKPOINTS, CROP_MODES, SHIPPED
from dfd.core.images import as_rgb, load_rgb
from dfd.data import crops
from dfd.inference import detector as detector_module
from dfd.inference import files as files_module
from dfd.inference import stage as stage_module
from dfd.inference.detector import Detector
from dfd.inference.stage import Stage, extract_features


def by_hand(mode):
    """Corners (left, top) in a 130 x 100 image with windows of 32, for nine crops, or all of the grid."""
    if mode == "grid":
        return [(left, top) for top in (0, 23, 45, 68) for left in (0, 24, 49, 74, 98)]
    if mode == "five":
        edges = [(49, 0), (0, 34), (98, 34), (49, 68)]
        return [(49, 34), (0, 0), (98, 0), (0, 68), (98, 68), *edges]
    return [(left, top) for top, left in crops.plan(100, 130, 32, 9, "random").corners]


@pytest.mark.parametrize("quality", [None, 90])
@pytest.mark.parametrize("mode", CROP_MODES)
@pytest.mark.parametrize("as_tensor", [False, True], ids=["pil", "tensor"])
def test_logits_are_the_mean_over_separately_scored_crops(mode, quality, as_tensor, monkeypatch):
    monkeypatch.setattr(stage_module, "uses_bfloat16", lambda device: False)
    monkeypatch.setattr(crops, "off_grid", lambda corners, *_: corners)
    image = noise(130, 100)
    stage = Stage(content(quality=quality), CPU)
    alone = []
    for left, top in by_hand(mode):
        crop = image.crop((left, top, left + 32, top + 32))
        if quality:
            crop.save(buffer := io.BytesIO(), "JPEG", quality=quality, subsampling="4:2:0")
            crop = Image.open(buffer)
        with torch.inference_mode():
            alone.append(stage.model(torch.from_numpy(np.array(crop) / 255).float().permute(2, 0, 1)[None]).item())
    given = torch.from_numpy(np.array(image) / 255).float().permute(2, 0, 1)[None] if as_tensor else image
    (scored,) = stage.stream([given], None if mode == "grid" else 9, mode)
    assert np.std(alone) > 0.01  # otherwise any window would do
    assert scored.crops == scored.needed == len(alone)
    assert scored.logits.tolist() == pytest.approx([0, np.mean(alone)], abs=1e-3)
    assert scored.crop_std == pytest.approx(np.std(alone), abs=1e-3)


@pytest.mark.parametrize("named", range(3))
def test_the_spread_of_stage_2_is_of_the_name_that_it_gives(named):
    stage = Stage(content("stage2"), CPU)
    with torch.no_grad():
        stage.model.classifier.backbone.get_classifier().bias[named] += 100
    (scored,) = stage.stream([noise(130, 100)], 9)
    spreads = scored.crop_logits.numpy().std(0)
    assert int(scored.logits.argmax()) == named and len(set(spreads.round(3))) == 3
    assert scored.crop_std == pytest.approx(spreads[named], rel=1e-4)


@pytest.mark.parametrize(("generators", "source"), [(["ProGAN"], "ProGAN"), (["ProGAN", "BigGAN"], None), ([], None)])
def test_stage_1_works_alone(generators, source, tmp_path):
    files_module.save_checkpoint(content(generators=generators, threshold=0.0), tmp_path / CHECKPOINTS["stage1"])
    detector = Detector.load(tmp_path, CPU)
    verdict = detector(noise(60, 50))
    assert (verdict.is_fake, verdict.source, verdict.p_source, verdict.candidates) == (True, source, None, None)
    noise(60, 50).save(tmp_path / "a.png")
    (same,) = detector.predict([tmp_path / "a.png"])
    assert same.p_fake == pytest.approx(verdict.p_fake, abs=1e-4) and json.loads(json.dumps(asdict(same)))
    real = Detector(detector.stage1, threshold=2.0)(noise(60, 50))
    assert (real.is_fake, real.source) == (False, "RealPhotos")


def test_bfloat16_that_a_card_only_emulates_is_not_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not stage_module.uses_bfloat16(torch.device("cuda"))


def test_windows_start_anywhere_on_the_grid_as_the_content_has_it():
    stage = Stage(content(quality=None), CPU)
    images = [noise(400, 400), noise(400, 400).rotate(90)]
    phases = [[(top % 8, left % 8) for top, left in stage.prepare(image, 40).plan.corners] for image in images]
    assert phases[0] == [(top % 8, left % 8) for top, left in stage.prepare(images[0].copy(), 40).plan.corners]
    assert phases[0] != phases[1] and len(set(phases[0])) > 20
    grid = stage.prepare(images[0], 9, "grid").plan.corners
    assert grid == crops.plan(400, 400, 32, 9, "grid").corners  # which has to cover every pixel


def test_batching_images_of_many_sizes_changes_nothing(monkeypatch):
    monkeypatch.setattr(stage_module, "uses_bfloat16", lambda device: False)
    stage = Stage(content(quality=None), CPU)
    images = [torch.rand(1, 3, *size) for size in ((32, 32), (20, 90), (64, 64), (5, 7), (100, 40), (90, 200))]
    images[2] = noise(64, 64)
    together = list(stage.stream(images, 30))
    assert {1, 13, 30} <= {scored.crops for scored in together}
    for batch in (1, 7):
        monkeypatch.setattr(stage_module, "BATCH", batch)
        again = list(stage.stream(iter(images), 30))
        assert [scored.crops for scored in again] == [scored.crops for scored in together]
        one, other = (torch.stack([scored.logits for scored in some]) for some in (again, together))
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_images_are_read_when_their_turn_comes_and_not_before():
    read = []
    images = (read.append(i) or noise(64, 64, i) for i in range(40))
    stream = Stage(content(), CPU).stream(images, 5)
    next(stream)
    assert len(read) <= stage_module.BATCH // 5 + 1
    assert len(list(stream)) == 39


def test_the_mode_is_the_checkpoints_unless_a_call_names_one(monkeypatch):
    image = noise(130, 100)
    old, new = (Stage(content(**changes), CPU) for changes in ({}, {"crop_mode": "grid", "crops": 4}))
    assert (old.crop_mode, new.crop_mode) == ("five", "grid")

    def counts(stage, *options):
        (scored,) = stage.stream([image], *options)
        return scored.crops, scored.needed

    assert counts(old) == (5, 5) and counts(old, 3) == (3, 3)
    assert counts(old, None, "grid") == (20, 20) and counts(old, 9, "grid") == (8, 20)
    assert counts(new) == (4, 20) and counts(new, None, "random") == (4, 4)
    with pytest.raises(ValueError, match="five, grid, random"):
        counts(old, None, "everywhere")
    with pytest.raises(ValueError, match="at least 1"):
        counts(old, 0)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize("mode", CROP_MODES)
def test_a_constant_colour_gets_a_finite_answer_without_spread(stage, mode):
    (scored,) = Stage(content(stage), CPU).stream([Image.new("RGB", (100, 80), (90, 120, 30))], mode=mode)
    assert torch.isfinite(scored.logits).all()
    assert scored.crops > 1 and scored.crop_std == pytest.approx(0, abs=1e-2)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (7, 20)])
def test_small_pil_images_and_tensors_are_padded_alike(size):
    stage, image = Stage(content(quality=None), CPU), noise(*size)
    tensor = torch.from_numpy(np.array(image) / 255).float().permute(2, 0, 1)[None]
    for mode in CROP_MODES:
        one, other = stage.stream([image, tensor], 5, mode)
        torch.testing.assert_close(one.logits, other.logits, atol=1e-3, rtol=1e-3)
        assert torch.isfinite(one.logits).all()


def test_bytes_and_alpha_are_judged_as_the_file_would_be_and_what_is_no_image_is_refused():
    stage, image = Stage(content(), CPU), noise(60, 50)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    rgb = as_rgb(image)
    eight_bit = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)[None]
    logits = [scored.logits for scored in stage.stream([rgb, image, eight_bit], 5)]
    torch.testing.assert_close(logits[1:], logits[:1] * 2, atol=1e-3, rtol=1e-3)
    windows = stage.prepare(rgb, 5).windows
    np.testing.assert_allclose(extract_features(stage, windows), extract_features(stage, windows / 255), atol=1e-3)
    torch.testing.assert_close(explain.residuals(stage, windows), explain.residuals(stage, windows / 255))
    for wrong in (eight_bit.float(), eight_bit[0], torch.cat([eight_bit] * 2)):
        with pytest.raises(ValueError, match=r"expected uint8 or float|one image at a time, .* got \(2, 3, 50, 60\)"):
            stage.prepare(wrong)
    with pytest.raises(ValueError, match=r"of shape \(1, 3, 0, 5\)"):
        stage.prepare(torch.zeros(1, 3, 0, 5))


@pytest.mark.parametrize("side", [20, 90])
def test_a_small_jpeg_too_was_saved_with_its_quality(side):
    noise(side, side).save(buffer := io.BytesIO(), "JPEG", quality=20)
    image = load_rgb(buffer.getvalue())
    assert Stage(content(), CPU).prepare(image).quality == image.info["jpeg_quality"] == 20


def test_predict_refuses_by_name_and_answers_the_rest(run, tmp_path):
    paths = [tmp_path / name for name in ("one_pixel.png", "first.png", "huge.png", "flat.png")]
    noise(1, 1).save(paths[0])
    noise(90, 70).save(paths[1])
    paths[2].write_bytes(png_header(20_000, 20_000))
    Image.new("RGB", (64, 64), (255, 0, 0)).save(paths[3])
    one_pixel, first, huge, flat = Detector.load(run).predict(paths)
    assert one_pixel.error.startswith("too small: 1 x 1 pixels") and huge.error.startswith("oversized: ")
    for verdict in (one_pixel, huge):
        assert verdict.p_fake is verdict.source is verdict.crops is None
    for verdict in (first, flat):
        assert verdict.error is None and 0 <= verdict.p_fake <= 1 and verdict.crops == 5


def test_predict_reports_images_that_are_too_large_for_all_crops(run, tmp_path, monkeypatch, capsys):
    for module in (crops, stage_module, detector_module):
        monkeypatch.setattr(module, "MAX_CROPS", 12)
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    noise(96, 64).save(small)
    noise(160, 128).save(large)
    detector, lines = Detector.load(run), []
    first, second = detector.predict([small, large], mode="grid", report=lines.append)
    assert (first.crops, second.crops) == (6, 12)
    assert lines == [f"{large}: scored on 12 of 20 crops, the limit for one image"]
    (verdict,) = detector.predict([large], crops=15)
    assert verdict.crops == 12 and "large.png: scored on 12 of 15 crops" in capsys.readouterr().out
    list(detector.predict([large]))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("mode", CROP_MODES)
def test_a_large_image_becomes_float_only_by_its_crops(mode, monkeypatch):
    """Its pixels stay 8 bits until a batch of crops is made of them."""
    pixels, batches = [], []
    whole = crops.to_tensor
    monkeypatch.setattr(crops, "to_tensor", lambda image: pixels.append(image.width * image.height) or whole(image))
    stage = Stage(content(quality=None), CPU)
    stage.model.register_forward_pre_hook(lambda model, given: batches.append(tuple(given[0].shape)))
    list(stage.stream([Image.new("RGB", (32, 32))]))  # the first time it is tried on noise too
    pixels.clear(), batches.clear()
    (scored,) = stage.stream([Image.new("RGB", (8000, 5000), (90, 120, 30))], 10_000, mode)
    assert not pixels
    assert scored.crops <= crops.MAX_CROPS == 256
    assert max(batches) <= (stage_module.BATCH, 3, 32, 32) and len(batches) <= 4
    assert scored.needed == (250 * 157 if mode == "grid" else 10_000)
    assert torch.isfinite(scored.logits).all()


MEASURED = """
import sys, time
from dfd.inference import Detector

def memory(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) // 1024

run, small, large = sys.argv[1:]
detector = Detector.load(run)
list(detector.predict([small]))
before = memory("VmRSS")
(verdict,) = detector.predict([large], mode="grid", report=print)
print(verdict.crops, memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from Linux' /proc")
def test_a_40_megapixel_file_takes_less_than_400_megabytes(run, tmp_path):
    small, large = tmp_path / "small.png", tmp_path / "large.jpg"
    noise(64, 64).save(small)
    Image.effect_noise((8000, 5000), 40).convert("RGB").save(large)
    call = [sys.executable, "-W", "error", "-c", MEASURED, run, small, large]
    report, result = subprocess.run(call, capture_output=True, text=True, check=True).stdout.splitlines()
    used, megabytes = map(int, result.split())
    assert report == f"{large}: scored on {used} of {250 * 157} crops, the limit for one image"
    assert 200 < used <= 256
    assert megabytes < 400


def test_the_hash_is_of_what_was_judged_though_the_file_is_another_one_by_then(run, tmp_path):
    path, other = tmp_path / "photo.png", tmp_path / "other.png"
    noise(64, 64).save(path)
    noise(64, 64, seed=1).save(other)
    was, detector = path.read_bytes(), Detector.load(run)

    def read(name):
        image = load_rgb(name)
        path.write_bytes(other.read_bytes())
        return image

    (verdict,) = detector.predict([path], read=read)
    assert verdict.sha256 == detector(was).sha256 == hashlib.sha256(was).hexdigest()
    assert detector(path).sha256 == hashlib.sha256(other.read_bytes()).hexdigest()
    assert detector(load_rgb(path)).sha256 is None  # pixels have no file


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
    expected = {
        "path",
        "sha256",
        "is_fake",
        "verdict",
        "p_fake",
        "source",
        "p_source",
        "candidates",
        "crops",
        "crop_std",
        "error",
        "log10_lr",
        "outside",
    }
    assert set(json.loads(json.dumps(asdict(first)))) == expected
    assert first.sha256 == hashlib.sha256(Path(first.path).read_bytes()).hexdigest() and second.sha256 is None


@pytest.mark.parametrize(
    "changes, times",
    [
        ({}, 1),
        ({"crop_size": 48}, 2),
        ({"quality": 60}, 2),
        ({"quality": None}, 2),
        ({"crops": 3}, 2),
        ({"crop_mode": "random"}, 2),
    ],
)
def test_an_image_is_cut_once_where_both_stages_take_the_same(changes, times, tmp_path, monkeypatch):
    """Both answers are those of the stage alone, by `predict` and by a call."""
    one, two = Stage(content(), CPU), Stage(content("stage2", **changes), CPU)
    path, cut = tmp_path / "x.png", []
    noise(130, 100).save(path)
    alone = [next(stage.stream([Image.open(path)])).logits for stage in (one, two)]
    alone = [torch.softmax(logits, -1) for logits in alone]
    prepare = Stage.prepare
    monkeypatch.setattr(Stage, "prepare", lambda self, *given: cut.append(self.stage) or prepare(self, *given))
    detector = Detector(one, two)
    for answer in (detector, lambda path: next(detector.predict([path]))):
        verdict = answer(path)
        assert len(cut) == times
        cut.clear()
        assert verdict.p_fake == pytest.approx(alone[0][1].item(), abs=1e-6)
        assert list(verdict.p_source.values()) == pytest.approx(alone[1].tolist(), abs=1e-6)


@pytest.mark.parametrize("given", [1, 2])
def test_on_a_cpu_no_more_threads_read_than_compute(given):
    """A worker of `score` that is given one thread must not take the cores of the others."""
    readers = set()

    def read(path):
        readers.add(threading.get_ident())
        time.sleep(0.1)  # for another thread to take the next one
        return noise(40, 40)

    before = torch.get_num_threads()
    torch.set_num_threads(given)
    try:
        list(Detector(Stage(content(), CPU), Stage(content("stage2"), CPU)).predict(range(8), read=read))
    finally:
        torch.set_num_threads(before)
    assert len(readers) == given


def test_unknown_and_candidates_come_from_the_checkpoints_thresholds(run, tmp_path):
    path = tmp_path / "x.png"
    noise(64, 64).save(path)
    files_module.update_checkpoint(run / CHECKPOINTS["stage1"], threshold=0.0)
    stage2 = run / CHECKPOINTS["stage2"]
    plain = next(Detector.load(run).predict([path]))
    order = sorted(plain.p_source, key=plain.p_source.get, reverse=True)
    assert plain.source == order[0] and plain.candidates == tuple(Stage.load(stage2).classes)
    (alone,) = Stage.load(stage2).stream([noise(64, 64)])
    assert alone.ood_score is None
    files_module.update_checkpoint(
        stage2, feature_bank=torch.rand(12, Stage.load(stage2).model.classifier.backbone.num_features)
    )
    (near,) = Stage.load(stage2).stream([noise(64, 64)])
    assert near.logits.tolist() == pytest.approx(alone.logits.tolist(), abs=1e-5)
    rest = {"conformal_quantile": 1 - plain.p_source[order[1]] + 1e-6}
    files_module.update_checkpoint(stage2, ood_threshold=near.ood_score + 1e-3, **rest)
    known = next(Detector.load(run).predict([path]))
    assert known.source == order[0] and set(known.candidates) == set(order[:2])
    files_module.update_checkpoint(stage2, ood_threshold=near.ood_score - 1e-3, conformal_quantile=0.0)
    strange = next(Detector.load(run).predict([path]))
    assert strange.source == "unknown" and strange.candidates == (order[0],)
    assert strange.p_source == plain.p_source


def test_threshold_and_temperature_of_the_checkpoint_are_used(run, tmp_path):
    path = tmp_path / "x.png"
    Image.new("RGB", (64, 64), (90, 120, 30)).save(path)
    before = next(Detector.load(run).predict([path]))
    stage1 = run / CHECKPOINTS["stage1"]
    files_module.update_checkpoint(stage1, threshold=before.p_fake + 1e-3)
    assert not next(Detector.load(run).predict([path])).is_fake
    files_module.update_checkpoint(stage1, threshold=before.p_fake - 1e-3, temperature=2.0)
    warm = next(Detector.load(run).predict([path])).p_fake
    odds = np.log(before.p_fake / (1 - before.p_fake))
    assert warm == pytest.approx(1 / (1 + np.exp(-odds / 2)), abs=1e-5)


def test_one_path_is_judged_as_a_list_of_it_and_home_is_known(run, monkeypatch):
    monkeypatch.setenv("HOME", str(run.parent))
    detector = Detector.load(f"~/{run.name}")
    missing = run / "missing.png"
    assert [verdict.path for verdict in detector.predict(missing)] == [str(missing)]


def test_a_device_may_be_given_by_its_name(run):
    assert Detector.load(run, "cpu")(noise(60, 50)) == Detector.load(run, CPU)(noise(60, 50))


def test_a_stage_takes_a_pil_image(run):
    (scored,) = Stage.load(run / CHECKPOINTS["stage2"]).stream([Image.new("L", (40, 300))])
    assert scored.logits.shape == (3,) and torch.isfinite(scored.logits).all()


@pytest.mark.parametrize("bad", [b"", b"not a checkpoint at all", b"PK\x03\x04 broken zip"])
def test_a_foreign_file_is_no_checkpoint(tmp_path, bad):
    path = tmp_path / "model.pt"
    path.write_bytes(bad)
    with pytest.raises(ValueError, match="not a dfd checkpoint"):
        Stage.load(path)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (torch.zeros(3), "holds a Tensor"),
        ({"conv1.weight": torch.zeros(3)}, "lacks stage, classes"),
        ({"key": "k", "networks": {}}, "lacks stage, .* a training's state"),
        ({"stage": "stage3"}, "stage cannot be right"),
        ({"crops": 0}, "crops cannot be right"),
        ({"preprocessing": {"crop_size": 10**6, "equalise_quality": 90}}, "crop_size cannot be right"),
        ({"temperature": float("nan")}, "temperature cannot be right"),
        (
            {"classes": ["a", "b", "c", "d"], "stage": "stage2"},
            r"size mismatch .*\[3, .*\[4, ",
        ),
        ({"classes": ["a", "a", "b"], "stage": "stage2"}, "classes cannot be right"),  # one would lose its probability
        ({"classes": ["a", "", "b"], "stage": "stage2"}, "classes cannot be right"),
        ({"band": [0.3, float("nan")]}, "limits cannot be right"),
        ({"validation": {"photos": [float("inf")], "fakes": [0.5]}}, "limits cannot be right"),
        ({"validation": torch.full((2000,), float("nan"))}, "weights cannot be right|Tensor is not JSON"),
        ({"ood_threshold": float("nan"), "stage": "stage2"}, "limits cannot be right"),  # nothing would be unknown
        ({"conformal_quantile": float("nan"), "stage": "stage2"}, "limits cannot be right"),
        ({"feature_bank": torch.full((2, 96), float("nan"))}, "weights cannot be right"),
        ({"adapter": "other"}, "its head learnt on another adapter of CLIP than adapter.safetensors is now"),
        ({"weights": {"conv1.weight": torch.tensor([0.0, float("nan")])}}, "weights cannot be right"),
        ({"weights": {}}, r"weights do not fit the network that it names \(train again\): Missing key"),
    ],
)
def test_a_checkpoint_of_the_wrong_kind_or_version_says_so(given, reason, tmp_path):
    path, whole = tmp_path / "model.pt", isinstance(given, torch.Tensor) or given.keys() & {"conv1.weight", "networks"}
    files_module.save_checkpoint(given if whole else {**content(given.get("stage", "stage1")), **given}, path)
    with pytest.raises(ValueError, match=f"not a dfd checkpoint: .*{reason}"):
        Stage.load(path)


def test_names_of_limits_and_classes_are_no_numbers(tmp_path):
    given = content("stage2", classes=["NaN", "Infinity", " "], operating_points={"financial": 0.5, "NaN": 0.1})
    files_module.save_checkpoint(given, tmp_path / "model.pt")
    assert Stage.load(tmp_path / "model.pt").operating_points == {"financial": 0.5, "NaN": 0.1}


def test_checkpoints_under_each_others_names_are_told(run):
    one, two = (run / name for name in CHECKPOINTS.values())
    one.rename(run / "kept")
    two.rename(one)
    (run / "kept").rename(two)
    with pytest.raises(ValueError, match="holds a stage2, where stage1 belongs"):
        Detector.load(run)


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


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("opened",)


def test_a_device_that_is_not_there_is_no_fault_of_the_file(tmp_path):
    files_module.save_checkpoint(content(), tmp_path / "stage1.pt")
    with pytest.raises(RuntimeError, match="foo"):
        Stage.load(tmp_path / "stage1.pt", "foo")


@pytest.mark.parametrize("name", [*CHECKPOINTS.values(), *SHIPPED.values(), "train_stage1.pt"])
def test_files_that_may_do_anything_are_not_opened(name, tmp_path, monkeypatch):
    """A pickle under each of our names, and what git-lfs leaves; torch's text tells how to open them."""
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": Hostile()}, tmp_path / name)
    with pytest.raises(ValueError, match="is not a dfd checkpoint") as refused:
        Stage.load(tmp_path / name)
    assert not (tmp_path / "opened").exists() and "weights_only" not in str(refused.value)
    for left in (b"", bytes(4096)) if name.endswith(".pt") else ():
        (tmp_path / name).write_bytes(left)
        with pytest.raises(ValueError, match="it is cut, a Git LFS pointer"):
            Stage.load(tmp_path / name)
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match="git lfs pull" if name.endswith(".pt") else "is not a dfd checkpoint"):
        Stage.load(tmp_path / name)
