"""The sweep: the same scores as one condition at a time, each image decoded once, finished cells kept."""

import gc
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from bad_files import encoded, picture
from networks import CPU, content
from PIL import Image

from dfd.core import images
from dfd.core.images import load_rgb
from dfd.data import manifest
from dfd.degrade import registry
from dfd.evaluate import robustness, scores
from dfd.inference import detector, stage
from dfd.inference.openset import FeatureBank
from dfd.inference.stage import Stage

CONDITIONS = registry.parse_all(["jpeg 75", "noise 0.05", "rescale 0.75 bilinear + webp 50"])


@pytest.fixture
def table(tiny_data):
    found = manifest.scan(tiny_data, progress=False)
    return found[found["split"] == "test"]


@pytest.fixture
def stages():
    stage2 = Stage(content("stage2"), CPU)
    features = stage2.model.classifier.backbone.num_features
    bank = torch.randn(12, features, generator=torch.Generator().manual_seed(0))
    return {"stage1": Stage(content(), CPU), "stage2": Stage(content("stage2", feature_bank=bank), CPU)}


def cells(out):
    return {path.name: path.stat().st_mtime_ns for path in (out / robustness.CELLS).glob("*.parquet")}


def test_rows_are_those_of_one_condition_at_a_time(table, stages, tmp_path):
    table = table.assign(source=table["label"] + table["width"].astype(str))
    found = robustness.sweep(stages, table, CONDITIONS, tmp_path, crops=2)
    for name, rows in (("stage1", table), ("stage2", table[table["is_fake"]])):
        for degradation, level in (("none", 0), ("jpeg", 75)):
            expected = scores.score(stages[name], rows, degradation, level, crops=2)
            assert "source" in expected
            part = found[name][(found[name]["degradation"] == degradation)].reset_index(drop=True)
            pd.testing.assert_frame_equal(part[expected.columns], expected, atol=0.02, check_dtype=False)
        chain = found[name][found[name]["degradation"] == "rescale 0.75 bilinear + webp"]
        assert len(chain) == len(rows) and set(chain["level"]) == {50.0}
    assert set(found["stage2"]["label"]) == {"BigGAN", "ProGAN"}


def test_an_image_that_a_codec_cannot_hold_is_named(table, stages, tmp_path):
    folder = tmp_path / "data"
    for path in table["path"]:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(table.attrs["root"], path), folder / path)
    table = table.assign(width=16384)
    table.attrs["root"] = str(folder)
    Image.new("RGB", (16384, 8), "red").save(folder / table["path"].iloc[0])
    name = table["path"].iloc[0]
    with pytest.raises(images.ImageError, match=rf"^{name}: no webp 50 of it \(.*16383 pixels\); take out the image"):
        robustness.sweep(stages, table, registry.parse_all(["webp 50"]), tmp_path, crops=1)


def test_each_image_is_decoded_once(table, stages, tmp_path, monkeypatch):
    read, load = [], images.load_rgb
    monkeypatch.setattr(robustness, "load_rgb", lambda path: read.append(path) or load(path))
    robustness.sweep(stages, table, CONDITIONS, tmp_path, crops=1)
    assert sorted(path.name for path in read) == sorted(path.split("/")[-1] for path in table["path"])
    robustness.sweep(stages, table, CONDITIONS, tmp_path, crops=1)
    assert len(read) == len(table)


def test_no_tensor_waits_for_the_end(tiny_data, stages, tmp_path, monkeypatch):
    """Answers that stayed as tensors between the crops took 0.1 MB of memory an image."""
    table, alive, load = manifest.scan(tiny_data, progress=False), [], images.load_rgb

    def watched(path):
        alive.append(sum(type(thing) is torch.Tensor for thing in gc.get_objects()))
        return load(path)

    for module in (detector, stage):
        monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(robustness, "load_rgb", watched)
    robustness.sweep(stages, table, [registry.parse("blur 1")], tmp_path, crops=1)
    assert len(alive) == len(table) and max(alive[18:]) - max(alive[:18]) < 10


def test_a_stopped_sweep_goes_on_to_the_same_table(table, stages, tmp_path, monkeypatch):
    whole = robustness.sweep(stages, table, CONDITIONS, tmp_path / "whole", crops=2)
    write, written = robustness.atomic_write, []

    def stop_at_the_fourth(path):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        return write(path)

    monkeypatch.setattr(robustness, "atomic_write", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        robustness.sweep(stages, table, CONDITIONS, tmp_path / "stopped", crops=2)
    monkeypatch.setattr(robustness, "atomic_write", write)
    kept = cells(tmp_path / "stopped")
    assert len(kept) == 3
    again = robustness.sweep(stages, table, CONDITIONS, tmp_path / "stopped", crops=2)
    after = cells(tmp_path / "stopped")
    assert len(after) == 8 and {name: after[name] for name in kept} == kept
    for name in stages:
        pd.testing.assert_frame_equal(again[name], whole[name])


def test_a_half_written_cell_is_not_used(table, stages, tmp_path, monkeypatch):
    def full(self, path, index):
        path.write_bytes(b"PAR1")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(OSError, match="disk full"):
        robustness.sweep(stages, table, CONDITIONS, tmp_path, crops=1)
    assert list((tmp_path / robustness.CELLS).iterdir()) == []


@pytest.mark.parametrize("change", ["weights", "crops", "images", "seed", "mode", "codec", "version", "limit", "names"])
def test_a_cell_is_kept_only_for_what_it_was_made_from(table, stages, tmp_path, change, monkeypatch):
    before = robustness.sweep(stages, table, CONDITIONS, tmp_path, crops=1)["stage1"]
    names = cells(tmp_path)
    if change == "weights":
        with torch.no_grad():
            next(stages["stage1"].model.parameters()).mul_(1.5)
    changed = table.assign(sha256="other") if change == "images" else table
    crops, seed = (3 if change == "crops" else 1), (1 if change == "seed" else 0)
    if change == "mode":
        stages["stage1"].crop_mode = stages["stage2"].crop_mode = "random"
    if change == "codec":
        stages["stage1"].equalise_quality = 40
    if change == "limit":
        stages["stage1"].ood_threshold = 0.5
    if change == "names":
        stages["stage2"].classes = stages["stage2"].classes[::-1]
    if change == "version":
        monkeypatch.setattr(robustness, "code", lambda: "other")
    after = robustness.sweep(stages, changed, CONDITIONS, tmp_path, crops, seed)["stage1"]
    new = {name for name in cells(tmp_path) if name not in names}
    assert len(new) == {
        "weights": 4, "crops": 8, "images": 8, "seed": 2, "mode": 8, "codec": 4, "version": 8, "limit": 4, "names": 4,
    }[change]  # fmt: skip
    differ = before["logit_fake"] != after["logit_fake"]
    where = (
        before["degradation"].eq("noise")
        if change == "seed"
        else pd.Series(change not in ("images", "version", "limit", "names"), before.index)
    )
    assert differ[where].any() == where.any() and not differ[~where].any()
    if change in ("weights", "codec"):
        assert not [name for name in names if name.startswith("stage1") and name in cells(tmp_path)]


def test_a_longer_grid_scores_only_what_is_new(table, stages, tmp_path, capsys):
    robustness.sweep(stages, table, CONDITIONS[:2], tmp_path, crops=1)
    names = cells(tmp_path)
    robustness.sweep(stages, table, CONDITIONS, tmp_path, crops=1)
    assert names.items() <= cells(tmp_path).items()
    assert f"{len(table)} images: 2 of 4 conditions kept, 2 to score" in capsys.readouterr().out


def test_images_that_do_not_fit_into_memory_are_decoded_again(table, stages, tmp_path, monkeypatch):
    whole = robustness.sweep(stages, table, CONDITIONS, tmp_path / "whole", crops=1)
    read, load = [], images.load_rgb
    monkeypatch.setattr(robustness, "load_rgb", lambda path: read.append(path) or load(path))
    monkeypatch.setattr(robustness, "HELD", int(3 * table["width"].max() * table["height"].max() * 2.5))
    parts = robustness.sweep(stages, table, CONDITIONS, tmp_path / "parts", crops=1)
    assert len(table) < len(read)
    for name in stages:
        pd.testing.assert_frame_equal(parts[name], whole[name], atol=0.02)


def test_one_large_image_is_degraded_at_a_time(monkeypatch):
    busy, most = [], []

    def compose(image, chain):
        busy.append(1)
        most.append(len(busy))
        time.sleep(0.02)
        busy.pop()
        return image

    monkeypatch.setattr(robustness, "compose", compose)
    for limit, together in ((100 * 100, True), (100 * 100 - 1, False)):
        monkeypatch.setattr(robustness, "LARGE", limit)
        most.clear()
        degrade = partial(
            robustness._degraded,
            load=lambda path: Image.new("RGB", (100, 100)),
            condition=registry.parse("jpeg 75"),
            seed=0,
        )
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(degrade, "abcd"))
        assert (max(most) > 1) == together


def test_another_feature_bank_makes_cells_anew(table, stages, tmp_path):
    found = []
    for _ in range(2):
        swept = robustness.sweep(stages, table, CONDITIONS[:1], tmp_path, crops=1)["stage2"]
        found.append(swept["ood_score"].tolist())
        stages["stage2"].feature_bank = FeatureBank(-stages["stage2"].feature_bank.features)
    assert found[0] != found[1]


def test_a_degraded_image_has_the_quality_that_its_file_would_have():
    image = load_rgb(encoded(picture(0, 64, 64), "JPEG", quality=95))
    wanted = {"jpeg 30": 30, "social 70": 70, "blur 1 + jpeg 75": 75, "double_jpeg 50": 50}
    wanted |= {"blur 1": None, "webp 50": None}
    for condition, quality in wanted.items():
        read = robustness._degraded("x", lambda path: image, registry.parse(condition), 0)
        assert read.info.get("jpeg_quality") == quality, condition
    as_it_is, _ = registry.parse_all(["blur 1"])
    assert robustness._degraded("x", lambda path: image, as_it_is, 0).info["jpeg_quality"] == 95


def test_noise_is_an_images_own_and_the_same_each_time():
    def noisy(path, seed=0):
        grey = Image.new("RGB", (32, 32), "grey")
        return robustness._degraded(path, lambda _: grey, registry.parse("noise 0.05"), seed)

    assert torch.equal(noisy("a"), noisy("a"))
    assert not torch.equal(noisy("a"), noisy("b")) and not torch.equal(noisy("a"), noisy("a", seed=1))


def test_limits_that_were_fitted_anew_hold_in_a_sweep_that_goes_on(table, stages, tmp_path):
    stage, conditions = stages["stage1"], registry.parse_all(["jpeg 75"])
    stage.is_held_out = True
    for lowest in (50, 90):
        stage.rates = [{"quality": (lowest, 101)}, {"quality": (0, 102)}]
        swept = robustness.sweep({"stage1": stage}, table, conditions, tmp_path, crops=1)["stage1"]
        told = swept["outside"].fillna("").str.contains("JPEG quality is about 75")
        assert told.sum() == (len(table) if lowest == 90 else 0)
