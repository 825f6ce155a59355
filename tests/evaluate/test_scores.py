"""Score tables: how images are read, and what is said where crops were not enough."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from networks import content, noise
from PIL import Image
from score_tables import noisy_table

from dfd.config import CHECKPOINTS
from dfd.data import manifest
from dfd.evaluate import scores
from dfd.inference import decide
from dfd.inference import files as files_module
from dfd.inference import stage as stage_module
from dfd.inference.detector import Detector
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


def test_a_number_of_crops_is_passed_on_and_the_lack_of_crops_is_printed_once(table, capsys):
    stage = Stage(content(), torch.device("cpu"))
    assert scores.score(stage, table)["crops"].tolist() == [1, 5, 5]
    assert capsys.readouterr().out == ""
    stage.crop_mode = "grid"
    assert scores.score(stage, table, crops=12)["crops"].tolist() == [1, 12, 12]
    assert capsys.readouterr().out == "stage1 clean: 2 of 3 images needed more crops, up to 50\n"
    scores.score(stage, table, "blur", 1.0, 12)
    assert capsys.readouterr().out == "stage1 blur 1: 2 of 3 images needed more crops, up to 50\n"


def test_rows_hold_what_the_stage_says_of_each_image(table):
    stage = Stage(content(), torch.device("cpu"))
    found = scores.score(stage, table, crops=4)
    for name, row in zip(table["path"], found.itertuples(), strict=True):
        (alone,) = stage.stream([Image.open(f"{table.attrs['root']}/{name}")], 4)
        assert (row.path, row.crops) == (name, alone.crops)
        assert [row.logit_real, row.logit_fake] == pytest.approx(alone.logits.tolist(), abs=0.03)
        assert row.crop_std == pytest.approx(alone.crop_std, abs=0.03)


def test_rows_name_their_sources_where_the_manifest_does(table):
    stage = Stage(content(), torch.device("cpu"))
    assert "source" not in scores.score(stage, table, crops=1)
    assert scores.score(stage, table.assign(source=[*"xyz"]), crops=1)["source"].tolist() == [*"xyz"]


def test_only_degraded_images_become_float_as_a_whole(table, monkeypatch):
    sizes = []
    whole = scores.to_tensor
    monkeypatch.setattr(scores, "to_tensor", lambda image: sizes.append(image.size) or whole(image))
    stage = Stage(content(), torch.device("cpu"))
    clean = scores.score(stage, table)
    assert sizes == []
    blurred = scores.score(stage, table, "blur", 2.0)
    assert sizes == [(32, 32), (160, 128), (320, 160)]
    assert not np.allclose(clean["logit_fake"], blurred["logit_fake"], atol=0.01)


def test_a_table_calls_an_image_what_the_detector_calls_it(table):
    """Unknown generators included; what the networks would say among the known ones stays readable."""
    bank = torch.rand(12, Stage(content("stage2")).model.classifier.backbone.num_features)
    stage = Stage(content("stage2", feature_bank=bank), torch.device("cpu"))
    stage.ood_threshold = sorted(scores.score(stage, table)["ood_score"])[1]
    found = scores.score(stage, table)
    detector = Detector(Stage(content(threshold=0.0), torch.device("cpu")), stage)
    verdicts = list(detector.predict([f"{table.attrs['root']}/{path}" for path in table["path"]]))
    assert found["prediction"].tolist() == [verdict.source for verdict in verdicts]
    assert found["prediction"].eq("unknown").sum() == 1
    assert decide.closed_set(found).tolist() == [max(one.p_source, key=one.p_source.get) for one in verdicts]


@pytest.fixture
def noisy():
    return noisy_table()


def test_evidence_is_of_fake_above_photo(noisy):
    stage = SimpleNamespace(
        stage="stage1", classes=["real", "fake"], temperature=1.0, threshold=0.5, band=None,
        likelihood={"x": [-2.0, 2.0], "log10_lr": [-1.0, 1.0]},
    )  # fmt: skip
    found = scores.with_predictions(stage, noisy.assign(logit_real=0.5, logit_fake=noisy["logit_fake"].clip(-1, 2)))
    assert found["log10_lr"].tolist() == pytest.approx(((found["logit_fake"] - 0.5) / 2).tolist(), abs=1e-6)


def test_a_picture_that_shows_nothing_is_unsure_in_tables_too(tmp_path):
    for label, pixels in (("RealPhotos", Image.new("RGB", (64, 64), "white")), ("ProGAN", noise(64, 64))):
        (tmp_path / label).mkdir()
        pixels.save(tmp_path / label / "a.png")
    table = pd.DataFrame({"path": ["RealPhotos/a.png", "ProGAN/a.png"], "label": ["RealPhotos", "ProGAN"]})
    table = table.assign(split="test", group="g", is_fake=[False, True])
    table.attrs["root"] = str(tmp_path)
    found = scores.score(Stage(content("stage1", band=[0.0, 0.0])), table)
    assert found["answer"].tolist() == ["unsure", "fake"] and "show nothing" in found["outside"][0]


def test_what_is_unlike_all_that_was_learnt_is_unsure_as_predict_has_it(noisy):
    values = {"stage": "stage1", "classes": ["real", "fake"], "temperature": 1.0, "threshold": 0.5, "band": None}
    stage = SimpleNamespace(**values, likelihood=None, ood_threshold=1.0)
    strange = np.arange(len(noisy)) % 3 == 0
    found = scores.with_predictions(stage, noisy.assign(outside=np.where(strange, "it shows nothing", None)))
    assert (found["answer"].eq("unsure") == strange).all() and set(found["prediction"]) == {"fake", "real"}


def test_a_new_score_table_replaces_the_old_one(tmp_path, noisy):
    scores.save_scores(noisy.assign(split="val"), tmp_path, "stage1")
    scores.save_scores(noisy, tmp_path, "stage1")
    pd.testing.assert_frame_equal(scores.load_scores(tmp_path, "stage1"), noisy)


def test_a_sweep_leaves_the_clean_rows_as_they_were(tmp_path, noisy):
    scores.save_scores(noisy, tmp_path, "stage1")
    clean, old, new = (
        noisy.assign(degradation=d, logit_fake=v) for d, v in (("none", 7.0), ("jpeg", 8.0), ("jpeg", 9.0))
    )
    for swept in (old, new):
        scores.save_scores(pd.concat([clean, swept]), tmp_path, "stage1", keep="none")
    found = scores.load_scores(tmp_path, "stage1")
    pd.testing.assert_frame_equal(found[found["degradation"] == "none"], noisy)
    assert found.loc[found["degradation"] == "jpeg", "logit_fake"].eq(9).all() and len(found) == 600
    scores.save_scores(swept.assign(source="of now"), tmp_path, "stage1", keep="none")  # clean rows know none yet
    assert "source" not in scores.load_scores(tmp_path, "stage1")


def test_missing_scores_name_the_notebook(tmp_path):
    with pytest.raises(FileNotFoundError, match="run notebook 02"):
        scores.load_scores(tmp_path, "stage2")


def test_score_calibrate_and_sweep_a_real_stage(tiny_data, tmp_path):
    table = manifest.scan(tiny_data, tmp_path, progress=False)
    settings = {"backbone": "test_resnet.r160_in1k", "representation": "rgb"}
    torch.manual_seed(0)
    content = {
        "stage": "stage1", "classes": ["real", "fake"], "config": settings, "crops": 2, "threshold": 0.5,
        "preprocessing": {"crop_size": 32, "equalise_quality": 90}, "temperature": 1.0, "history": [],
        "manifest_hash": "x", "key": "k", "weights": files_module.build_model("stage1", settings, 2).state_dict(),
    }  # fmt: skip
    path = tmp_path / CHECKPOINTS["stage1"]
    files_module.save_checkpoint(content, path)
    stage = stage_module.Stage.load(path)
    val = scores.score(stage, table[table["split"] == "val"])
    assert val["path"].tolist() == table.loc[table["split"] == "val", "path"].tolist()
    assert (val["crops"] == 2).all() and (val["degradation"] == "none").all()
    calibrated = scores.calibrate(stage, val, tmp_path)
    stored = torch.load(path, weights_only=True)
    assert (stored["threshold"], stored["temperature"]) == (stage.threshold, stage.temperature) != (0.5, 1.0)
    p = decide.probabilities(calibrated, stage.temperature)[:, 1]
    assert (calibrated["prediction"] == np.where(p >= stage.threshold, "fake", "real")).all()

    test = table[table["split"] == "test"]
    swept = pd.concat([scores.score(stage, test, *level, 1) for level in (("none", 0), ("jpeg", 90), ("jpeg", 30))])
    assert swept.groupby(["degradation", "level"]).size().nunique() == 1
    assert swept["level"].unique().tolist() == [0, 90, 30]
    levels = [part["logit_fake"].to_numpy() for _, part in swept.groupby("level")]
    assert not np.allclose(levels[0], levels[1])


def test_stage2_refuses_photos(tiny_data, tmp_path):
    table = manifest.scan(tiny_data, tmp_path, progress=False)
    with pytest.raises(ValueError, match="fakes only"):
        scores.score(type("Stage", (), {"stage": "stage2"})(), table)


def test_a_table_without_any_interval_has_no_columns_for_them():
    few, many = {"value": 0.5, "low": None, "high": None}, {"value": 0.25, "low": 0.1, "high": 0.4}
    assert scores.as_table({"auc": few, "ap": few}).to_dict("list") == {"value": ["0.500", "0.500"]}
    alike = {"value": 1.0, "low": 1.0, "high": 1.0}  # as of an AUC of few images that are all told apart
    assert scores.as_table({"auc": alike}).to_dict("list") == {"value": ["1.000"]}
    both = {"value": ["0.500", "0.250"], "low": ["–", "0.100"], "high": ["–", "0.400"]}
    assert scores.as_table({"auc": few, "ap": many}).to_dict("list") == both


def test_the_answer_of_a_row_is_that_of_its_p_fake(noisy):
    rule = {"temperature": 2.0, "threshold": 0.5, "band": [0.3, 0.8], "likelihood": None}
    stage = SimpleNamespace(stage="stage1", classes=["real", "fake"], **rule)
    p = 1 / (1 + np.exp(-noisy["logit_fake"] / 2))
    expected = np.select([p >= 0.8, p < 0.3], ["fake", "real"], "unsure").tolist()
    assert scores.with_predictions(stage, noisy)["answer"].tolist() == expected


def test_calibration_counts_rates_where_a_manifest_is(noisy, tmp_path, monkeypatch):
    stage = SimpleNamespace(stage="stage1", classes=["real", "fake"], is_held_out=False, likelihood=None)
    noisy[["path"]].assign(width=128, height=128, jpeg_quality=90).to_parquet(tmp_path / "manifest.parquet")
    monkeypatch.setattr(scores, "update_checkpoint", lambda *_, **__: None)
    scores.calibrate(stage, noisy.assign(split="val"), tmp_path)
    assert stage.rates[-1]["photos"] == 100
