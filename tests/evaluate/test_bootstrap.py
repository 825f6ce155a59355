"""Intervals and bands: known spreads."""

import numpy as np
import pandas as pd
import pytest

from dfd.evaluate import metrics


def test_interval_widens_when_images_share_groups():
    rng = np.random.default_rng(1)
    right = np.repeat(rng.random(20) < 0.7, 10)
    rows = pd.DataFrame({"right": right, "group": np.repeat(range(20), 10)})
    grouped = metrics.interval(rows, lambda t: t.right.mean())
    alone = metrics.interval(rows.assign(group=range(200)), lambda t: t.right.mean())
    assert grouped["value"] == alone["value"] == right.mean()
    assert grouped["low"] < grouped["value"] < grouped["high"]
    assert grouped["high"] - grouped["low"] > 2 * (alone["high"] - alone["low"])
    standard_error = np.sqrt(right.mean() * (1 - right.mean()) / 20)
    assert grouped["high"] - grouped["low"] == pytest.approx(2 * 1.96 * standard_error, rel=0.2)


def test_one_group_has_no_interval():
    rows = pd.DataFrame({"right": [True, False, True, True], "group": "one"})
    assert metrics.interval(rows, lambda t: t.right.mean()) == {"value": 0.75, "low": None, "high": None}


def test_a_band_is_the_interval_of_each_point():
    rows = pd.DataFrame({"x": np.random.default_rng(0).normal(size=40), "group": np.arange(40) // 2})
    whole, low, high = metrics.band(rows, lambda t: [t.x.mean(), t.x.max()])
    for i, metric in enumerate((np.mean, np.max)):
        found = metrics.interval(rows, lambda t, metric=metric: metric(t.x))
        assert (whole[i], low[i], high[i]) == (found["value"], found["low"], found["high"])


def test_a_draw_takes_whole_groups():
    rows = pd.DataFrame({"group": [0, 0, 0, 1, 2]})
    _, drawn = metrics.resample(rows, lambda t: [(t.group == g).sum() for g in range(3)], replicates=50)
    assert (drawn[:, 0] % 3 == 0).all() and ((drawn / [3, 1, 1]).sum(axis=1) == 3).all()
    assert len(np.unique(drawn, axis=0)) > 5


def test_draws_where_a_point_is_undefined_are_left_out_there():
    rows = pd.DataFrame({"group": range(4), "x": [1.0, 2.0, 3.0, np.nan]})
    _, low, high = metrics.band(rows, lambda t: [t.x.sum(), len(t.x), np.nan])
    assert np.isfinite(low).tolist() == np.isfinite(high).tolist() == [True, True, False]
    assert low[1] == high[1] == 4
