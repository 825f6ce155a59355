"""Metrics and score tables: expected values are computed another way."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from dfd import evaluation, inference, manifest, scores
from dfd.record import read_json


def stage1_table(logits, labels, groups=None, threshold=0.5, **extra):
    p = 1 / (1 + np.exp(-np.asarray(logits, float)))
    content = {
        "path": [f"{label}/{i}.png" for i, label in enumerate(labels)],
        "label": labels,
        "split": "test",
        "group": groups if groups is not None else range(len(labels)),
        "degradation": "none",
        "level": 0.0,
        "logit_real": 0.0,
        "logit_fake": np.asarray(logits, float),
        "prediction": np.where(p >= threshold, "fake", "real"),
    }
    return pd.DataFrame({**content, **extra})


@pytest.fixture
def noisy():
    """300 images of 60 groups, photos about -1, fakes about +1."""
    rng = np.random.default_rng(0)
    labels = np.tile(["RealPhotos", "ProGAN", "BigGAN"], 100)
    return stage1_table(rng.normal(np.where(labels == "RealPhotos", -1, 1), 1.5), labels, np.repeat(range(60), 5))


def test_auc_is_the_share_of_pairs_in_the_right_order(noisy):
    fake = noisy["label"] != "RealPhotos"
    pairs = itertools.product(noisy.loc[fake, "logit_fake"], noisy.loc[~fake, "logit_fake"])
    expected = np.mean([a > b for a, b in pairs])
    assert evaluation.stage1_metrics(noisy, 1.0)["auc"]["value"] == pytest.approx(expected, abs=1e-9)
    assert np.isnan(evaluation.auc(np.ones(3), np.arange(3)))


def test_accuracies_are_counted_at_their_own_cut(noisy):
    moved = noisy.assign(prediction=np.where(noisy["logit_fake"] >= 1.0, "fake", "real"))
    fake = moved["label"] != "RealPhotos"
    found = {name: value["value"] for name, value in evaluation.stage1_metrics(moved, 1.0).items()}
    assert found["accuracy"] == pytest.approx(((moved["logit_fake"] > 0) == fake).mean())
    assert found["accuracy_at_threshold"] == pytest.approx(((moved["logit_fake"] >= 1) == fake).mean())
    assert found["fake_accuracy"] == pytest.approx((moved.loc[fake, "logit_fake"] >= 1).mean())
    assert found["real_accuracy"] == pytest.approx((moved.loc[~fake, "logit_fake"] < 1).mean())


def test_tpr_at_fpr_accuses_no_more_photos_than_allowed():
    photos, fakes = np.arange(100.0), np.array([98.5, 50, 99.5, 120])
    truth, score = np.r_[np.zeros(100), np.ones(4)], np.r_[photos, fakes]
    assert evaluation.tpr_at_fpr(truth, score, 0.01) == pytest.approx(3 / 4)
    assert evaluation.tpr_at_fpr(truth, score, 0.0) == pytest.approx(2 / 4)


def test_calibration_error_of_a_known_case():
    confidence = np.r_[np.full(50, 0.9), np.full(50, 0.6)]
    correct = np.r_[np.ones(40), np.zeros(10), np.ones(30), np.zeros(20)].astype(bool)
    assert evaluation.expected_calibration_error(confidence, correct) == pytest.approx(0.5 * 0.1 + 0.5 * 0.0)


def test_interval_widens_when_images_share_groups():
    rng = np.random.default_rng(1)
    right = np.repeat(rng.random(20) < 0.7, 10)
    rows = pd.DataFrame({"right": right, "group": np.repeat(range(20), 10)})
    grouped = evaluation.interval(rows, lambda t: t.right.mean())
    alone = evaluation.interval(rows.assign(group=range(200)), lambda t: t.right.mean())
    assert grouped["value"] == alone["value"] == right.mean()
    assert grouped["low"] < grouped["value"] < grouped["high"]
    assert grouped["high"] - grouped["low"] > 2 * (alone["high"] - alone["low"])
    standard_error = np.sqrt(right.mean() * (1 - right.mean()) / 20)
    assert grouped["high"] - grouped["low"] == pytest.approx(2 * 1.96 * standard_error, rel=0.2)


def test_one_group_has_no_interval():
    rows = pd.DataFrame({"right": [True, False, True, True], "group": "one"})
    assert evaluation.interval(rows, lambda t: t.right.mean()) == {"value": 0.75, "low": None, "high": None}


def test_undefined_metric_is_none_not_nan():
    rows = stage1_table([1.0, 2.0], ["ProGAN", "ProGAN"])
    assert evaluation.stage1_metrics(rows, 1.0)["auc"] == {"value": None, "low": None, "high": None}


def test_temperature_recovers_a_known_scale():
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, 20000)
    labels = np.where(rng.random(20000) < 1 / (1 + np.exp(-z)), "ProGAN", "RealPhotos")
    assert evaluation.fit_temperature(stage1_table(3 * z, labels)) == pytest.approx(3, rel=0.08)


def test_threshold_is_the_best_cut_found_by_trying_all(noisy):
    cut = evaluation.fit_threshold(noisy, 1.0)
    p, fake = evaluation.p_fake(noisy, 1.0), (noisy["label"] != "RealPhotos").to_numpy()

    def gain(at):
        return evaluation.balanced_accuracy(fake, p >= at)

    assert gain(cut) == pytest.approx(max(gain(at) for at in p))
    moved = noisy.assign(logit_fake=noisy["logit_fake"] + 3)
    odds = np.log(cut / (1 - cut)) + 3
    assert evaluation.fit_threshold(moved, 1.0) == pytest.approx(1 / (1 + np.exp(-odds)), abs=0.01)
    separable = stage1_table([-2.0, -1.0, 1.0, 2.0], ["RealPhotos", "RealPhotos", "ProGAN", "ProGAN"])
    assert 0.27 < evaluation.fit_threshold(separable, 1.0) < 0.73


def test_by_generator_compares_each_with_all_photos(noisy):
    found = evaluation.stage1_by_generator(noisy)
    assert set(found) == {"ProGAN", "BigGAN"}
    pair = noisy[noisy["label"] != "BigGAN"]
    expected = evaluation.stage1_metrics(pair, 1.0)["auc"]["value"]
    assert found["ProGAN"]["auc"]["value"] == pytest.approx(expected)


def stage2_table():
    labels = ["A", "A", "A", "B", "B", "C"]
    logits = np.array([[3, 0, 0], [0, 2, 0], [1, 0, 0], [0, 1, 0], [0, 4, 0], [2, 0, 1]], float)
    rows = stage1_table(np.zeros(6), labels).drop(columns=["logit_real", "logit_fake"])
    for i, name in enumerate("ABC"):
        rows[f"logit_{name}"] = logits[:, i]
    return rows.assign(prediction=np.array(list("ABC"))[logits.argmax(1)])


def test_stage2_metrics_of_a_table_done_by_hand():
    found = evaluation.stage2_metrics(stage2_table(), 1.0)
    assert found["accuracy"]["value"] == pytest.approx(4 / 6)
    assert found["balanced_accuracy"]["value"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found["macro_f1"]["value"] == pytest.approx((2 / 3 + 4 / 5 + 0) / 3)
    assert evaluation.stage2_by_generator(stage2_table())["A"]["recall"]["value"] == pytest.approx(2 / 3)


def test_mistakes_are_all_the_wrong_ones_surest_first():
    wrong = evaluation.mistakes(stage2_table())
    assert wrong["path"].tolist() == ["A/1.png", "C/5.png"]
    assert wrong["margin"].tolist() == [2.0, 1.0]
    assert evaluation.mistakes(stage1_table([-1.0, 1.0], ["RealPhotos", "ProGAN"])).empty


def test_by_source_puts_the_worst_first(noisy):
    named = noisy.assign(path=[f"{one.label}/{'ab'[i % 2]}_{i}.png" for i, one in enumerate(noisy.itertuples())])
    table = pd.DataFrame({"path": named["path"], "format": "PNG"})
    found = evaluation.by_source(named, table)
    assert len(found) == 6 and found["images"].sum() == 300
    assert found["accuracy"].is_monotonic_increasing
    first = found.iloc[0]
    rows = named[named["path"].str.startswith(f"{first['label']}/{first['origin']}_")]
    right = (rows["prediction"] == "fake") == (rows["label"] != "RealPhotos")
    assert first["accuracy"] == pytest.approx(right.mean(), abs=1e-3)


def test_sweep_has_a_row_per_quality(noisy):
    worse = noisy.assign(degradation="jpeg", level=50.0, logit_fake=noisy["logit_fake"] * 0.0)
    found = evaluation.sweep(pd.concat([noisy, worse]), 1.0)
    assert np.isnan(found["quality"][0]) and found["quality"][1] == 50
    assert found["auc"][0] > 0.7 and found["auc"][1] == 0.5
    assert evaluation.readable(found, ["auc"]).loc["JPEG 50", "auc"] == "0.500 [0.500, 0.500]"


def test_measure_reads_clean_rows_of_each_split(noisy):
    other = noisy.assign(split="val", logit_fake=-noisy["logit_fake"])
    swept = noisy.assign(degradation="jpeg", level=50.0, logit_fake=0.0)
    found = evaluation.measure(pd.concat([noisy, other, swept]), 1.0)
    assert found["test"]["auc"]["value"] == pytest.approx(1 - found["val"]["auc"]["value"])
    assert set(found["test"]["by_generator"]) == {"ProGAN", "BigGAN"}


def test_report_text_counts_images_and_groups(noisy):
    text = evaluation.classification_text({"stage 1": noisy}, "test")
    assert "stage 1, 300 images of 60 groups" in text and "macro avg" in text


def test_metrics_sections_are_merged(tmp_path):
    evaluation.save_metrics(tmp_path, "stage1", {"test": {"auc": {"value": 0.9, "low": 0.8, "high": 1.0}}})
    evaluation.save_metrics(tmp_path, "notes", ["a"])
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
        "manifest_hash": "x", "weights": inference.build_model("stage1", settings, 2).state_dict(),
    }  # fmt: skip
    path = tmp_path / inference.CHECKPOINTS["stage1"]
    inference.save_checkpoint(content, path)
    stage = inference.Stage.load(path)
    val = scores.score(stage, table[table["split"] == "val"])
    assert val["path"].tolist() == table.loc[table["split"] == "val", "path"].tolist()
    assert (val["crops"] == 2).all() and (val["degradation"] == "none").all()
    calibrated = scores.calibrate(stage, val, tmp_path)
    stored = torch.load(path, weights_only=True)
    assert (stored["threshold"], stored["temperature"]) == (stage.threshold, stage.temperature) != (0.5, 1.0)
    p = evaluation.p_fake(calibrated, stage.temperature)
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
