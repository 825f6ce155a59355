"""Temperature, thresholds and calibration error: planted models whose answers are known."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from score_tables import CLASSES, noisy_table, planted, stage1_table, stage2_table
from sklearn.metrics import balanced_accuracy_score

from dfd.evaluate import metrics, scores
from dfd.inference import decide


def fit_threshold(rows, temperature, fpr=None):
    p, is_photo = decide.probabilities(rows, temperature)[:, 1], (rows["label"] == "RealPhotos").to_numpy()
    return decide.fit_threshold(p[is_photo], p[~is_photo], fpr)


def calibration_error(confidence, correct):
    return metrics.calibration_error(np.ones((1, len(confidence))), confidence, correct)[0]


@pytest.fixture
def noisy():
    return noisy_table()


def test_calibration_error_of_a_known_case():
    confidence = np.r_[np.full(50, 0.9), np.full(50, 0.6)]
    correct = np.r_[np.ones(40), np.zeros(10), np.ones(30), np.zeros(20)].astype(bool)
    assert calibration_error(confidence, correct) == pytest.approx(0.5 * 0.1 + 0.5 * 0.0)


def test_confidence_is_of_the_likeliest_class():
    rows = stage1_table([-np.log(3), np.log(9), np.log(9)], ["RealPhotos", "RealPhotos", "ProGAN"])
    confidence, right = decide.confidences(rows, 1.0)
    assert confidence.tolist() == pytest.approx([0.75, 0.9, 0.9]) and right.tolist() == [True, False, True]
    three = pd.DataFrame({"label": ["A", "B"], "logit_A": np.log(2), "logit_B": 0.0})
    confidence, right = decide.confidences(three.assign(logit_C=0.0), 1.0)
    assert confidence.tolist() == pytest.approx([0.5, 0.5]) and right.tolist() == [True, False]


@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0, 60.0])
def test_temperature_recovers_a_known_scale(factor):
    assert decide.fit_temperature(planted(factor, 20000)) == pytest.approx(factor, rel=0.08)


def test_threshold_is_the_best_cut_found_by_trying_all(noisy):
    cut = fit_threshold(noisy, 1.0)
    p, fake = decide.probabilities(noisy, 1.0)[:, 1], (noisy["label"] != "RealPhotos").to_numpy()

    def gain(at):
        return balanced_accuracy_score(fake, p >= at)

    assert gain(cut) == pytest.approx(max(gain(at) for at in p))
    for photos, fakes in (([0.6, 0.7, 0.8], [0.2, 0.3, 0.4]), ([0.5] * 3, [0.5] * 3), ([1.0, 0.9], [0.1])):
        assert decide.fit_threshold(photos, fakes) > min(max(photos), 1 - 1e-8)  # chance is as good: none is accused
    moved = noisy.assign(logit_fake=noisy["logit_fake"] + 3)
    odds = np.log(cut / (1 - cut)) + 3
    assert fit_threshold(moved, 1.0) == pytest.approx(1 / (1 + np.exp(-odds)), abs=0.01)
    separable = stage1_table([-2.0, -1.0, 1.0, 2.0], ["RealPhotos", "RealPhotos", "ProGAN", "ProGAN"])
    assert 0.27 < fit_threshold(separable, 1.0) < 0.73


def test_of_equally_good_cuts_the_middle_one_is_taken():
    """At 0.2, 0.4 and 0.6 a third more of the fakes than of the photos are called fake."""
    photos, fakes = [0.1, 0.3, 0.5], [0.2, 0.4, 0.6]
    assert decide.fit_threshold(photos, fakes) == pytest.approx(0.35)


@pytest.mark.parametrize("fpr", [0.0, 0.01, 0.05, 0.29, 0.5])
@pytest.mark.parametrize("digits", [0, 1, 8])
def test_threshold_at_a_rate_is_the_lowest_that_keeps_it(fpr, digits, noisy):
    """Rounded logits make ties; 100 photos make 0.29 of them a whole number."""
    tied = noisy.assign(logit_fake=noisy["logit_fake"].round(digits))
    cut = fit_threshold(tied, 1.0, fpr)
    p = decide.probabilities(tied, 1.0)[:, 1]
    photos = p[tied["label"] == "RealPhotos"]
    assert (photos >= cut).mean() <= fpr
    assert (photos >= p[p < cut].max()).mean() > fpr


def test_no_photo_is_called_fake_where_all_are_sure():
    rows = stage1_table([800.0, 800.0, 800.0], ["RealPhotos", "RealPhotos", "ProGAN"])
    cut = fit_threshold(rows, 1.0, 0.05)
    assert cut > 1 and np.float32(cut) > 1  # single precision keeps it apart too


def test_thresholds_refuse_what_they_cannot_be_fitted_on(noisy):
    with pytest.raises(ValueError, match="photos and fakes"):
        fit_threshold(noisy[noisy["label"] != "RealPhotos"], 1.0)
    with pytest.raises(ValueError, match="photos and fakes"):
        fit_threshold(noisy[noisy["label"] == "RealPhotos"], 1.0, 0.05)
    with pytest.raises(ValueError, match="share of photos"):
        fit_threshold(noisy, 1.0, 5)


def test_operating_points_are_three_thresholds(noisy):
    fitted = decide.fit(SimpleNamespace(stage="stage1"), noisy)
    points, p = fitted["operating_points"], 1 / (1 + np.exp(-noisy["logit_fake"] / fitted["temperature"]))
    fake = noisy["label"] != "RealPhotos"
    assert fitted["threshold"] == points["balanced"]
    best = max(balanced_accuracy_score(fake, p >= cut) for cut in p)
    assert balanced_accuracy_score(fake, p >= points["balanced"]) == pytest.approx(best)
    for name, allowed in {"fpr_5": 5, "fpr_1": 1}.items():  # of 100 photos
        assert (p[~fake] >= points[name]).sum() == allowed
    assert points["balanced"] < points["fpr_5"] < points["fpr_1"]
    low, high = fitted["band"]
    assert (p[fake] < low).sum() == 10 and (p[~fake] >= high).sum() == 5  # 5 % of 200 fakes, and of 100 photos


def test_classes_weigh_alike_in_the_temperature(noisy):
    fakes, photos = noisy[noisy["label"] != "RealPhotos"], noisy[noisy["label"] == "RealPhotos"].head(10)
    temperature = decide.fit_temperature(pd.concat([fakes, photos]))
    assert temperature == pytest.approx(decide.fit_temperature(pd.concat([fakes, *[photos] * 20])), rel=1e-3)


def test_sources_weigh_alike_in_all_that_is_fitted(noisy):
    sources = noisy.assign(source=np.where(noisy.index < 30, "small", "big"), draw=0)
    sources.loc[sources["source"] == "small", "logit_fake"] *= 20  # 30 images of 300, and half of what is asked
    stage = SimpleNamespace(stage="stage1")
    fitted, pooled = decide.fit(stage, sources), decide.fit(stage, noisy.assign(logit_fake=sources["logit_fake"]))
    assert len(fitted["validation"]["photos"]) == 2 * decide.PER_SOURCE
    assert fitted["temperature"] > 1.5 * pooled["temperature"]


def test_groups_weigh_alike_in_the_promise_of_sets():
    rows = stage2_table(push=1.0).assign(path="x")
    often = rows[rows["group"] == "g0"].sample(200, replace=True, random_state=0)
    table, stage = pd.concat([rows, often]), SimpleNamespace(stage="stage2", classes=CLASSES)
    fitted = decide.fit(stage, table)
    p, true = decide.probabilities(table, fitted["temperature"]), table["label"].map(CLASSES.index).to_numpy()
    alike = decide.fit_conformal(p, true, 0.9, table["group"].to_numpy())
    assert fitted["conformal_quantile"] == alike != decide.fit_conformal(p, true, 0.9, range(len(p)))


def test_the_temperature_comes_from_clean_validation_rows_alone(noisy, tmp_path, monkeypatch):
    stage = SimpleNamespace(stage="stage1", classes=["real", "fake"], is_held_out=False, likelihood=None)
    val = noisy.assign(split="val", level=0.0)
    others = [
        val.assign(split="test", logit_fake=9 * val["logit_fake"]),
        val.assign(degradation="jpeg", logit_fake=0.0),
    ]
    monkeypatch.setattr(scores, "update_checkpoint", lambda *_, **__: None)
    scores.calibrate(stage, pd.concat([val, *others]), tmp_path)
    assert stage.temperature == decide.fit(SimpleNamespace(stage="stage1"), val)["temperature"]


def test_points_are_counted_on_the_rows_that_are_given(noisy):
    points = {"low": 0.2, "high": 0.6}
    found = scores.at_operating_points(noisy, points, 2.0)
    p, fake = 1 / (1 + np.exp(-noisy["logit_fake"] / 2)), noisy["label"] != "RealPhotos"
    for name, cut in points.items():
        row = found.loc[name]
        assert row["threshold"] == cut
        assert row["fpr"] == pytest.approx((p[~fake] >= cut).mean())
        assert row["tpr"] == pytest.approx((p[fake] >= cut).mean())
        assert row["accuracy"] == pytest.approx(((p >= cut) == fake).mean())
        assert all(row[f"{rate}_low"] < row[rate] < row[f"{rate}_high"] for rate in ("fpr", "tpr", "accuracy"))
    shown = scores.readable(found, ["fpr"])
    row = found.loc["low"]
    assert shown.loc["low", "fpr"] == f"{row['fpr']:.3f} [{row['fpr_low']:.3f}, {row['fpr_high']:.3f}]"


def test_points_on_fakes_alone_or_one_group_leave_gaps(noisy):
    fakes = scores.at_operating_points(noisy[noisy["label"] != "RealPhotos"], {"cut": 0.5}, 1.0).loc["cut"]
    assert fakes[["fpr", "fpr_low", "fpr_high"]].isna().all() and fakes["tpr"] == fakes["accuracy"]
    alone = scores.at_operating_points(noisy.assign(group="one"), {"cut": 0.5}, 1.0)
    assert alone[["fpr_low", "tpr_high"]].isna().all(axis=None)
    assert scores.readable(alone, ["fpr"]).loc["cut", "fpr"] == f"{alone.loc['cut', 'fpr']:.3f}"


def test_evidence_counts_sources_where_the_rows_have_them(noisy):
    stage, rows = SimpleNamespace(stage="stage1", classes=["real", "fake"]), noisy.assign(level=0.0)
    files = noisy[["path"]].assign(width=128, height=128, jpeg_quality=90)
    sources = rows["label"] + rows.index.map(lambda i: str(i % 12 // 3))
    for given in (rows, rows.assign(source=sources)):
        fitted, is_known = decide.fit(stage, given, files), "source" in given
        evidence, rates = fitted["likelihood"], fitted["rates"][-1]
        assert evidence["unit"] == ("source" if is_known else "group")
        assert evidence["groups"] == ([4, 8] if is_known else [60, 60])
        assert max(evidence["log10_lr"]) <= np.log10(evidence["groups"][0] / 3) + 1e-4
        assert rates["sources"] == (12 if is_known else 60)
        assert (rates["worst_photos"] is not None) == (rates["worst_fakes"] is not None) == is_known


def test_no_photo_is_called_fake_where_the_cut_would_round_onto_it():
    photos = [0.2, 0.3, np.nextafter(0.9, 0)]
    assert decide.fit_threshold(photos, [0.9, 0.95], 0) > photos[-1]


def test_rates_are_of_answers_at_the_fitted_temperature(noisy):
    rows = noisy.assign(level=0.0, logit_fake=4 * noisy["logit_fake"])
    fitted = decide.fit(SimpleNamespace(stage="stage1"), rows, rows[["path"]].assign(width=9, height=9, jpeg_quality=9))
    p, (low, high) = 1 / (1 + np.exp(-rows["logit_fake"] / fitted["temperature"])), fitted["band"]
    photos, rates = rows["label"] == "RealPhotos", fitted["rates"][-1]
    expected = [(p[photos] >= high).mean(), (p[~photos] < low).mean()]
    assert [rates["false_alarms"], rates["misses"]] == pytest.approx(expected)


def test_where_classes_lie_apart_the_band_holds_the_threshold():
    logits = np.r_[np.linspace(-3, -2, 40), np.linspace(2, 3, 40)]
    fitted = decide.fit(SimpleNamespace(stage="stage1"), stage1_table(logits, ["RealPhotos"] * 40 + ["ProGAN"] * 40))
    assert fitted["band"][0] <= fitted["threshold"] <= fitted["band"][1]


def test_rates_are_of_all_judgements_and_evidence_counts_an_image_once(noisy):
    rows = pd.concat([noisy, noisy.assign(degradation="jpeg", level=75.0)], ignore_index=True)
    rows, stage = rows.assign(source=rows["label"], draw=0), SimpleNamespace(stage="stage1")
    fitted = decide.fit(stage, rows, noisy[["path"]].assign(width=9, height=9, jpeg_quality=9))
    assert fitted["rates"][-1]["photos"] == 100 >= fitted["likelihood"]["photos"]
    assert fitted["validation"] == decide.fit(stage, rows)["validation"]  # the same rows are drawn again


def test_calibration_error_counts_what_is_wholly_sure():
    assert calibration_error(np.ones(4), np.array([True, True, True, False])) == 0.25
