"""Metrics and score tables: expected values are computed another way."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from score_tables import noisy_table, planted, stage1_table
from sklearn import metrics as skm

from dfd.core.io import read_json
from dfd.data import manifest
from dfd.evaluate import metrics, scores
from dfd.inference import decide
from dfd.inference import stage as stage_module


@pytest.fixture
def noisy():
    """300 images of 60 groups, photos about -1, fakes about +1."""
    return noisy_table()


def test_auc_is_the_share_of_pairs_in_the_right_order(noisy):
    fake = noisy["label"] != "RealPhotos"
    pairs = itertools.product(noisy.loc[fake, "logit_fake"], noisy.loc[~fake, "logit_fake"])
    expected = np.mean([a > b for a, b in pairs])
    assert metrics.evaluate(noisy, 1.0)["auc"]["value"] == pytest.approx(expected, abs=1e-9)
    assert np.isnan(metrics.auc(np.ones(3), np.arange(3)))


def test_accuracies_are_counted_at_their_own_cut(noisy):
    moved = noisy.assign(prediction=np.where(noisy["logit_fake"] >= 1.0, "fake", "real"))
    fake = moved["label"] != "RealPhotos"
    found = {name: value["value"] for name, value in metrics.evaluate(moved, 1.0).items()}
    assert found["accuracy"] == pytest.approx(((moved["logit_fake"] > 0) == fake).mean())
    assert found["accuracy_at_threshold"] == pytest.approx(((moved["logit_fake"] >= 1) == fake).mean())
    assert found["fake_accuracy"] == pytest.approx((moved.loc[fake, "logit_fake"] >= 1).mean())
    assert found["real_accuracy"] == pytest.approx((moved.loc[~fake, "logit_fake"] < 1).mean())


def test_tpr_at_fpr_accuses_no_more_photos_than_allowed():
    photos, fakes = np.arange(100.0), np.array([98.5, 50, 99.5, 120])
    truth, score = np.r_[np.zeros(100), np.ones(4)], np.r_[photos, fakes]
    assert metrics.tpr_at_fpr(truth, score, 0.01) == pytest.approx(3 / 4)
    assert metrics.tpr_at_fpr(truth, score, 0.0) == pytest.approx(2 / 4)


def test_undefined_metric_is_none_not_nan():
    rows = stage1_table([1.0, 2.0], ["ProGAN", "ProGAN"])
    assert metrics.evaluate(rows, 1.0)["auc"] == {"value": None, "low": None, "high": None}


def test_tpr_at_fpr_counts_tied_scores_as_they_are_called():
    """Three steps of one photo and one fake each lie on a line; the point in its middle counts too."""
    truth, score = np.array([0, 1, 0, 1, 0, 1, 0]), np.array([3.0, 3, 2, 2, 1, 1, 0])
    assert metrics.tpr_at_fpr(truth, score, 0.5) == pytest.approx(2 / 3)


def test_calibration_lowers_the_error_of_an_over_confident_model():
    val, test = planted(4.0, seed=1), planted(4.0, 3000, seed=2)
    temperature = decide.fit_temperature(val)
    found = metrics.evaluate(test, temperature)
    assert temperature == pytest.approx(4, rel=0.1)
    assert found["ece_before"]["low"] > 0.1 and found["ece"]["high"] < 0.04
    p = 1 / (1 + np.exp(-test["logit_fake"]))
    right = (p > 0.5) == (test["label"] != "RealPhotos")
    before = decide.expected_calibration_error(np.maximum(p, 1 - p).to_numpy(), right)
    assert found["ece_before"]["value"] == pytest.approx(before)


def test_by_generator_compares_each_with_all_photos(noisy):
    found = metrics.by_generator(noisy)
    assert set(found) == {"ProGAN", "BigGAN"}
    pair = noisy[noisy["label"] != "BigGAN"]
    expected = metrics.evaluate(pair, 1.0)["auc"]["value"]
    assert found["ProGAN"]["auc"]["value"] == pytest.approx(expected)


def test_accuracy_of_a_generator_weighs_photos_and_its_fakes_alike(noisy):
    called = noisy["prediction"] == "fake"
    fakes, photos = called[noisy["label"] == "BigGAN"].head(7), called[noisy["label"] == "RealPhotos"]
    found = metrics.by_generator(noisy.loc[[*fakes.index, *photos.index]])["BigGAN"]
    assert found["accuracy"]["value"] == pytest.approx((fakes.mean() + (~photos).mean()) / 2)
    assert found["fake_accuracy"]["value"] == pytest.approx(fakes.mean())


def test_roc_is_the_share_found_at_each_rate(noisy):
    curve = scores.roc(noisy)
    photos = np.sort(noisy.loc[noisy["label"] == "RealPhotos", "logit_fake"])[::-1]
    fakes = noisy.loc[noisy["label"] != "RealPhotos", "logit_fake"].to_numpy()
    for fpr, tpr in curve[["fpr", "tpr"]].to_numpy()[::20]:
        allowed = int(np.floor(fpr * 100 + 1e-9))
        cut = photos[allowed] if allowed < 100 else -np.inf
        assert tpr == pytest.approx((fakes > cut).mean())


def test_precision_recall_encloses_the_average_precision(noisy):
    curve = scores.precision_recall(noisy)
    expected = skm.average_precision_score(noisy["label"] != "RealPhotos", noisy["logit_fake"])
    assert curve["precision"].mean() == pytest.approx(expected, abs=0.005)
    for recall, precision in curve[["recall", "precision"]].to_numpy()[::11]:
        fake = (noisy["label"] != "RealPhotos").to_numpy()
        cut = np.sort(noisy["logit_fake"][fake])[::-1][int(np.ceil(recall * 200 - 1e-9)) - 1]
        assert precision == pytest.approx(fake[noisy["logit_fake"] >= cut].mean())


@pytest.mark.parametrize(("curve", "height"), [(metrics.roc, "tpr"), (metrics.precision_recall, "precision")])
def test_bands_hold_the_curve_and_shrink_with_more_groups(curve, height):
    few, many = curve(noisy_table(300)), curve(noisy_table(2700))
    for found in (few, many):
        assert (found["low"] <= found[height] + 1e-12).mean() > 0.98
        assert (found[height] <= found["high"] + 1e-12).mean() > 0.98
    width = [(found["high"] - found["low"]).mean() for found in (few, many)]
    assert 0 < 2 * width[1] < width[0]  # nine times the groups: about a third


@pytest.mark.parametrize(("curve", "height"), [(metrics.roc, "tpr"), (metrics.precision_recall, "precision")])
def test_no_curve_of_one_class_and_no_band_of_one_group(curve, height, noisy):
    photos = noisy[noisy["label"] == "RealPhotos"]
    assert curve(photos)[[height, "low", "high"]].isna().all(axis=None)
    together = curve(noisy.assign(group="one"))
    assert together[height].tolist() == curve(noisy)[height].tolist()
    assert together[["low", "high"]].isna().all(axis=None)


def stage2_table():
    labels = ["A", "A", "A", "B", "B", "C"]
    logits = np.array([[3, 0, 0], [0, 2, 0], [1, 0, 0], [0, 1, 0], [0, 4, 0], [2, 0, 1]], float)
    rows = stage1_table(np.zeros(6), labels).drop(columns=["logit_real", "logit_fake"])
    for i, name in enumerate("ABC"):
        rows[f"logit_{name}"] = logits[:, i]
    return rows.assign(prediction=np.array(list("ABC"))[logits.argmax(1)])


def test_stage2_metrics_of_a_table_done_by_hand():
    found = metrics.evaluate(stage2_table(), 1.0)
    assert found["accuracy"]["value"] == pytest.approx(4 / 6)
    assert found["balanced_accuracy"]["value"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found["macro_f1"]["value"] == pytest.approx((2 / 3 + 4 / 5 + 0) / 3)
    assert metrics.by_generator(stage2_table())["A"]["recall"]["value"] == pytest.approx(2 / 3)


def test_certainty_is_of_what_was_called_and_distance_from_the_threshold():
    table = stage1_table([-2.0, 0.0, 4.0], ["RealPhotos", "ProGAN", "ProGAN"], threshold=0.6)
    found = scores.certainty(table, 2.0, 0.6)
    p = 1 / (1 + np.exp(-np.array([-1.0, 0.0, 2.0])))
    assert found["confidence"].tolist() == pytest.approx([1 - p[0], 1 - p[1], p[2]])
    assert found["distance"].tolist() == pytest.approx(np.abs(np.array([-1.0, 0.0, 2.0]) - np.log(1.5)))
    table = stage2_table()
    found = scores.certainty(table, 1.0)
    logits = np.sort(table[["logit_A", "logit_B", "logit_C"]].to_numpy(), axis=1)
    assert found["distance"].tolist() == pytest.approx(logits[:, 2] - logits[:, 1])
    shares = np.exp(logits[:, 2]) / np.exp(logits).sum(1)
    assert found["confidence"].tolist() == pytest.approx(shares)


def test_mistakes_are_all_the_wrong_ones_surest_first():
    wrong = scores.mistakes(stage2_table())
    assert wrong["path"].tolist() == ["A/1.png", "C/5.png"]
    assert wrong["margin"].tolist() == [2.0, 1.0]
    assert scores.mistakes(stage1_table([-1.0, 1.0], ["RealPhotos", "ProGAN"])).empty


def test_by_source_puts_the_worst_first(noisy):
    named = noisy.assign(path=[f"{one.label}/{'ab'[i % 2]}_{i}.png" for i, one in enumerate(noisy.itertuples())])
    table = pd.DataFrame({"path": named["path"], "format": "PNG"})
    found = metrics.by_source(named, table)
    assert len(found) == 6 and found["images"].sum() == 300
    assert found["accuracy"].is_monotonic_increasing
    first = found.iloc[0]
    rows = named[named["path"].str.startswith(f"{first['label']}/{first['origin']}_")]
    right = (rows["prediction"] == "fake") == (rows["label"] != "RealPhotos")
    assert first["accuracy"] == pytest.approx(right.mean(), abs=1e-3)


def test_sweep_has_a_row_per_quality(noisy):
    worse = noisy.assign(degradation="jpeg", level=50.0, logit_fake=noisy["logit_fake"] * 0.0)
    found = scores.jpeg_table(pd.concat([noisy, worse]), 1.0)
    assert np.isnan(found["quality"][0]) and found["quality"][1] == 50
    assert found["auc"][0] > 0.7 and found["auc"][1] == 0.5
    assert scores.readable(found, ["auc"]).loc["JPEG 50", "auc"] == "0.500 [0.500, 0.500]"


def test_measure_reads_clean_rows_of_each_split(noisy):
    other = noisy.assign(split="val", logit_fake=-noisy["logit_fake"])
    swept = noisy.assign(degradation="jpeg", level=50.0, logit_fake=0.0)
    found = metrics.measure(pd.concat([noisy, other, swept]), 1.0)
    assert found["test"]["auc"]["value"] == pytest.approx(1 - found["val"]["auc"]["value"])
    assert set(found["test"]["by_generator"]) == {"ProGAN", "BigGAN"}


def test_report_text_counts_images_and_groups(noisy):
    text = scores.classification_text({"stage 1": noisy}, "test")
    assert "stage 1, 300 images of 60 groups" in text and "macro avg" in text


def test_metrics_sections_are_merged(tmp_path):
    metrics.save_metrics(tmp_path, "stage1", {"test": {"auc": {"value": 0.9, "low": 0.8, "high": 1.0}}})
    metrics.save_metrics(tmp_path, "notes", ["a"])
    content = read_json(tmp_path / "metrics.json")
    assert content["stage1"]["test"]["auc"]["value"] == 0.9 and content["notes"] == ["a"]


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


def test_missing_scores_name_the_notebook(tmp_path):
    with pytest.raises(FileNotFoundError, match="02_stage2_attribution"):
        scores.load_scores(tmp_path, "stage2")


def test_score_calibrate_and_sweep_a_real_stage(tiny_data, tmp_path):
    table = manifest.scan(tiny_data, tmp_path, progress=False)
    settings = {"backbone": "test_resnet.r160_in1k", "representation": "rgb"}
    torch.manual_seed(0)
    content = {
        "stage": "stage1", "classes": ["real", "fake"], "config": settings, "crops": 2, "threshold": 0.5,
        "preprocessing": {"crop_size": 32, "equalise_quality": 90}, "temperature": 1.0, "history": [],
        "manifest_hash": "x", "key": "k", "weights": stage_module.build_model("stage1", settings, 2).state_dict(),
    }  # fmt: skip
    path = tmp_path / stage_module.CHECKPOINTS["stage1"]
    stage_module.save_checkpoint(content, path)
    stage = stage_module.Stage.load(path)
    val = scores.score(stage, table[table["split"] == "val"])
    assert val["path"].tolist() == table.loc[table["split"] == "val", "path"].tolist()
    assert (val["crops"] == 2).all() and (val["degradation"] == "none").all()
    calibrated = scores.calibrate(stage, val, tmp_path)
    stored = torch.load(path, weights_only=True)
    assert (stored["threshold"], stored["temperature"]) == (stage.threshold, stage.temperature) != (0.5, 1.0)
    p = decide.p_fake(calibrated, stage.temperature)
    assert (calibrated["prediction"] == np.where(p >= stage.threshold, "fake", "real")).all()

    swept = scores.jpeg_sweep(stage, table[table["split"] == "test"], [30, 90], crops=1)
    assert swept.groupby(["degradation", "level"]).size().nunique() == 1
    assert swept["level"].unique().tolist() == [0, 90, 30]
    levels = [part["logit_fake"].to_numpy() for _, part in swept.groupby("level")]
    assert not np.allclose(levels[0], levels[1])


def test_stage2_refuses_photos(tiny_data, tmp_path):
    table = manifest.scan(tiny_data, tmp_path, progress=False)
    with pytest.raises(ValueError, match="fakes only"):
        scores.score(type("Stage", (), {"stage": "stage2"})(), table)
