"""Scores as evidence: likelihood ratios against what is known of synthetic scores, and rates against counting."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from dfd.config import REAL
from dfd.inference import likelihood

DISTANCE = 2.0  # between the means of photos' and fakes' scores, whose deviations are 1


def synthetic(images, seed, stretch=lambda z: z, of=500):
    """Scores of images of at most `of` sources a class, whether fake, sources, names, and the true log10 ratios."""
    rng = np.random.default_rng(seed)
    is_fake = np.arange(images) % 2 == 1
    z = rng.normal(np.where(is_fake, DISTANCE / 2, -DISTANCE / 2))
    sources = np.char.add(np.where(is_fake, "f", "p"), (np.arange(images) // 2 % of).astype(str))
    true = (norm.logpdf(z, DISTANCE / 2) - norm.logpdf(z, -DISTANCE / 2)) / np.log(10)
    return stretch(z), is_fake, sources, np.arange(images), true


def test_cllr_is_what_its_definition_says():
    rng = np.random.default_rng(0)
    lr, is_fake = rng.normal(size=300), rng.random(300) < 0.3
    photos = [np.log2(1 + 10**x) for x, fake in zip(lr, is_fake, strict=True) if not fake]
    fakes = [np.log2(1 + 1 / 10**x) for x, fake in zip(lr, is_fake, strict=True) if fake]
    expected = (sum(photos) / len(photos) + sum(fakes) / len(fakes)) / 2
    cost, least = likelihood.costs(lr, is_fake)
    assert cost == pytest.approx(expected) and least < cost
    assert likelihood.costs(np.zeros(300), is_fake)[0] == pytest.approx(1)  # nothing is told
    assert likelihood.costs(np.where(is_fake, 9.0, -9.0), is_fake)[0] == pytest.approx(0, abs=1e-6)
    assert likelihood.costs(np.where(is_fake, -2.0, 2.0), is_fake)[0] > 6  # misleading
    weights = np.stack([np.ones(300), np.arange(300) % 3])
    twice = np.repeat(np.arange(300), np.arange(300) % 3)
    drawn = likelihood.cllr(weights, lr, is_fake)
    assert drawn == pytest.approx([cost, likelihood.costs(lr[twice], is_fake[twice])[0]])
    assert np.isnan(likelihood.cllr(np.ones((1, 3)), lr[:3], np.zeros(3, bool)))


@pytest.mark.parametrize("stretch", [lambda z: z, lambda z: 3 * z + 5, lambda z: 0.2 * z - 1])
def test_ratios_of_unseen_scores_have_the_slope_of_the_true_ones(stretch):
    logits, is_fake, sources, images, _ = synthetic(4000, 0, stretch)
    fitted = likelihood.fit(logits, is_fake, sources, images)
    logits, is_fake, *_, true = synthetic(4000, 1, stretch)
    given = likelihood.log10_lr(logits, fitted)
    slope, bias = np.polyfit(true, given, 1)
    assert 0.9 < slope < 1.1 and abs(bias) < 0.1
    assert fitted["cllr"] == pytest.approx(likelihood.costs(true, is_fake)[0], abs=0.03)
    assert (fitted["photos"], fitted["fakes"], fitted["groups"]) == (2000, 2000, [500, 500])


def test_the_kind_that_fits_unseen_sources_is_taken():
    crooked = synthetic(6000, 0, lambda z: np.sign(z - 0.3) * (0.2 * np.abs(z - 0.3) + 4 * (np.abs(z - 0.3) > 0.2)))
    assert likelihood.fit(*crooked[:4])["kind"] == "isotonic"
    kinds = [likelihood.fit(*synthetic(120, seed)[:4])["kind"] for seed in range(5)]
    assert kinds.count("logistic") >= 4  # few images of a normal kind


def test_no_ratio_says_more_than_so_many_groups_can():
    logits, is_fake, sources, images, _ = synthetic(240, 0, lambda z: 10 * z, of=15)
    sources[is_fake] = np.char.add("f", (images[is_fake] // 2 % 9).astype(str))
    fitted = likelihood.fit(np.where(is_fake, np.abs(logits), -np.abs(logits)), is_fake, sources, images // 4)
    assert (fitted["photos"], fitted["fakes"], fitted["groups"]) == (60, 60, [15, 9])
    assert max(fitted["log10_lr"]) == pytest.approx(np.log10(15 / 3), abs=1e-3)
    assert min(fitted["log10_lr"]) == pytest.approx(-np.log10(9 / 3), abs=1e-3)
    assert likelihood.log10_lr(1e9, fitted) == max(fitted["log10_lr"])


def test_few_groups_of_many_alike_do_not_mislead_on_new_ones():
    """Scores that scatter between groups more than within: those of new groups are what a ratio is told of."""
    costs, rng = [], np.random.default_rng(0)
    for _ in range(40):
        worlds = []
        for groups in (4, 200):
            is_fake, group = np.arange(50 * groups) % 2 == 1, np.arange(50 * groups) // 50
            shift = rng.normal(size=(2, groups))[is_fake.astype(int), group]
            z = is_fake - 0.5 + shift + 0.1 * rng.normal(size=len(group))
            worlds.append((z, is_fake, np.char.add(np.where(is_fake, "f", "p"), group.astype(str)), np.arange(len(z))))
        lr = likelihood.log10_lr(worlds[1][0], likelihood.fit(*worlds[0]))
        costs.append(likelihood.costs(lr, worlds[1][1])[0])
    assert max(costs) < 1.2 and np.mean(costs) < 1


def test_a_detector_worse_than_chance_says_nothing():
    logits, is_fake, sources, images, _ = synthetic(2000, 0, lambda z: -z)
    fitted = likelihood.fit(logits, is_fake, sources, images)
    assert np.abs(fitted["log10_lr"]).max() < 0.05 and fitted["cllr"] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("of", [1, 3])
def test_of_so_few_groups_nothing_is_said(of):
    fitted = likelihood.fit(*synthetic(60, 0, of=of)[:4])
    assert set(fitted["log10_lr"]) == {0} and (of == 1) == np.isnan(fitted["cllr"])


@pytest.fixture
def judged():
    """Score rows of 400 images in two sizes, each as it is and as JPEG 75, with answers, and their manifest."""
    rng, names = np.random.default_rng(0), [f"{i}.png" for i in range(400)]
    label = np.where(np.arange(400) % 2, "ProGAN", REAL)
    files = pd.DataFrame({"path": names, "width": 300, "height": np.where(np.arange(400) < 360, 128, 256)})
    files["jpeg_quality"] = np.where(np.arange(400) % 4 < 2, np.nan, 92)
    rows = []
    for degradation, level in (("none", 0.0), ("jpeg", 75.0)):
        part = pd.DataFrame({"path": names, "label": label, "degradation": degradation, "level": level})
        part["answer"] = rng.choice(["fake", "real", "unsure"], 400, p=[0.2, 0.5, 0.3])
        rows.append(part.assign(source=np.char.add("s", (np.arange(400) // 4 % 3).astype(str)), group="g"))
    return pd.concat(rows, ignore_index=True), files


def test_rates_are_counted_in_the_finest_bin_that_has_enough(judged):
    scores, files = judged
    bins = likelihood.rates(scores, files)
    small = scores[scores["path"].isin(files.loc[files["height"] == 128, "path"])]
    jpeg = small[small["degradation"] == "jpeg"]
    found = likelihood.rate_of(bins, 128, 75)
    photos, fakes = jpeg[jpeg["label"] == REAL], jpeg[jpeg["label"] != REAL]
    assert found["side"] == (0, 192) and found["quality"] == (75, 90) and found["sources"] == 3
    assert (found["photos"], found["fakes"]) == (len(photos), len(fakes))
    assert found["false_alarms"] == pytest.approx((photos["answer"] == "fake").mean())
    assert found["misses"] == pytest.approx((fakes["answer"] == "real").mean())
    assert found["unsure"] == pytest.approx((jpeg["answer"] == "unsure").mean())
    worst = (photos["answer"] == "fake").groupby(photos["source"]).mean()
    assert found["worst_photos"] == (worst.idxmax(), pytest.approx(worst.max()))


def test_an_image_counts_once_however_often_it_was_judged(judged):
    scores, files = judged
    fakes = scores["label"] != REAL
    scores = scores.assign(answer=np.where(fakes, "unsure", "real"))
    often = pd.concat([scores, *[scores[fakes]] * 5])
    assert likelihood.rates(often, files)[-1]["unsure"] == 0.5


def test_bins_with_too_few_images_are_left_to_coarser_ones(judged):
    bins = likelihood.rates(*judged)
    large = likelihood.rate_of(bins, 256, 75)
    assert large["side"] == (0, 100_000) and large["photos"] == 200  # of all sizes
    every = likelihood.rate_of(bins, 256, 30)
    assert every["quality"] == (0, 102) and every["photos"] == 200
    assert likelihood.rate_of(bins, 128, None)["quality"] == (101, 102)
    assert all(min(bin["photos"], bin["fakes"]) >= likelihood.LEAST for bin in bins)
    assert likelihood.rate_of([], 128, 75) is None


def test_the_cross_entropy_at_even_odds_is_the_cllr_and_never_better_than_the_best_calibration():
    lr, is_fake, *_ = synthetic(500, 0)
    odds = np.array([-2.0, 0.0, 1.0])
    given = likelihood.cross_entropy(lr, is_fake, odds)
    assert given[1] == pytest.approx(likelihood.costs(lr, is_fake)[0])
    p = 10.0 ** odds[2] / (1 + 10.0 ** odds[2])
    posterior = 1 / (1 + 10 ** -(lr + odds[2]))
    expected = -p * np.log2(posterior[is_fake]).mean() - (1 - p) * np.log2(1 - posterior[~is_fake]).mean()
    assert given[2] == pytest.approx(expected)
    best = likelihood.cross_entropy(likelihood.isotonic(lr, is_fake)(lr), is_fake, odds)
    assert (best <= given + 1e-9).all()


def test_a_quality_and_a_side_lie_in_one_bin_alone(judged):
    bins = likelihood.rates(*judged)
    assert {bin["quality"] for bin in bins} == {(75, 90), (90, 101), (101, 102), (0, 102)}
    sides = [{"side": side, "quality": (0, 102)} for side in ((0, 192), (192, 384))]
    assert likelihood.rate_of(sides, 192, 75) == sides[1]


@pytest.mark.parametrize(("images", "counts"), [(1, False), (9, False), (10, True)])
def test_a_source_of_a_few_images_is_not_the_worst(images, counts, judged):
    scores, files = judged
    lone = scores["path"].isin([f"{4 * number}.png" for number in range(images)])  # photos, no JPEGs as they are
    scores = scores.assign(source=scores["source"].mask(lone, "lone"), answer=scores["answer"].mask(lone, "fake"))
    assert ("lone" in {bin["worst_photos"][0] for bin in likelihood.rates(scores, files)}) == counts


def test_a_ratio_says_nothing_of_how_common_fakes_are():
    logits, is_fake, sources, images, true = synthetic(8000, 0)
    some = ~is_fake | (images % 20 == 1)  # a tenth of the fakes
    fitted = likelihood.fit(*(part[some] for part in (logits, is_fake, sources, images)))
    assert fitted["kind"] == "logistic"
    best = likelihood.isotonic(logits[some], is_fake[some])
    for given in (likelihood.log10_lr(logits, fitted), best(logits)):
        assert abs(np.median(given - true)) < 0.2  # of the share of fakes it would be 1


def test_a_bin_of_few_fakes_is_left_to_coarser_ones_and_all_images_are_a_bin_however_few(judged):
    scores, files = judged
    few = scores[(scores["label"] == REAL) | scores["path"].isin(files["path"][:120])]  # 60 fakes, 30 as JPEG 92
    assert min(bin["fakes"] for bin in likelihood.rates(few, files)) >= likelihood.LEAST
    assert [bin["photos"] for bin in likelihood.rates(scores[:20], files)] == [10]
