"""A detector as ONNX: the same answers as torch, also behind JPEG, and an example that runs without it."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from bad_files import animated, chunk
from networks import content, noise
from PIL import Image, PngImagePlugin

from dfd.inference import Detector, Stage, build_model, export, likelihood
from dfd.inference import stage as stage_module
from dfd.models import clip

SMALL = (20, 24), (32, 500), (40, 90), (34, 35), (33, 36)
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A detector whose stages differ in what they see, with evidence, and the folder of its export."""
    monkeypatch.setattr(stage_module, "uses_bfloat16", lambda device: False)
    rng = np.random.default_rng(0)
    is_fake = np.arange(400) % 2 == 1
    fitted = likelihood.fit(rng.normal(is_fake), is_fake, np.arange(400) // 4, np.arange(400))
    first = content("stage1", likelihood=fitted, band=[0.3, 0.6], temperature=1.5)
    detector = Detector(Stage(first), Stage(content("stage2")))
    export.export(detector, tmp_path / "onnx")
    return detector, tmp_path / "onnx"


def test_the_record_is_json_where_one_group_of_photos_calibrated(tmp_path):
    """Cllr is NaN then, which JSON, and so JavaScript, does not know."""
    is_fake = np.arange(20) % 2 == 1
    groups = np.where(is_fake, np.arange(20), 0)
    fitted = likelihood.fit(np.random.default_rng(0).normal(is_fake), is_fake, groups, np.arange(20))
    export.export(Detector(Stage(content("stage1", likelihood=fitted))), tmp_path)
    record = json.loads((tmp_path / "detector.json").read_text(), parse_constant=pytest.fail)
    assert record["likelihood"] == fitted | {"cllr": None, "cllr_min": None}


def images():
    for seed in range(20):
        image = noise(70 + 9 * seed, 150 - 5 * seed, seed)
        if seed % 2:
            image.save(file := io.BytesIO(), "JPEG", quality=50 + 2 * seed)
            image = Image.open(file).convert("RGB")
        yield image


def test_twenty_images_get_the_same_logits(written):
    detector, folder = written
    session = onnxruntime.InferenceSession(str(folder / "detector.onnx"))
    for image in images():
        crops = detector.stage1.prepare(image).windows.float() / 255
        first, second = session.run(None, {"crops": crops.numpy()})
        with torch.inference_mode():
            expected = [stage.model(crops).numpy() for stage in detector.stages]
        np.testing.assert_allclose(first, expected[0], atol=1e-3)
        np.testing.assert_allclose(second, expected[1], atol=1e-3)


@pytest.mark.parametrize("crops", [5, 9])
def test_the_example_answers_as_the_detector_does(crops, written, tmp_path):
    detector, folder = written
    detector.stage1.crops = detector.stage2.crops = crops
    detector.stage1.smallest = 40  # of the images below some are smaller
    export.export(detector, folder)
    paths = []
    for number, image in enumerate([*images(), *(noise(*size) for size in SMALL)]):
        paths.append(tmp_path / f"{number}.png")
        image.save(paths[-1])
    paths += [tmp_path / name for name in ("turned.jpg", "clear.png", "deep.png")]
    exif = Image.Exif()
    exif[274] = 6
    noise(90, 140, 5).save(paths[-3], exif=exif)
    clear = noise(90, 140, 6)
    clear.putalpha(noise(90, 140, 7).convert("L"))
    clear.save(paths[-2])
    Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (120, 90), dtype=np.uint16)).save(paths[-1])
    maker = Image.Exif()
    maker[271] = "Maker"
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'  # which turns nothing
    paths.append(tmp_path / "told.jpg")
    stripes = np.zeros((140, 90, 3), dtype=np.uint8)
    stripes[::2] = 255  # across, which no other way up is
    Image.fromarray(stripes).save(paths[-1], exif=maker, xmp=xmp, quality=95)
    text = PngImagePlugin.PngInfo()
    text.add_text("transparency", "none")
    paths += [tmp_path / "text.png", tmp_path / "frame.png"]  # which Pillow by itself reads otherwise
    noise(90, 140, 8).save(paths[-2], pnginfo=text)
    paths[-1].write_bytes(animated(noise(90, 140, 9), noise(90, 140, 10)))
    (tmp_path / "page.jpg").write_text("<svg/>")
    command = [sys.executable, str(folder / "example.py"), str(tmp_path / "page.jpg"), *map(str, paths)]
    noise(7, 90).save(tmp_path / "thin.png")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    pixels = Image.fromarray(np.full((16, 16), 0x12FF, dtype=np.uint16))
    pixels.save(tmp_path / "inverted.tif", tiffinfo={262: 0})
    Image.fromarray(np.full((16, 16), 0xFFF, dtype=np.uint16)).save(tmp_path / "twelve.png")
    noise(90, 140).convert("P").save(tmp_path / "part.gif")
    gif = (tmp_path / "part.gif").read_bytes()
    (tmp_path / "part.gif").write_bytes(gif[:6] + b"\0\1\0\1" + gif[10:])  # a screen of 256 x 256 pixels
    noise(90, 140).save(hdr := io.BytesIO(), "PNG")
    (tmp_path / "hdr.png").write_bytes(
        hdr.getvalue()[:33] + chunk(b"cICP", b"\x09\x10\0\1") + hdr.getvalue()[33:]
    )  # PQ
    names = ("bomb.png", "thin.png", "inverted.tif", "twelve.png", "part.gif", "hdr.png")
    last = [str(tmp_path / name) for name in names]
    answer = subprocess.run([*command, *last], capture_output=True, text=True)
    refused, *lines, bomb, thin, inverted, twelve, part, bright = answer.stdout.splitlines()
    assert all("without an agreed white" in line for line in (inverted, twelve))
    assert "shows more or less than its pixels" in part and "PNG in HDR (PQ or HLG)" in bright
    assert "decompression bomb" in json.loads(bomb.partition(" ")[2])["error"]
    assert "page.jpg" in refused and "cannot identify" in json.loads(refused.partition(" ")[2])["error"]
    assert "7 x 90 pixels" in thin and answer.returncode == 1, answer.stderr
    odd = paths[0].rename(tmp_path / "写.png")
    narrow = os.environ | {"PYTHONIOENCODING": "cp1252"}  # a file on Windows
    ran = subprocess.run([*command[:2], str(odd)], capture_output=True, text=True, env=narrow)
    assert ran.returncode == 0 and "\\u5199.png {" in ran.stdout
    odd.rename(paths[0])
    for path, line in zip(paths, lines, strict=True):
        said, verdict = json.loads(line.partition(" ")[2]), detector(path)
        assert said["p_fake"] == pytest.approx(verdict.p_fake, abs=1e-3) and said["verdict"] == verdict.verdict
        assert said["log10_lr"] == pytest.approx(verdict.log10_lr, abs=2e-3)
        assert said["nearest_generator"] == max(verdict.p_source, key=verdict.p_source.get)
    assert any(json.loads(line.partition(" ")[2])["log10_lr"] is None for line in lines)
    assert not {"torch", "dfd"} & set((folder / "example.py").read_text().split())


def test_the_graph_carries_what_goes_around_it(written):
    detector, folder = written
    model = onnxruntime.InferenceSession(str(folder / "detector.onnx")).get_modelmeta()
    record = json.loads((folder / "detector.json").read_text())
    assert json.loads(model.custom_metadata_map["dfd"]) == record
    assert (record["threshold"], record["band"], record["temperature"]) == (detector.threshold, [0.3, 0.6], 1.5)
    assert record["stage2"]["classes"] == list(detector.stage2.classes) and record["likelihood"]["photos"] == 200
    detector.stage2.ood_threshold, detector.stage2.conformal_quantile = 0.25, 0.75
    export.export(Detector(*detector.stages, threshold=0.9), folder)  # as `at_fpr` gives it
    record = json.loads((folder / "detector.json").read_text())
    assert record["band"] == [0.3, 0.9]
    assert (record["stage2"]["ood_threshold"], record["stage2"]["conformal_quantile"]) == (0.25, 0.75)


def test_a_trunk_that_one_stage_has_alone_takes_any_number_of_crops(tmp_path, monkeypatch):
    """Its memory of crops was traced once, with the keys of the two that were: of five it answered two."""
    monkeypatch.setattr(clip, "NAME", "vit_tiny_patch16_224")
    monkeypatch.setattr(stage_module, "uses_bfloat16", lambda device: False)
    clip.shared_trunk.cache_clear()
    settings = {"backbone": "clip", "representation": "rgb", "pretrained": False}
    first = content("stage1", config=settings)
    model = build_model("stage1", settings, 2)
    torch.nn.init.normal_(model.backbone.head.weight)
    monkeypatch.setattr(clip, "weights_file", lambda: pytest.fail("weights were fetched"))
    monkeypatch.setattr(clip, "shared_trunk", lambda *_: model.backbone.trunk)
    detector = Detector(Stage(first | {"weights": model.state_dict()}), Stage(content("stage2")))
    export.export(detector, tmp_path)
    session, crops = onnxruntime.InferenceSession(str(tmp_path / "detector.onnx")), torch.rand(5, 3, 32, 32)
    answers = session.run(None, {"crops": crops.numpy()})
    for answer, stage in zip(answers, detector.stages, strict=True):
        with torch.inference_mode():
            np.testing.assert_allclose(answer, stage.model(crops).numpy(), atol=1e-3)


def test_stages_that_take_different_crops_are_refused(tmp_path):
    second = content("stage2")
    second["preprocessing"] = {**second["preprocessing"], "crop_size": 64}
    detector = Detector(Stage(content("stage1")), Stage(second))
    with pytest.raises(ValueError, match="different crops"):
        export.export(detector, tmp_path)
    for change in ({"crops": 3}, {"crop_mode": "grid"}):
        both = [Stage(content("stage1")), Stage(content("stage2"))]
        vars(both[1]).update(change)
        vars(both[0]).update(change if "crop_mode" in change else {})
        with pytest.raises(ValueError, match="same crop_size, equalise_quality, crops, crop_mode, that of mode five"):
            export.export(Detector(*both), tmp_path)
    alone = Detector(Stage(content("stage1")))
    assert export.export(alone, tmp_path / "alone").exists()


def test_a_trunk_that_both_stages_share_gives_each_its_own_logits(tmp_path, monkeypatch):
    monkeypatch.setattr(clip, "NAME", "vit_tiny_patch16_224")
    monkeypatch.setattr(stage_module, "uses_bfloat16", lambda device: False)
    clip.shared_trunk.cache_clear()
    settings = {"backbone": "clip", "representation": "rgb", "pretrained": False, "unet_width": 4, "residual_bound": 1}
    weights = {name: build_model(name, settings, 3).state_dict() for name in ("stage1", "stage2")}
    stages = [Stage(content(name, config=settings, weights=own)) for name, own in weights.items()]
    export.export(Detector(*stages), tmp_path)
    session, crops = onnxruntime.InferenceSession(str(tmp_path / "detector.onnx")), torch.rand(5, 3, 32, 32)
    for answer, stage in zip(session.run(None, {"crops": crops.numpy()}), stages, strict=True):
        with torch.inference_mode():
            np.testing.assert_allclose(answer, stage.model(crops).numpy(), atol=1e-3)
    clip.shared_trunk.cache_clear()
