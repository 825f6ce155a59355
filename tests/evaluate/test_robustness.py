"""What is read from a sweep: against numbers computed in another way, and designed cases."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from score_tables import CLASSES, noisy_table, stage2_table
from sklearn.metrics import balanced_accuracy_score

from dfd.evaluate import metrics, robustness
from dfd.inference import decide

STAGES = {
    "stage1": SimpleNamespace(stage="stage1", classes=["real", "fake"], temperature=1.6, threshold=0.4),
    "stage2": SimpleNamespace(
        stage="stage2", classes=CLASSES, temperature=0.7, threshold=0.5, ood_threshold=None, conformal_quantile=1.0
    ),
}
LEVELS = [("none", 0.0), ("jpeg", 90.0), ("jpeg", 50.0), ("rescale 0.5 bicubic + jpeg", 75.0)]


@pytest.fixture(scope="module")
def swept():
    one, two = [], []
    for seed, (degradation, level) in enumerate(LEVELS):
        rng = np.random.default_rng(seed)
        rows = noisy_table(seed=0).assign(degradation=degradation, level=level)
        rows["logit_fake"] += rng.normal(0, seed, len(rows))
        p = softmax(rows[["logit_real", "logit_fake"]].to_numpy() / 1.6, axis=1)[:, 1]
        rows = rows.assign(prediction=np.where(p >= 0.4, "fake", "real"))
        one.append(rows.sample(frac=1, random_state=seed))
        rows = stage2_table(seed, push=2.5 - 0.7 * seed, degradation=degradation, level=level)
        two.append(rows.assign(path=[f"{i:03}" for i in range(len(rows))]))
    return {"stage1": pd.concat(one, ignore_index=True), "stage2": pd.concat(two, ignore_index=True)}


@pytest.fixture(scope="module")
def found(swept):
    return robustness.measure(swept, STAGES)


def at(found, stage, condition, metric, label="all"):
    keys = {"stage": stage, "condition": condition, "metric": metric, "label": label}
    (row,) = [row for _, row in found.iterrows() if all(row[key] == value for key, value in keys.items())]
    return row


def test_stage1_is_what_evaluation_says_of_each_condition(swept, found):
    rows = swept["stage1"]
    rows = rows[(rows["degradation"] == "jpeg") & (rows["level"] == 50)].sort_values("path")
    expected = metrics.evaluate(rows, 1.6, only=["auc", "ece", "ece_before", "real_accuracy"])
    for name in ("auc", "ece", "ece_before"):
        three = at(found, "stage1", "jpeg 50", name)[["value", "low", "high"]].to_dict()
        assert three == pytest.approx(expected[name])
    alarms = at(found, "stage1", "jpeg 50", "false_positive_rate")
    assert alarms["value"] == pytest.approx(1 - expected["real_accuracy"]["value"])
    assert alarms["low"] < alarms["value"] < alarms["high"] and alarms["images"] == 100
    fake, called = rows["label"] != "RealPhotos", rows["prediction"] == "fake"
    balanced = at(found, "stage1", "jpeg 50", robustness.ACCURACY["stage1"])["value"]
    assert balanced == pytest.approx(balanced_accuracy_score(fake, called))
    gan = rows["label"] == "ProGAN"
    assert at(found, "stage1", "jpeg 50", "recall", "ProGAN")["value"] == pytest.approx(called[gan].mean())


def test_intervals_of_a_sweep_are_over_sources_where_these_are_known(swept, found):
    known = {name: rows.assign(source=rows["label"] + rows["path"].str[-5:-4]) for name, rows in swept.items()}
    as_groups = {name: rows.drop(columns="source").assign(group=rows["source"]) for name, rows in known.items()}
    measured = robustness.measure(known, STAGES)
    pd.testing.assert_frame_equal(measured, robustness.measure(as_groups, STAGES))
    assert not measured["low"].equals(found["low"]) and measured["value"].equals(found["value"])


def test_stage2_is_what_evaluation_says_of_each_condition(swept, found):
    rows = swept["stage2"]
    rows = rows[rows["degradation"] == "rescale 0.5 bicubic + jpeg"]
    expected = metrics.evaluate(rows, 0.7, only=["balanced_accuracy", "ece"])
    for name, three in expected.items():
        row = at(found, "stage2", "rescale 0.5 bicubic + jpeg 75", name)
        assert row[["value", "low", "high"]].to_dict() == pytest.approx(three)


def test_one_row_a_stage_a_condition_and_a_metric(found):
    keys = ["stage", "condition", "label", "metric"]
    assert not found.duplicated(keys).any()
    names = ["as it is", "jpeg 90", "jpeg 50", "rescale 0.5 bicubic + jpeg 75"]
    assert found.groupby("stage")["condition"].unique().map(list).tolist() == [names, names]
    assert (found.groupby(["stage", "condition"]).size().groupby("stage").nunique() == 1).all()


def test_conditions_of_other_images_are_refused(swept):
    torn = swept["stage1"].drop(swept["stage1"].index[-1])
    with pytest.raises(ValueError, match="'rescale 0.5 bicubic \\+ jpeg 75' does not hold the same images"):
        robustness.measure({"stage1": torn}, STAGES)


def test_wide_and_recalls_keep_the_order_of_the_grid(found):
    table = robustness.wide(found, "stage1")
    assert {"auc", "auc_low", "auc_high", "ece", "ece_low", "ece_high"} <= set(table)
    assert table.loc["jpeg 90", "auc_high"] == at(found, "stage1", "jpeg 90", "auc")["high"]
    heat = robustness.recalls(found, "stage1")
    assert list(heat.index) == ["RealPhotos", "BigGAN", "ProGAN"] and list(heat.columns) == list(table.index)
    photos = 1 - at(found, "stage1", "jpeg 50", "false_positive_rate")["value"]
    assert heat.loc["RealPhotos", "jpeg 50"] == pytest.approx(photos)


def test_a_generator_may_be_called_all_as_metrics_over_all_images_are(swept):
    one = swept["stage1"].replace({"label": {"ProGAN": robustness.ALL}})
    found = robustness.measure({"stage1": one}, STAGES)
    whole, own = at(found, "stage1", "jpeg 50", "auc"), at(found, "stage1", "jpeg 50", "recall", robustness.ALL)
    assert whole["images"] == one["path"].nunique() and own["images"] == (one["label"] == robustness.ALL).sum() / 4
    assert (
        "recall" not in robustness.wide(found, "stage1") and robustness.ALL in robustness.recalls(found, "stage1").index
    )


def test_summary_names_the_worst_of_each_kind(found):
    summary = robustness.summary(found)
    alarms = found[found["metric"] == "false_positive_rate"].set_index("condition")["value"]
    worst = summary["stage1_false_positive_rate"]["worst"]
    assert worst["condition"] == alarms.idxmax() and worst["value"] == alarms.max() and summary["conditions"] == 4
    stage2 = summary["stage2_balanced_accuracy"]
    assert stage2["as_it_is"]["value"] > stage2["worst"]["value"]
    assert stage2["worst"]["condition"] == "rescale 0.5 bicubic + jpeg 75"
    assert robustness.summary(found[::-1])["stage2_balanced_accuracy"] == stage2  # whichever condition comes first


def test_one_class_alone_leaves_what_is_undefined_open(swept):
    photos = swept["stage1"][swept["stage1"]["label"] == "RealPhotos"]
    found = robustness.measure({"stage1": photos}, STAGES)
    assert np.isnan(at(found, "stage1", "as it is", "auc")["value"])
    expected = (decide.probabilities(photos[photos["degradation"] == "none"], 1.6)[:, 1] >= 0.4).mean()
    assert at(found, "stage1", "as it is", "false_positive_rate")["value"] == pytest.approx(expected)
