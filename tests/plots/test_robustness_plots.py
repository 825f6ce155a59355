"""The robustness figures: the right numbers are drawn at the right places, with their intervals."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PolyCollection

from dfd import plots
from dfd.degrade import registry
from dfd.evaluate import robustness

LEVELS = {"none": [0.0], "jpeg": [90.0, 50.0, 75.0], "blur": [1.0, 2.0], "noise": [0.02]}


pytestmark = pytest.mark.usefixtures("closed")


@pytest.fixture
def found():
    rows, rng = [], np.random.default_rng(0)
    for stage, metric in robustness.ACCURACY.items():
        for degradation, levels in LEVELS.items():
            for level in levels:
                row = {"stage": stage, "degradation": degradation, "level": level}
                row |= {"condition": registry.name(degradation, level), "images": 9}
                for label, one in (("all", metric), ("ProGAN", "recall"), ("RealPhotos", "recall")):
                    value = rng.uniform(0.3, 0.9)
                    three = {"value": value, "low": value - 0.1, "high": value + 0.05}
                    rows.append(row | {"label": label, "metric": one, **three})
    return pd.DataFrame(rows)


def test_conditions_stand_under_each_other_with_their_intervals(found):
    metric = robustness.ACCURACY["stage1"]
    table = robustness.wide(found, "stage1")
    ax = plots.plot_conditions(table, {metric: "words"}, "share")
    assert [label.get_text() for label in ax.get_yticklabels()] == list(table.index) and ax.yaxis_inverted()
    assert ax.lines[0].get_xdata().tolist() == table[metric].tolist()
    (bars,) = [one for one in ax.collections if isinstance(one, LineCollection)]
    ends = np.array([segment[:, 0] for segment in bars.get_segments()])
    assert np.allclose(ends, table[[f"{metric}_low", f"{metric}_high"]])
    assert ax.lines[1].get_xdata()[0] == table.loc["as it is", metric] and ax.get_legend() is None
    assert ax.get_xlabel() == "share"
    same = plots.plot_conditions(
        table.assign(**dict.fromkeys((metric, f"{metric}_low", f"{metric}_high"), 1.0)), {metric: "words"}, "share"
    )
    assert -0.1 < same.get_xlim()[0] < 0 and ax.get_xlim()[0] < 0  # else equal shares lie between 0.96 and 1.04


def test_two_metrics_have_a_legend():
    columns = {f"{name}{end}": [0.1, -0.2] for name in ("a", "b") for end in ("", "_low", "_high")}
    table = pd.DataFrame(columns, index=["as it is", "jpeg 50"])
    ax = plots.plot_conditions(table, {"a": "first", "b": "second"}, "x")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["first", "second"]
    assert ax.lines[0].get_ydata()[0] < ax.lines[1].get_ydata()[0]


def test_operators_of_several_levels_have_a_panel_each(found):
    figure = plots.plot_levels(found)
    clean, jpeg, blur = sorted(figure.axes, key=lambda ax: "as it is jpeg blur".index(ax.get_title()))
    part = found[(found["stage"] == "stage1") & (found["degradation"] == "jpeg") & (found["label"] == "all")]
    part = part.sort_values("level")
    assert jpeg.lines[0].get_xdata().tolist() == [50, 75, 90] and blur.lines[1].get_xdata().tolist() == [1, 2]
    assert jpeg.lines[0].get_ydata().tolist() == part["value"].tolist() and len(clean.lines) == 2
    band = next(one for one in jpeg.collections if isinstance(one, PolyCollection)).get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(part["low"].min()) and band.max() == pytest.approx(part["high"].max())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["stage1", "stage2"]


def test_probe_marks_what_is_named():
    areas = {"clean": 0.9, "photos_only": [0.5, 0.9], "fakes_only": [0.8, 0.7], "both": [0.6, 0.7]}
    table = pd.DataFrame({**areas, "named": [True, False]}, index=["jpeg 50", "blur 1"])
    ax = plots.plot_probe(table)
    assert [line.get_xdata().tolist() for line in ax.lines[:3]] == [[0.5, 0.9], [0.8, 0.7], [0.6, 0.7]]
    assert [label.get_fontweight() for label in ax.get_yticklabels()] == ["bold", "normal"]
    assert ax.lines[3].get_xdata() == [0.9, 0.9]
