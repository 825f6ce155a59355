"""Numbers of joint hold-outs: weights of sources, ranks within a draw, rates by source."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from dfd.evaluate import holdouts
from dfd.inference import decide
from dfd.inference.decide import answer

ROWS = [  # draw, label, source, logit of fake
    (0, "RealPhotos", "a", -2.0), (0, "RealPhotos", "a", 1.0), (0, "RealPhotos", "b", 3.0),
    (0, "ProGAN", "c", 2.0), (0, "ProGAN", "c", 4.0),
    (1, "RealPhotos", "a", 5.0), (1, "ProGAN", "d", 6.0),
]  # fmt: skip


@pytest.fixture
def judged():
    table = pd.DataFrame(ROWS, columns=["draw", "label", "source", "logit_fake"])
    table = table.assign(path=[f"{i}.png" for i in range(len(table))], logit_real=0.0, degradation="jpeg", level=75.0)
    return table[["draw", "path", "label", "source", "degradation", "level", "logit_real", "logit_fake"]]


def test_a_draw_ranks_its_own_scores_and_sources_weigh_alike(judged):
    found = decide.by_draw(judged)
    # photos a weigh 1/2 each, b 1: of the pairs with 2.0 half of the photos' weight lies below, with 4.0 all of it
    assert found["auc"].tolist() == [pytest.approx((0.5 + 1.0) / 2), 1.0]
    assert found["condition"].tolist() == ["jpeg 75"] * 2 and found["RealPhotos"].tolist() == ["a, b", "a"]
    summary = holdouts.summary(judged).loc["jpeg 75"]
    assert summary.tolist() == [pytest.approx(0.875), pytest.approx(np.std([0.75, 1.0], ddof=1)), 0.75, 2]


def test_in_stage_2_the_sources_of_a_generator_weigh_alike_and_a_draw_without_a_number_does_not_count(judged):
    named = judged.assign(label=["A"] * 5 + ["B"] * 2, source=["a"] * 4 + ["b", "c", "c"], draw=0)
    named = named.rename(columns={"logit_real": "logit_A", "logit_fake": "logit_B"})
    named["prediction"] = ["A", "A", "A", "A", "B", "B", "A"]  # right: all of a, none of b, half of c
    assert decide.by_draw(named)["accuracy"].tolist() == [pytest.approx((0.5 + 0.5) / 2)]
    photos = judged[(judged["draw"] == 0) | (judged["label"] == "RealPhotos")]
    assert holdouts.summary(photos).loc["jpeg 75", "draws"] == 1


def test_what_metrics_json_holds_is_the_summary(judged):
    (told,) = holdouts.headlines(judged)["hold_outs"].values()
    deviation = pytest.approx(np.std([0.75, 1.0], ddof=1))
    assert told == {"auc": {"value": pytest.approx(0.875), "deviation": deviation, "worst": 0.75, "draws": 2}}
    assert holdouts.headlines(pd.DataFrame()) == {}


def test_rates_by_source_are_those_of_the_three_answers(judged):
    stage = SimpleNamespace(stage="stage1", temperature=1.0, threshold=0.5, band=[0.2, 0.9], classes=["real", "fake"])
    found = holdouts.by_source(judged, stage).set_index("source")
    # p of fake: -2 is 0.12, 1 is 0.73, 3 is 0.95, 5 and more above 0.99, 2 is 0.88
    assert found.loc["a", ["real", "unsure", "fake"]].tolist() == [pytest.approx(1 / 3)] * 3
    assert found["wrong"].to_dict() == {"b": 1.0, "a": pytest.approx(1 / 3), "c": 0.0, "d": 0.0}
    assert found.loc["c", ["unsure", "fake"]].tolist() == [0.5, 0.5] and found.loc["a", "images"] == 3


def test_rates_by_source_of_stage_2_are_of_wrong_names(judged):
    rows = [("A", "a", 2.0, 0.0), ("A", "a", 0.0, 2.0), ("B", "b", 0.0, 1.0)]
    named = pd.DataFrame(rows, columns=["label", "source", "logit_A", "logit_B"])
    named = named.assign(path=["1", "2", "3"], degradation="none", level=0.0)
    stage = SimpleNamespace(stage="stage2", temperature=1.0, classes=["A", "B"], ood_threshold=None)
    stage.conformal_quantile = 1.0
    found = holdouts.by_source(named, stage).set_index("source")
    assert found["wrong"].to_dict() == {"a": 0.5, "b": 0.0}
    stage.ood_threshold = 1.0  # the second is unknown, which is no wrong name
    found = holdouts.by_source(named.assign(ood_score=[0.0, 2.0, 0.0]), stage).set_index("source")
    assert found["wrong"].to_dict() == {"a": 0.0, "b": 0.0}


@pytest.mark.parametrize(
    ("p", "threshold", "expected"),
    [(0.19, None, "real"), (0.2, None, "unsure"), (0.89, None, "unsure"), (0.9, None, "fake"),
     (0.6, 0.55, "fake"), (0.15, 0.1, "fake"), (0.05, 0.1, "real"), (0.3, 0.95, "unsure")],
)  # fmt: skip
def test_the_band_is_unsure_and_another_threshold_stands_in_for_its_end(p, threshold, expected):
    stage = SimpleNamespace(threshold=0.5, band=[0.2, 0.9])
    assert answer(p, stage, threshold) == expected


def test_without_a_band_there_are_two_answers():
    stage = SimpleNamespace(threshold=0.5, band=None)
    assert [answer(p, stage) for p in (0.49, 0.5)] == ["real", "fake"]


def test_the_worst_source_comes_first_and_an_image_of_two_draws_counts_once(judged):
    stage = SimpleNamespace(stage="stage1", temperature=1.0, threshold=0.5, band=[0.2, 0.9], classes=["real", "fake"])
    found = holdouts.by_source(pd.concat([judged, judged.assign(draw=2)]), stage)
    assert found["source"].tolist()[:2] == ["b", "a"] and found["images"].tolist()[:2] == [1, 3]
