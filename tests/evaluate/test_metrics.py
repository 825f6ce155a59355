"""Metrics and score tables: expected values are computed another way."""

import itertools
import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from score_tables import noisy_table, planted, stage1_table
from sklearn import metrics as skm

from dfd.core.io import read_json
from dfd.evaluate import metrics, scores
from dfd.inference import decide, likelihood


@pytest.fixture
def noisy():
    """300 images of 60 groups, photos about -1, fakes about +1."""
    return noisy_table()


def test_auc_is_the_share_of_pairs_in_the_right_order(noisy):
    fake = noisy["label"] != "RealPhotos"
    pairs = itertools.product(noisy.loc[fake, "logit_fake"], noisy.loc[~fake, "logit_fake"])
    expected = np.mean([a > b for a, b in pairs])
    assert metrics.evaluate(noisy, 1.0)["auc"]["value"] == pytest.approx(expected, abs=1e-9)


def test_accuracies_are_counted_at_their_own_cut(noisy):
    moved = noisy.assign(prediction=np.where(noisy["logit_fake"] >= 1.0, "fake", "real"))
    fake = moved["label"] != "RealPhotos"
    found = {name: value["value"] for name, value in metrics.evaluate(moved, 1.0).items()}
    assert found["accuracy"] == pytest.approx(((moved["logit_fake"] > 0) == fake).mean())
    assert found["accuracy_at_threshold"] == pytest.approx(((moved["logit_fake"] >= 1) == fake).mean())
    assert found["fake_accuracy"] == pytest.approx((moved.loc[fake, "logit_fake"] >= 1).mean())
    assert found["real_accuracy"] == pytest.approx((moved.loc[~fake, "logit_fake"] < 1).mean())


def tpr_at_fpr(truth, score, fpr):
    return metrics.tpr_at_fpr(np.ones((1, len(truth))), truth.astype(bool), score, fpr)[0]


def test_tpr_at_fpr_accuses_no_more_photos_than_allowed():
    photos, fakes = np.arange(100.0), np.array([98.5, 50, 99.5, 120])
    truth, score = np.r_[np.zeros(100), np.ones(4)], np.r_[photos, fakes]
    assert tpr_at_fpr(truth, score, 0.01) == pytest.approx(3 / 4)
    assert tpr_at_fpr(truth, score, 0.0) == pytest.approx(2 / 4)


def test_labels_may_be_0_and_1_as_scikit_learns_are():
    rng = np.random.default_rng(0)
    labels, score, ones = rng.integers(0, 2, 300), rng.normal(size=300), np.ones((1, 300))
    score += labels
    expected = skm.average_precision_score(labels, score)
    assert metrics.average_precision(ones, labels, score)[0] == pytest.approx(expected)
    assert metrics.tpr_at_fpr(ones, labels, score, 0.1)[0] == tpr_at_fpr(labels, score, 0.1) > 0.1
    groups, odds = np.arange(300) % 30, np.zeros(1)
    assert likelihood.cllr(ones, score, labels) == likelihood.cllr(ones, score, labels > 0)
    assert likelihood.cross_entropy(score, labels, odds) == likelihood.cross_entropy(score, labels > 0, odds)
    found = likelihood.fit(score, labels, groups, np.arange(300))
    assert found == likelihood.fit(score, labels > 0, groups, np.arange(300)) and found["fakes"] == labels.sum()


def test_the_numbers_are_those_of_their_names(noisy):
    found, fake = metrics.evaluate(noisy, 2.5), noisy["label"] != "RealPhotos"
    for name, fpr in (("tpr_at_fpr_1", 0.01), ("tpr_at_fpr_5", 0.05)):
        assert found[name]["value"] == tpr_at_fpr(fake.to_numpy(), noisy["logit_fake"].to_numpy(), fpr)
    assert found["tpr_at_fpr_1"]["value"] < found["tpr_at_fpr_5"]["value"]
    error = metrics.calibration_error(np.ones((1, len(noisy))), *decide.confidences(noisy, 2.5))[0]
    of_test = metrics.measure(pd.concat([noisy, noisy.assign(split="val")]), 2.5)["test"]["ece"]["value"]
    assert found["ece"]["value"] == of_test == pytest.approx(error) != found["ece_before"]["value"]


def test_undefined_metric_is_none_not_nan():
    rows = stage1_table([1.0, 2.0], ["ProGAN", "ProGAN"])
    assert metrics.evaluate(rows, 1.0)["auc"] == {"value": None, "low": None, "high": None}


def test_tpr_at_fpr_counts_tied_scores_as_they_are_called():
    """Three steps of one photo and one fake each lie on a line; the point in its middle counts too."""
    truth, score = np.array([0, 1, 0, 1, 0, 1, 0]), np.array([3.0, 3, 2, 2, 1, 1, 0])
    assert tpr_at_fpr(truth, score, 0.5) == pytest.approx(2 / 3)


def test_calibration_lowers_the_error_of_an_over_confident_model():
    val, test = planted(4.0, seed=1), planted(4.0, 3000, seed=2)
    temperature = decide.fit_temperature(val)
    found = metrics.evaluate(test, temperature)
    assert temperature == pytest.approx(4, rel=0.1)
    assert found["ece_before"]["low"] > 0.1 and found["ece"]["high"] < 0.04
    p = 1 / (1 + np.exp(-test["logit_fake"]))
    right = (p > 0.5) == (test["label"] != "RealPhotos")
    gaps = pd.Series(right - np.maximum(p, 1 - p)).groupby(np.floor(15 * np.maximum(p, 1 - p)))
    before = gaps.sum().abs().sum() / len(p)
    assert found["ece_before"]["value"] == pytest.approx(before)


def test_by_generator_compares_each_with_all_photos(noisy):
    found = metrics.by_generator(noisy)
    assert set(found) == {"ProGAN", "BigGAN"}
    pair = noisy[noisy["label"] != "BigGAN"]
    expected = metrics.evaluate(pair, 1.0)["auc"]["value"]
    assert found["ProGAN"]["auc"]["value"] == pytest.approx(expected)


def test_another_seed_draws_other_resamples_of_the_same_values(noisy):
    def parts(seed):
        return metrics.by_generator(noisy, seed)["ProGAN"]["auc"], metrics.evaluate(noisy, 1.0, seed)["auc"]

    for first, again, other in zip(parts(0), parts(0), parts(1), strict=True):
        assert first == again and first["value"] == other["value"]
        assert first["low"] != other["low"] and first["low"] == pytest.approx(other["low"], abs=0.02)


def test_by_source_counts_each_source_by_itself_and_ranks_its_fakes_against_all_photos(noisy):
    sources = noisy["label"].str[:3] + (noisy["group"] % 2).astype(str)
    table = metrics.by_source(noisy.assign(source=sources), seed=0).set_index("source")
    photos = noisy["label"] == "RealPhotos"
    assert set(table.index) == set(sources) and table["images"].sum() == len(noisy)
    for source, row in table.iterrows():
        its = sources == source
        assert row["called_fake"] == pytest.approx((noisy["prediction"][its] == "fake").mean())
        assert row["called_fake_low"] <= row["called_fake"] <= row["called_fake_high"]
        if row["label"] == "RealPhotos":
            assert np.isnan(row["auc"])
        else:
            both = its | photos
            assert row["auc"] == pytest.approx(skm.roc_auc_score(~photos[both], noisy["logit_fake"][both]))


def test_accuracy_of_a_generator_weighs_photos_and_its_fakes_alike(noisy):
    called = noisy["prediction"] == "fake"
    fakes, photos = called[noisy["label"] == "BigGAN"].head(7), called[noisy["label"] == "RealPhotos"]
    found = metrics.by_generator(noisy.loc[[*fakes.index, *photos.index]])["BigGAN"]
    assert found["accuracy"]["value"] == pytest.approx((fakes.mean() + (~photos).mean()) / 2)
    assert found["fake_accuracy"]["value"] == pytest.approx(fakes.mean())


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


def test_the_wrong_ones_are_told_whether_or_not_they_are_called_unknown():
    table = stage2_table()
    found = scores.certainty(table, 1.0)
    assert table["path"][found["wrong"]].sort_values().tolist() == ["A/1.png", "C/5.png"]
    assert scores.certainty(table.assign(prediction="unknown"), 1.0).equals(found)
    assert not scores.certainty(stage1_table([-1.0, 1.0], ["RealPhotos", "ProGAN"]), 1.0)["wrong"].any()


def test_an_interval_without_width_is_not_shown(noisy):
    worse = noisy.assign(logit_fake=noisy["logit_fake"] * 0.0)
    found = pd.DataFrame([metrics.flatten(metrics.evaluate(rows, 1.0)) for rows in (noisy, worse)])
    assert found["auc"][0] > 0.7 and found["auc"][1] == 0.5 and " [0." in scores.readable(found, ["auc"])["auc"][0]
    assert scores.readable(found, ["auc"])["auc"][1] == "0.500"  # not [0.500, 0.500]


def test_a_split_alone_is_measured(noisy):
    found = metrics.measure(noisy.assign(split="test"), 1.0)
    assert [*found] == ["test"] and found["test"]["auc"]["value"] > 0.7


def test_measure_reads_clean_rows_of_each_split(noisy):
    other = noisy.assign(split="val", logit_fake=-noisy["logit_fake"])
    swept = noisy.assign(degradation="jpeg", level=50.0, logit_fake=0.0)
    found = metrics.measure(pd.concat([noisy, other, swept]), 1.0)
    assert found["test"]["auc"]["value"] == pytest.approx(1 - found["val"]["auc"]["value"])
    assert set(found["test"]["by_generator"]) == {"ProGAN", "BigGAN"}


def test_report_text_counts_images_and_groups(noisy):
    others = [noisy.assign(split="val"), noisy.assign(degradation="jpeg", level=50.0)]
    text = scores.classification_text({"stage 1": pd.concat([noisy, *others])}, "test")
    assert "stage 1, 300 images of 60 groups" in text and "macro avg" in text


def test_metrics_sections_are_merged(tmp_path):
    metrics.save_metrics(tmp_path, "stage1", {"test": {"auc": {"value": 0.9, "low": 0.8, "high": 1.0}}})
    metrics.save_metrics(tmp_path, "notes", ["a"])
    content = read_json(tmp_path / "metrics.json")
    assert content["stage1"]["test"]["auc"]["value"] == 0.9 and content["notes"] == ["a"]


# Weights and the bootstrap


def test_weights_count_what_a_resample_holds():
    rng = np.random.default_rng(0)
    positive, score = rng.random(60) < 0.4, rng.integers(0, 8, 60).astype(float)  # with ties
    labels, predicted = rng.choice(["a", "b", "c"], 60), rng.choice(["a", "b", "d"], 60)
    weights = rng.integers(0, 3, (5, 60)).astype(float)
    for i, row in enumerate(weights):
        rows = np.repeat(np.arange(60), row.astype(int))
        expected = {
            metrics.weighted_auc: skm.roc_auc_score(positive[rows], score[rows]),
            metrics.average_precision: skm.average_precision_score(positive[rows], score[rows]),
        }
        for metric, value in expected.items():
            assert metric(weights, positive, score)[i] == pytest.approx(value)
        recall = skm.recall_score(labels[rows], predicted[rows], average=None, labels=["a", "b", "c"]).mean()
        assert metrics.mean_recall(weights, labels, labels == predicted)[i] == pytest.approx(recall)
        f1 = skm.f1_score(labels[rows], predicted[rows], average="macro")
        assert metrics.macro_f1(weights, labels, predicted)[i] == pytest.approx(f1)
        false, true, _ = skm.roc_curve(positive[rows], score[rows], drop_intermediate=False)
        assert metrics.tpr_at_fpr(weights, positive, score, 0.3)[i] == pytest.approx(true[false <= 0.3].max())


@np.errstate(invalid="ignore")  # as `bootstrap` has it
def test_what_a_resample_lacks_is_undefined_or_left_out():
    weights, labels = np.array([[1, 1, 1, 1], [1, 1, 0, 0.0]]), np.array(["a", "a", "b", "b"])
    assert metrics.mean_recall(weights, labels, np.array([1, 0, 1, 1], bool)).tolist() == [0.75, 0.5]
    for metric in (metrics.weighted_auc, lambda *given: metrics.tpr_at_fpr(*given, 0.5)):
        assert np.isnan(metric(weights, labels == "a", np.arange(4.0))).tolist() == [False, True]
    assert np.isnan(metrics.share(weights, labels == "a", labels == "b")).tolist() == [False, True]


def interval(groups, x):
    return metrics.bootstrap_all(groups, {"mean": partial(metrics.share, right=np.asarray(x))})["mean"]


def test_interval_widens_when_images_share_groups():
    rng = np.random.default_rng(1)
    right = np.repeat(rng.random(20) < 0.7, 10)
    rows = pd.DataFrame({"right": right, "group": np.repeat(range(20), 10)})
    grouped, alone = (interval(group, rows["right"]) for group in (rows["group"], range(200)))
    assert grouped["value"] == alone["value"] == right.mean()
    assert grouped["low"] < grouped["value"] < grouped["high"]
    assert grouped["high"] - grouped["low"] > 2 * (alone["high"] - alone["low"])
    standard_error = np.sqrt(right.mean() * (1 - right.mean()) / 20)
    assert grouped["high"] - grouped["low"] == pytest.approx(2 * 1.96 * standard_error, rel=0.2)


@pytest.mark.parametrize(("photos", "fakes"), [(7, 40), (40, 7), (8, 8)])
def test_a_class_of_few_groups_has_no_interval(photos, fakes):
    rng, labels = np.random.default_rng(0), np.repeat(["RealPhotos", "ProGAN"], [5 * photos, 5 * fakes])
    logits = rng.normal(np.where(labels == "RealPhotos", -1, 1), 1.5)
    rows = stage1_table(logits, labels, np.arange(len(labels)) // 5, log10_lr=logits / 3)
    bare = {name for name, numbers in metrics.evaluate(rows, 1.0).items() if numbers["low"] is None}
    of_one = {"real_accuracy": photos, "fake_accuracy": fakes, "photos_accused": photos, "fakes_passed": fakes}
    of_both = {"auc", "ap", "tpr_at_fpr_1", "tpr_at_fpr_5", "balanced_accuracy", "cllr"}
    few = {name for name, groups in of_one.items() if groups < 8}
    assert bare == few | (of_both if few else set())


def test_intervals_are_over_sources_where_these_are_known(noisy):
    sources = noisy["label"] + (noisy.index // 3 % 10).astype(str)
    rows = noisy.assign(source=sources)
    for of in (partial(metrics.evaluate, temperature=1.0), metrics.by_generator):
        assert of(rows) == of(noisy.assign(group=sources)) != of(noisy)
    few = metrics.evaluate(noisy.assign(source=noisy["label"] + (noisy.index // 3 % 7).astype(str)), 1.0)
    assert few["auc"]["value"] == metrics.evaluate(noisy, 1.0)["auc"]["value"] and few["auc"]["low"] is None
    one = metrics.evaluate(rows.assign(source=sources.where(noisy["label"] != "RealPhotos", "camera")), 1.0)
    for name in ("real_accuracy", "photos_accused"):  # no draw changes them, and one source says nothing of others
        assert 0 < one[name]["value"] < 1 and one[name]["low"] is one[name]["high"] is None


def test_a_source_by_itself_has_intervals_over_its_groups(noisy):
    sources = noisy["label"] + (noisy.index // 3 % 2).astype(str)
    alone = metrics.by_source(noisy.assign(source=sources)).set_index("source")
    assert alone["called_fake_low"].notna().all() and len(alone) == 6
    photos, own = noisy["label"] == "RealPhotos", sources == "BigGAN1"
    expected = metrics.evaluate(noisy[own | photos], 1.0, only={"auc": "auc"})["auc"]
    assert alone.loc["BigGAN1", ["auc", "auc_low", "auc_high"]].tolist() == list(expected.values())


def test_the_three_answers_are_measured_apart_from_the_threshold():
    answers = ["fake", "unsure", "real", "real", "fake", "real", "unsure", "unsure"]
    rows = stage1_table(np.ones(8), ["RealPhotos"] * 4 + ["ProGAN"] * 4, answer=answers)
    names = ("unsure", "photos_accused", "fakes_passed")
    assert [metrics.evaluate(rows, 1.0)[name]["value"] for name in names] == [3 / 8, 1 / 4, 1 / 4]
    old = metrics.evaluate(rows.drop(columns="answer"), 1.0)
    assert [old[name]["value"] for name in names] == [None] * 3 and old["real_accuracy"]["value"] == 0


def test_a_fake_that_gets_no_name_is_counted_as_unknown():
    rows = pd.DataFrame({"label": list("AABB"), "group": range(4), "logit_A": [1.0, 1, 0, 0], "logit_B": 0.5})
    named = metrics.evaluate(rows.assign(prediction=["A", "unknown", "B", "B"]), 1.0)
    assert (named["unknown"]["value"], named["accuracy"]["value"]) == (0.25, 1.0)


def test_few_groups_have_no_interval():
    assert interval(["one"] * 4, [True, False, True, True]) == {"value": 0.75, "low": None, "high": None}
    right = np.arange(24) % 4 > 0
    assert interval(np.arange(24) % 7, right) == {"value": 0.75, "low": None, "high": None}
    assert interval(np.arange(24) % 8, right)["low"] < 0.75


@pytest.mark.parametrize(("right", "low", "high"), [(False, 0, 0.3085), (True, 0.6915, 1)])
def test_a_share_that_no_draw_changes_has_the_binomial_interval_over_the_groups_it_is_of(right, low, high):
    """Ten of the twenty groups hold such an image: 1 - 0.025 ** (1 / 10) is 0.3085."""
    among = np.arange(40) < 20
    share = partial(metrics.share, right=np.full(40, right), among=among)
    found = metrics.bootstrap_all(np.arange(40) // 2, {"share": share, "gain": lambda w: share(w) - share(w)})
    assert list(found["share"].values()) == pytest.approx([float(right), low, high], abs=1e-4)
    assert found["gain"] == {"value": 0, "low": 0, "high": 0}
    few = partial(metrics.share, right=np.full(40, right), among=np.arange(40) < 14)  # of seven groups
    assert metrics.bootstrap_all(np.arange(40) // 2, {"few": few})["few"]["low"] is None


def test_many_numbers_at_once_have_the_bca_interval_of_their_groups_means():
    """Efron 1987 by hand, over the means of equal groups; they are skewed, so percentiles lie elsewhere."""
    x = np.random.default_rng(0).exponential(size=(3, 60)) ** 2
    means, low, high = metrics.bootstrap(np.arange(60) // 2, lambda weights: x @ weights.T / weights.sum(1), 0, 4000)
    assert means == pytest.approx(x.mean(1))
    for i, of_groups in enumerate(x.reshape(3, 30, 2).mean(2)):
        draws = of_groups[np.random.default_rng(1).integers(0, 30, (20000, 30))].mean(1)
        pull = of_groups - of_groups.mean()  # of each group, as leaving it out shows it
        bias = norm.ppf((draws < of_groups.mean()).mean())
        z, acceleration = bias + norm.ppf([0.025, 0.975]), (pull**3).sum() / 6 / (pull**2).sum() ** 1.5
        expected = np.quantile(draws, norm.cdf(bias + z / (1 - acceleration * z)))
        assert (low[i], high[i]) == pytest.approx(expected, rel=0.02)
        assert np.abs(expected / np.quantile(draws, [0.025, 0.975]) - 1).max() > 0.025


def test_a_draw_takes_whole_groups():
    drawn = []
    metrics.bootstrap([0, 0, 0, *range(1, 8)], lambda weights: drawn.append(weights) or weights.sum(1), resamples=50)
    weights = np.concatenate(drawn)
    assert (weights[:, :3] == weights[:, :1]).all() and len(np.unique(weights, axis=0)) > 5
    assert set(weights[:, [0, *range(3, 10)]].sum(1)) == {7, 8}  # draws of eight groups, and each left out in turn


def test_where_nearly_all_draws_lie_above_the_value_the_interval_does_not_shrink_to_it():
    """A statistic that resampling biases upwards, like the calibration error: its own value lies below its draws."""
    groups = np.arange(30)
    low, high = (float(x) for x in metrics.bootstrap(groups, lambda w: (w**2).mean(-1))[1:])
    draws = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), 4000)
    expected = np.percentile((draws**2).mean(-1), [2.5, 97.5])
    assert high == pytest.approx(expected[1], abs=0.15) and expected[0] > 1.3 and low == 1.0  # nor does it leave it out


def test_where_bca_is_undefined_percentiles_of_the_defined_draws_stand():
    x = np.array([*range(1, 9), np.nan])
    _, low, high = metrics.bootstrap(
        range(9), lambda w: np.stack([np.where(w[:, 8] > 0, np.nan, w @ np.nan_to_num(x)), w.sum(1) * 0 + 4])
    )
    assert np.isfinite([low, high]).all() and low[0] < high[0] and low[1] == high[1] == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("area", "photos", "fakes", "per_group", "alike"),
    [(0.8, 100, 100, 1, 0.0), (0.97, 60, 180, 1, 0.0), (0.99, 200, 200, 1, 0.0), (0.9, 75, 225, 4, 0.8)],
)
def test_intervals_of_a_known_auc_hold_it(area, photos, fakes, per_group, alike):
    """Binormal scores: fakes lie sqrt(2) * norm.ppf(AUC) above; images of one group share a part of their score."""
    held, count = 0, photos + fakes
    for seed in range(200):
        rng = np.random.default_rng(1000 + seed)
        group = np.arange(count) // per_group
        fake = np.arange(count) >= photos if per_group == 1 else np.arange(count) % per_group >= 1
        score = np.sqrt(1 - alike) * rng.normal(size=count) + np.sqrt(alike) * rng.normal(size=count)[group]
        score += np.sqrt(2) * norm.ppf(area) * fake
        _, low, high = metrics.bootstrap(
            group, lambda weights, fake=fake, score=score: metrics.weighted_auc(weights, fake, score), seed
        )
        held += low <= area <= high
    assert 0.9 <= held / 200 <= 0.98


def test_the_report_tells_precision_from_recall(noisy):
    called, fake = noisy["logit_fake"] > 1, noisy["label"] != "RealPhotos"
    text = scores.classification_text({"stage1": noisy.assign(prediction=np.where(called, "fake", "real"))}, "test")
    precision, recall, _, images = re.search(r"^ +fake +(.*)$", text, re.M)[1].split()
    assert (precision, recall, images) == (f"{fake[called].mean():.3f}", f"{called[fake].mean():.3f}", "200")


def test_each_number_is_of_its_own_column(noisy):
    logit, fake = noisy["logit_fake"], noisy["label"] != "RealPhotos"
    rows = noisy.assign(log10_lr=logit / 3, prediction=np.where(logit >= 1, "fake", "real"))
    found = {name: three["value"] for name, three in metrics.evaluate(rows, 1.0).items()}
    assert found["ap"] == pytest.approx(skm.average_precision_score(fake, logit))
    assert found["balanced_accuracy"] == pytest.approx(skm.balanced_accuracy_score(fake, logit > 0))
    cost = np.log2(1 + 10 ** (np.where(fake, -1, 1) * rows["log10_lr"]))
    assert found["cllr"] == pytest.approx(cost.groupby(fake).mean().mean())


def test_intervals_do_not_depend_on_the_order_of_the_rows():
    """Sums of calibration errors differ in their last digit by it, and a draw that is as the value counted as above."""
    rng = np.random.default_rng(0)
    confidence, right, groups = np.full(40, 0.88), rng.random(40) < 0.7, np.arange(40) // 4
    intervals = set()
    for order in (np.arange(40), *(rng.permutation(40) for _ in range(20))):
        statistic = partial(metrics.calibration_error, confidence=confidence[order], right=right[order])
        intervals.add(tuple(metrics.bootstrap_all(groups[order], {"ece": statistic})["ece"].values()))
    assert len(intervals) == 1
