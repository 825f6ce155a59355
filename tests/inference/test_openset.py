"""Unknown generators: planted cases, and answers counted pair by pair."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from score_tables import CLASSES, stage2_table
from sklearn.metrics import roc_auc_score

from dfd.inference import decide
from dfd.inference.openset import FeatureBank, Subspace, fit_subspace


def clusters(rng, images=200, size=1280, classes=4, apart=0.5):
    """Few images of many features: correlated noise about one mean per class."""
    means = np.random.default_rng(7).normal(0, apart, (classes, size))
    labels = np.arange(images) % classes
    mixing = np.random.default_rng(8).normal(0, 1, (40, size))
    noise = rng.normal(0, 1, (images, 40)) @ mixing / 4 + rng.normal(0, 0.3, (images, size))
    return means[labels] + noise, labels


def test_neighbours_are_found_by_the_cosine_of_their_features():
    rng = np.random.default_rng(0)
    train, points = rng.normal(1, 1, (40, 6)), rng.normal(1, 1, (9, 6))
    cosines = [[a @ b / np.sqrt(a @ a * (b @ b)) for b in train] for a in points]
    for k in (1, 10, 100):
        expected = [1 - sorted(row, reverse=True)[min(k, 40) - 1] for row in cosines]
        found = FeatureBank(train, k).distance(5 * points)
        assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert FeatureBank(train, 1).distance(train).max() < 1e-6


def test_neighbours_find_a_cluster_that_training_did_not_have():
    features, labels = clusters(np.random.default_rng(1))
    near = FeatureBank(features[labels != 3][:100])
    known, strange = near.distance(features[labels != 3][100:]), near.distance(features[labels == 3])
    assert auroc(known, strange) > 0.85


def test_a_subspace_is_that_of_the_other_sources_which_weigh_alike():
    rng = np.random.default_rng(0)
    sizes = [100] * 4 + [5] * 4  # the small ones scatter twice as far
    features = np.concatenate([rng.normal(0, 1 + (n < 100), (n, 2, 40)) for n in sizes]).astype(np.float32)
    images = pd.DataFrame({"label": "x", "source": np.repeat([*"abcdefgh"], sizes), "path": np.arange(420).astype(str)})
    fitted = fit_subspace(features, images, accept=0.9)
    within = {}
    for source in "abcdefgh":
        own = images["source"].eq(source).to_numpy()
        space = Subspace.fit(features[~own].reshape(-1, 40))
        within[source] = (space.distance(features[own].reshape(-1, 40)) <= fitted["ood_threshold"]).mean()
    assert 0.9 <= np.mean([*within.values()]) < 0.93  # of 40 and 800 rows that weigh the same
    assert min(within[source] for source in "abcd") > 0.98 > max(within[source] for source in "efgh")
    assert np.average([*within.values()], weights=sizes) > 0.97
    limits = [fit_subspace(features, images, *accept)["ood_threshold"] for accept in ((0.97,), (), (0.98,), (0.99,))]
    assert limits[0] < limits[1] == limits[2] < limits[3]  # one image in fifty of known sources is unlike
    mean, *basis = fitted["feature_bank"].float().numpy()
    places = (features[:, 0] - mean) @ np.array(basis).T
    assert np.allclose(fitted["neighbours"].float(), places, atol=0.02)
    assert [path for _, _, path in fitted["neighbour_names"]] == images["path"].tolist()


def test_of_many_sources_parts_are_left_out_and_their_own_is_always_among_these(monkeypatch):
    rng, fits, fit = np.random.default_rng(0), [], Subspace.fit
    features = rng.normal(0, 1, (150, 1, 20)).astype(np.float32)
    images = pd.DataFrame({"label": "x", "source": [f"s{i // 2}" for i in range(150)], "path": "p"})
    monkeypatch.setattr(Subspace, "fit", lambda rows: fits.append({*map(tuple, rows)}) or fit(rows))
    assert 4 < fit_subspace(features, images)["ood_threshold"] < 6 and len(fits) == 64 + 1
    left_out = [{i for i in range(150) if tuple(features[i, 0]) not in rows} for rows in fits[:-1]]
    assert sorted(i for part in left_out for i in part) == [*range(150)]
    assert all({i // 2 * 2, i // 2 * 2 + 1} <= part for part in left_out for i in part)


def test_neighbours_refuse_what_they_cannot_compare():
    bank = FeatureBank(np.ones((3, 4)))
    for features in (np.zeros((0, 4)), np.ones((1, 5)), np.full((1, 4), np.nan), np.ones(4)):
        with pytest.raises(ValueError, match="Found array with 0|expecting 4 features|NaN|Expected 2D"):
            bank.distance(features)
    assert bank.distance(np.zeros((1, 4))).tolist() == [1.0]  # no direction: as far from all


@pytest.mark.parametrize("accept", [0.07, 0.29, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("digits", [0, 1, 8])
def test_threshold_is_the_lowest_that_accepts_enough(accept, digits):
    """Rounded scores make ties; of 100 images 0.29 is a whole number."""
    known = np.random.default_rng(0).normal(0, 1, 100).round(digits)
    enough = [cut for cut in known if (known <= cut).sum() >= round(accept * 100)]
    assert ood_threshold(known, accept) == min(enough)


def test_threshold_calls_few_of_the_known_unknown():
    known = np.random.default_rng(1).normal(0, 1, 137)
    assert 0.03 < (known > ood_threshold(known, 0.95)).mean() <= 0.05


def ood_threshold(ood_scores, accept):
    rows = stage2_table(images=len(ood_scores)).assign(ood_score=ood_scores)
    return decide.fit(SimpleNamespace(stage="stage2", classes=CLASSES), rows, accept=accept)["ood_threshold"]


def auroc(known, unknown):
    return roc_auc_score(np.repeat([0, 1], [len(known), len(unknown)]), np.concatenate([known, unknown]))
