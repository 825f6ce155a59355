"""Sets of names: planted cases, and the promise kept over repetitions."""

import numpy as np
import pytest
from score_tables import CLASSES, stage2_table

from dfd.evaluate.scores import coverage
from dfd.inference import decide


def calibrated(rng, images, classes=5):
    """Probabilities, and classes that are drawn from them."""
    p = rng.dirichlet(np.full(classes, 0.5), images)
    true = (rng.random((images, 1)) > p.cumsum(1)[:, :-1]).sum(1)
    return p, true


@pytest.mark.parametrize("coverage", [0.8, 0.9])
@pytest.mark.parametrize("images", [19, 200])
def test_sets_cover_as_promised_over_repetitions(coverage, images):
    rng = np.random.default_rng(0)
    held, without_top = [], []
    for _ in range(200):
        quantile = decide.fit_conformal(*calibrated(rng, images), coverage, np.arange(images))
        p, true = calibrated(rng, 500)
        sets = decide.prediction_sets(p, quantile)
        held.append(sets[np.arange(500), true].mean())
        without_top.append((1 - p[np.arange(500), true] <= quantile).mean())
    assert np.mean(held) == pytest.approx(coverage, abs=0.02)
    assert coverage - 0.01 < np.mean(without_top) < coverage + 1 / images  # the bounds of the theory


def test_groups_keep_the_promise_for_a_new_group():
    """Half of the groups are hard and small; counting images alone would cover a new group too seldom."""
    rng = np.random.default_rng(1)
    covered = {True: [], False: []}
    for _ in range(300):
        hard = rng.random(41) < 0.5
        sizes = np.where(hard, 1, 20)
        group = np.repeat(np.arange(41), sizes)
        right = np.where(hard[group], rng.uniform(0, 0.5, len(group)), rng.uniform(0.5, 1, len(group)))
        p, fit = np.c_[right, 1 - right], group < 40
        for grouped, rates in covered.items():
            groups = group[fit] if grouped else np.arange(fit.sum())
            quantile = decide.fit_conformal(p[fit], np.zeros(fit.sum(), int), 0.8, groups)
            rates.append((1 - right[~fit] <= quantile).mean())
    assert np.mean(covered[True]) == pytest.approx(0.8, abs=0.05) and np.mean(covered[False]) < 0.6


def test_quantile_of_a_known_case():
    right = np.array([0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    p, true = np.c_[right, 1 - right], np.zeros(9, int)
    own = np.arange(9)  # every image is its own group
    assert decide.fit_conformal(p, true, 0.9, own) == pytest.approx(0.8)  # the ninth of nine: 0.9 of ten
    assert decide.fit_conformal(p, true, 0.5, own) == pytest.approx(0.4)
    assert decide.fit_conformal(p[:8], true[:8], 0.9, own[:8]) == 1
    assert decide.fit_conformal(p, true, 0.9, groups=own[::-1]) == decide.fit_conformal(p, true, 0.9, own)
    assert decide.fit_conformal(p, true, 0.9, groups=["one"] * 9) == 1
    pairs = ["a", "a", "b", "b", "c", "c", "d", "d", "d"]  # 0.2 each: half of it, or a third
    assert decide.fit_conformal(p, true, 0.6, groups=pairs) == pytest.approx(0.5)
    assert decide.fit_conformal(p, true, 0.65, groups=pairs) == pytest.approx(0.6)
    assert decide.prediction_sets(p, 1.0).all()


def test_sets_hold_the_probable_names_and_never_none():
    p = [[0.5, 0.3, 0.2], [0.4, 0.35, 0.25], [0.1, 0.1, 0.8]]
    assert decide.prediction_sets(p, 0.7).astype(int).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert decide.prediction_sets(p, 0.3).astype(int).tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]


def test_coverage_is_counted():
    scores = stage2_table(seed=1, push=0.5)
    found = coverage(scores, 0.7, 1.3)
    held, sizes = [], []
    for _, image in scores.iterrows():
        odds = {name: np.exp(image[f"logit_{name}"] / 1.3) for name in CLASSES}
        top = max(odds, key=odds.get)
        names = {name for name in CLASSES if odds[name] / sum(odds.values()) >= 0.3} | {top}
        held.append(image["label"] in names)
        sizes.append(len(names))
    expected = {"coverage": np.mean(held), "names": np.mean(sizes), "single": np.mean(np.array(sizes) == 1)}
    assert {name: three["value"] for name, three in found.items()} == pytest.approx(expected)
    assert all(three["low"] < three["value"] < three["high"] for three in found.values())
    assert found["coverage"]["high"] < coverage(stage2_table(), 0.7, 1.3)["coverage"]["low"]
    assert coverage(scores, 0.7, 1.3) == found != coverage(scores, 0.7, 1.3, seed=1)
