"""Unknown generators: planted cases, and answers counted pair by pair or cut by cut."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from score_tables import CLASSES, stage2_table
from sklearn.metrics import roc_auc_score

from dfd.evaluate import metrics, scores
from dfd.inference import decide, openset
from dfd.inference.openset import FeatureBank, Gaussians


def clusters(rng, images=200, size=1280, classes=4, apart=0.5):
    """Few images of many features: correlated noise about one mean per class."""
    means = np.random.default_rng(7).normal(0, apart, (classes, size))
    labels = np.arange(images) % classes
    mixing = np.random.default_rng(8).normal(0, 1, (40, size))
    noise = rng.normal(0, 1, (images, 40)) @ mixing / 4 + rng.normal(0, 0.3, (images, size))
    return means[labels] + noise, labels


def test_energy_and_confidence_of_known_logits():
    logits = np.log([[1.0, 2.0, 5.0], [1.0, 1.0, 2.0]])
    assert openset.energy(logits).tolist() == pytest.approx([-np.log(8), -np.log(4)])
    assert openset.energy(2 * logits, 2.0).tolist() == pytest.approx([-np.log(8), -np.log(4)])
    assert openset.confidence(logits).tolist() == pytest.approx([-0.625, -0.5])
    assert openset.confidence(2 * logits, 2.0).tolist() == pytest.approx([-0.625, -0.5])
    assert np.isfinite(openset.energy([[800.0, -800.0]])).all()


def test_distance_finds_a_far_cluster_among_many_features():
    rng = np.random.default_rng(0)
    train, labels = clusters(rng)
    near, _ = clusters(rng)
    gaussians = Gaussians.fit(train, labels)
    assert gaussians.components.shape == (64, 1280) and gaussians.precision.shape == (64, 64)
    within, shift = rng.normal(0, 15, 40) @ gaussians.components[:40], rng.normal(0, 0.5, 1280)
    beyond = shift - shift @ gaussians.components.T @ gaussians.components
    for measure, seen, unseen in (("distance", within, beyond), ("outside", beyond, within)):
        known, far, same = (getattr(gaussians, measure)(near + by) for by in (0, seen, unseen))
        assert auroc(known, far) > 0.95
        assert same == pytest.approx(known)
    again, _ = clusters(rng)
    assert auroc(gaussians.distance(near), gaussians.distance(again)) == pytest.approx(0.5, abs=0.1)


def test_distance_is_to_the_nearest_mean_in_units_of_the_spread():
    rng = np.random.default_rng(1)
    labels = np.repeat(["a", "b"], 20000)
    spread = np.array([[2.0, 0.0, 0.0], [1.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    means = {"a": np.array([0.0, 0.0, 0.0]), "b": np.array([10.0, 0.0, 0.0])}
    train = np.stack([means[one] for one in labels]) + rng.normal(0, 1, (40000, 3)) @ spread.T
    points = rng.normal(0, 10, (50, 3))
    inverse = np.linalg.inv(spread @ spread.T)
    expected = [min(np.sqrt((x - m) @ inverse @ (x - m)) for m in means.values()) for x in points]
    assert Gaussians.fit(train, labels).distance(points) == pytest.approx(expected, rel=0.05)


def test_distance_keeps_to_the_first_components():
    rng = np.random.default_rng(2)
    train, labels = rng.normal(0, [5, 4, 3, 0.1, 0.1], (300, 5)), np.arange(300) % 2
    gaussians = Gaussians.fit(train, labels, dimensions=3)
    points = np.array([[50.0, 0, 0, 0, 0], [0, 0, 0, 50.0, 0]])
    seen = gaussians.distance(points)
    assert seen[0] == pytest.approx(10, rel=0.1) and seen[1] < 1.5
    assert gaussians.outside(points) == pytest.approx([0, 50], abs=0.5)
    assert len(Gaussians.fit(train[:6], labels[:6]).components) == 4  # 6 images less 2 classes


def test_features_that_never_change_are_left_out():
    train, labels = clusters(np.random.default_rng(3), images=80, size=6)
    dead = np.c_[train, np.full((80, 2), 3.0)]
    assert len(Gaussians.fit(dead, labels).components) == 6
    assert Gaussians.fit(dead, labels).distance(dead) == pytest.approx(Gaussians.fit(train, labels).distance(train))


def test_gaussians_repeat():
    train, labels = clusters(np.random.default_rng(4), size=100)
    assert np.array_equal(*(Gaussians.fit(train, labels).distance(train) for _ in range(2)))


@pytest.mark.parametrize(
    "features, labels, reason",
    [
        (np.full((4, 2), np.nan), [0, 0, 1, 1], "finite"),
        (np.zeros(4), [0, 0, 1, 1], "finite"),
        (np.eye(4), [0, 1, 2, 3], "nothing to fit on"),
        (np.eye(4), [0, 0, 1], "nothing to fit on"),
        (np.zeros((0, 3)), [], "nothing to fit on"),
        (np.array([[0.1, 7.0]] * 3 + [[0.7, 9.0]] * 3), [0, 0, 0, 1, 1, 1], "spread is unknown"),
    ],
)
def test_gaussians_refuse_what_they_cannot_be_fitted_on(features, labels, reason):
    with pytest.raises(ValueError, match=reason):
        Gaussians.fit(features, labels)


def test_distance_refuses_other_features():
    gaussians = Gaussians.fit(*clusters(np.random.default_rng(5), size=10))
    with pytest.raises(ValueError, match="fitted on 10 features, got 9"):
        gaussians.distance(np.zeros((2, 9)))
    with pytest.raises(ValueError, match="finite"):
        gaussians.distance(np.full((2, 10), np.inf))
    assert gaussians.distance(np.zeros((0, 10))).shape == (0,)


def test_neighbours_are_found_by_the_cosine_of_their_features():
    rng = np.random.default_rng(0)
    train, points = rng.normal(1, 1, (40, 6)), rng.normal(1, 1, (9, 6))
    cosines = [[a @ b / np.sqrt(a @ a * (b @ b)) for b in train] for a in points]
    for k in (1, 10, 100):
        expected = [1 - sorted(row, reverse=True)[min(k, 40) - 1] for row in cosines]
        found = FeatureBank.fit(train, k).distance(5 * points)
        assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert FeatureBank.fit(train, 1).distance(train).max() < 1e-6


def test_neighbours_find_a_cluster_that_training_did_not_have():
    features, labels = clusters(np.random.default_rng(1))
    near = FeatureBank.fit(features[labels != 3][:100])
    known, strange = near.distance(features[labels != 3][100:]), near.distance(features[labels == 3])
    assert auroc(known, strange) > 0.85


def test_neighbours_refuse_what_they_cannot_compare():
    with pytest.raises(ValueError, match="0 images"):
        FeatureBank.fit(np.zeros((0, 4)))
    with pytest.raises(ValueError, match="k = 0"):
        FeatureBank.fit(np.ones((3, 4)), 0)
    with pytest.raises(ValueError, match="fitted on 4 features, got 5"):
        FeatureBank.fit(np.ones((3, 4))).distance(np.ones((1, 5)))
    with pytest.raises(ValueError, match="finite"):
        FeatureBank.fit(np.ones((3, 4))).distance(np.full((1, 4), np.nan))
    dark = FeatureBank.fit(np.ones((3, 4))).distance(np.zeros((1, 4)))
    assert dark.tolist() == [1.0]  # no direction: as far from all


def test_scores_of_a_table_are_those_of_its_columns():
    rows = stage2_table().iloc[::-1]
    found = openset.unknown_scores(rows, 2.0)
    logits = rows[[f"logit_{name}" for name in CLASSES]].to_numpy()
    assert list(found) == list(openset.SCORES) == ["ood_score", "energy", "confidence", "distance", "outside"]
    assert found["energy"].tolist() == pytest.approx((-np.log(np.exp(logits / 2).sum(1))).tolist())
    assert found["confidence"].tolist() == pytest.approx((-softmax(logits / 2, axis=1).max(1)).tolist())
    assert found[list(openset.MEASURED)].equals(rows[list(openset.MEASURED)])
    without = rows.drop(columns="outside")
    assert openset.unknown_scores(without, 2.0, ["energy"]).equals(found[["energy"]])
    with pytest.raises(ValueError, match="no column outside"):
        openset.unknown_scores(without, 2.0)
    with pytest.raises(ValueError, match="no such score: entropy"):
        openset.unknown_scores(rows, 2.0, ["energy", "entropy"])


@pytest.mark.parametrize("accept", [0.07, 0.29, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("digits", [0, 1, 8])
def test_threshold_is_the_lowest_that_accepts_enough(accept, digits):
    """Rounded scores make ties; of 100 images 0.29 is a whole number."""
    known = np.random.default_rng(0).normal(0, 1, 100).round(digits)
    enough = [cut for cut in known if (known <= cut).sum() >= round(accept * 100)]
    assert decide.fit_ood_threshold(known, accept) == min(enough)


def test_threshold_calls_few_of_the_known_unknown():
    known = np.random.default_rng(1).normal(0, 1, 137)
    assert 0.03 < (known > decide.fit_ood_threshold(known)).mean() <= 0.05


@pytest.mark.parametrize("known, accept", [([], 0.95), ([0.0, np.nan], 0.95), ([0.0, 1.0], 0.0), ([0.0, 1.0], 95)])
def test_threshold_refuses_what_it_cannot_be_fitted_on(known, accept):
    with pytest.raises(ValueError, match="needs finite scores and a share"):
        decide.fit_ood_threshold(known, accept)


def area(known, correct, unknown):
    """Trapezoids under the open-set classification curve, threshold by threshold."""
    cuts = [-np.inf, *np.unique(np.r_[known, unknown])]
    false = [np.mean([u <= cut for u in unknown]) for cut in cuts]
    right = [np.mean([k <= cut and c for k, c in zip(known, correct, strict=True)]) for cut in cuts]
    return np.trapezoid(right, false)


def auroc(known, unknown):
    return roc_auc_score(np.repeat([0, 1], [len(known), len(unknown)]), np.concatenate([known, unknown]))


def oscr(known, correct, unknown):
    is_unknown = np.repeat([False, True], [len(known), len(unknown)])
    right, score = np.concatenate([correct, np.zeros(len(unknown))]).astype(bool), np.concatenate([known, unknown])
    return metrics.oscr(np.ones((1, len(score))), is_unknown, right, score)[0]


@pytest.mark.parametrize("levels", [2, 5, 30, 10**6])
def test_oscr_is_the_area_under_its_curve(levels):
    rng = np.random.default_rng(levels)
    for known, unknown in [(50, 40), (7, 60), (1, 1)]:
        known, unknown = rng.integers(0, levels, known), rng.integers(levels // 4, levels + 2, unknown)
        correct = rng.random(len(known)) < np.where(known < levels / 2, 0.9, 0.4)
        assert oscr(known, correct, unknown) == pytest.approx(area(known, correct, unknown))


def test_oscr_of_the_extremes():
    known, correct = np.array([0.1, 0.2, 0.3, 0.4]), np.array([True, True, True, False])
    assert oscr(known, correct, [0.5, 0.6]) == 0.75
    assert oscr(known, correct, [0.0, 0.05]) == 0
    assert oscr(known, np.zeros(4, bool), [0.5]) == 0
    assert np.isnan(oscr([], [], [0.5])) and np.isnan(oscr(known, ~correct, []))


def test_summary_has_each_score_with_its_interval():
    known, unknown = stage2_table(), stage2_table(seed=1, images=100, labels=["GigaGAN"])
    found = scores.openset_summary(known, unknown, 1.5, resamples=20).set_index("score")
    assert list(found.index) == list(openset.SCORES)
    assert list(found) == [f"{name}{end}" for name in ("auroc", "oscr") for end in ("", "_low", "_high")]
    right = (known["prediction"] == known["label"]).to_numpy()
    for name in openset.SCORES:
        sides = [openset.unknown_scores(rows, 1.5)[name].to_numpy() for rows in (known, unknown)]
        row = found.loc[name]
        assert row["auroc"] == pytest.approx(np.mean(sides[1][None] > sides[0][:, None]))
        assert row["oscr"] == pytest.approx(area(sides[0], right, sides[1]))
        assert all(row[f"{rate}_low"] < row[rate] < row[f"{rate}_high"] for rate in ("auroc", "oscr"))
    assert scores.openset_summary(known, unknown, 1.5, resamples=20).set_index("score").equals(found)


def test_summary_draws_groups_not_images():
    known, unknown = stage2_table(), stage2_table(seed=1, labels=["GigaGAN"])
    copies = [pd.concat([rows] * 4) for rows in (known, unknown)]
    alone, together = (
        scores.openset_summary(*pair, 1.0, names=["distance"], resamples=20) for pair in ((known, unknown), copies)
    )
    assert together.equals(alone)  # four copies of an image in its group say no more than one
    lone = scores.openset_summary(
        known.assign(group="one"), unknown.assign(group="one"), 1.0, names=["distance"], resamples=20
    )
    assert lone[["auroc_low", "oscr_high"]].isna().all(axis=None) and lone["auroc"].equals(alone["auroc"])


def test_summary_refuses_what_it_cannot_compare():
    known, unknown = stage2_table(), stage2_table(labels=["GigaGAN"])
    for pair in ((known[:0], unknown), (known, unknown[:0])):
        with pytest.raises(ValueError, match="both are needed"):
            scores.openset_summary(*pair, 1.0)
    with pytest.raises(ValueError, match="has these classes: BigGAN"):
        scores.openset_summary(known, stage2_table(labels=["GigaGAN", "BigGAN"]), 1.0)
