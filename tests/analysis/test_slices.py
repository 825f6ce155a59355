"""Errors by property, and the search for slices: what was made worse is found, and nothing where nothing was."""

import numpy as np
import pandas as pd
import pytest

from dfd.analysis import slices


def fabricated(seed, images=400, per_group=4, rate=0.15, tied=0.5):
    """Rows whose errors have nothing to do with their properties, though images of a group are alike in both.

    Sources belong to whole groups, brightness nearly so, texture varies within them; `tied` is the share of the images
    whose error is their group's.
    """
    rng = np.random.default_rng(seed)
    group = np.sort(rng.integers(0, images // per_group, images))
    each = len(np.unique(group))
    group = pd.factorize(group)[0]
    own, shared = rng.random(images) < rate, (rng.random(each) < rate)[group]
    rows = pd.DataFrame({"group": group, "wrong": np.where(rng.random(images) < tied, shared, own)})
    measured = pd.DataFrame(
        {
            "source": rng.choice(["a", "b", "c", "d"], each)[group],
            "label": rng.choice(["RealPhotos", "ProGAN"], images),
            "brightness": (rng.random(each)[group] + rng.normal(0, 0.05, images)).clip(0, 1),
            "texture": rng.random(images),
            "size": rng.choice([64, 128], each)[group],
            "jpeg_quality": np.where(rng.random(images) < 0.5, np.nan, rng.integers(50, 100, images)),
        }
    )
    return rows, measured


def search(rows, measured, **options):
    return slices.find(rows, slices.binned(measured), draws=499, **options)


def test_no_slice_is_reported_where_there_is_none():
    """In at least 38 of 40 repetitions; a test that took images for independent reports some in most of them."""
    quiet = [search(*fabricated(seed)).empty for seed in range(40)]
    assert sum(quiet) >= 38
    tied = [fabricated(seed, per_group=20, tied=0.9) for seed in range(40)]
    assert sum(search(*each).empty for each in tied) >= 38
    apart = [search(rows.assign(group=range(len(rows))), measured).empty for rows, measured in tied[:10]]
    assert sum(apart) <= 5


@pytest.mark.parametrize(("most", "rest"), [(95, [60, 70, 80, 85]), (50, [60, 70, 80, 85])])
def test_a_property_that_is_the_same_for_most_has_the_rest_as_a_bin(most, rest):
    measured = pd.DataFrame({"jpeg_quality": [float(most)] * 70 + rest * 7 + [np.nan] * 2})
    bins = slices.binned(measured)["jpeg_quality"]
    assert bins.value_counts().to_dict() == {str(most): 70, "60 to 85": 28, "no JPEG": 2}
    assert list(bins.cat.categories) == ["no JPEG", *sorted([str(most), "60 to 85"])]


@pytest.mark.parametrize("seed", range(5))
def test_a_slice_made_worse_is_reported_first(seed):
    rows, measured = fabricated(seed)
    worse = measured["brightness"].lt(0.33) & (np.random.default_rng(seed).random(len(rows)) < 0.6)
    rows["wrong"] |= worse
    found = search(rows, measured)
    assert "brightness 0" in found["slice"].iloc[0]
    assert found["slice"].str.match("brightness 0[^,]*$").any()
    assert found["error"].iloc[0] > 0.5 > found["average"].iloc[0]
    assert found["p"].max() <= 0.01 and found["z"].is_monotonic_decreasing


def test_a_crossing_made_worse_is_told_from_its_two_properties():
    rows, measured = fabricated(1, images=900)
    rows["wrong"] |= measured["source"].eq("a") & measured["label"].eq("ProGAN")
    found = search(rows, measured)
    assert found["slice"].iloc[0] == "label ProGAN, source a" and found["error"].iloc[0] == 1
    inside = found[found["slice"].str.startswith("label ProGAN, source a")]
    assert inside["within"].iloc[0] == ""
    assert found.loc[found["slice"].str.contains("source a, brightness"), "within"].ne(found["slice"].iloc[0]).all()


def test_copies_of_a_failure_are_one_failure():
    rows, measured = fabricated(0, images=300, per_group=1, tied=0.0)
    copies = pd.DataFrame({"group": np.repeat([1001, 1002, 1003], 10), "wrong": True, "source": "walk"})
    both = pd.concat([rows.join(measured), copies], ignore_index=True).fillna({"label": "ProGAN", "size": 64})
    assert search(both[["group", "wrong"]], both[["source", "label"]]).empty
    apart = both.assign(group=range(len(both)))
    assert search(apart[["group", "wrong"]], both[["source", "label"]])["slice"].iloc[0] == "source walk"


@pytest.mark.parametrize(("groups", "tried"), [(2, 1), (3, 2)])
def test_a_slice_that_is_tried_spans_three_groups(groups, tried):
    rows = pd.DataFrame({"group": [*range(40), *np.repeat(np.arange(groups) + 100, 10)]})
    rows["wrong"] = rows["group"] % 5 == 0
    measured = pd.DataFrame({"source": np.where(rows["group"] < 100, "camera", "walk")})
    assert search(rows, measured).attrs["tried"] == tried


def test_candidates_are_bins_and_crossings_without_repeats():
    measured = pd.DataFrame({"source": ["a"] * 12 + ["b"] * 12, "label": ["x"] * 12 + ["y"] * 12, "size": [1, 2] * 12})
    found = dict(slices.candidates(slices.binned(measured), least=5))
    crossed = ["label x, size 1", "label x, size 2", "label y, size 1", "label y, size 2"]
    assert list(found) == ["label x", "label y", "size 1", "size 2", *crossed]  # source is the label again
    assert found["label x, size 2"].sum() == 6
    assert len(dict(slices.candidates(slices.binned(measured), least=7))) == 4
    most = pd.DataFrame({"source": [*"aaaaaaaaab"]})
    assert not dict(slices.candidates(slices.binned(most), least=2))  # all but one is no slice either


def test_nothing_to_find_gives_an_empty_table():
    rows, measured = fabricated(0)
    for empty in (search(rows.assign(wrong=False), measured), search(rows, measured[[]])):
        assert empty.empty and list(empty) == list(search(rows.assign(wrong=rows.index < 90), measured))
    with pytest.raises(ValueError, match="alpha"):
        search(rows, measured, alpha=0.001)


def test_errors_by_property_count_images_groups_and_intervals():
    rows = pd.DataFrame(
        {"group": [*np.arange(16) // 2, *range(8, 16)], "wrong": [True, True, False, False] * 4 + [False] * 8}
    )
    measured = pd.DataFrame({"source": ["a"] * 16 + ["b"] * 8, "size": range(1, 25)})
    found = slices.by_property(rows, slices.binned(measured, bins=2)).set_index(["property", "bin"])
    a = found.loc[("source", "a")]
    assert (a["images"], a["groups"], a["errors"], a["error"]) == (16, 8, 8, 0.5)
    assert 0.1 < a["error_low"] < 0.4 < 0.6 < a["error_high"] < 0.9  # eight groups, all wrong or all right
    b = found.loc[("source", "b")]
    assert (b["error"], b["error_low"]) == (0, 0) and b["error_high"] == pytest.approx(1 - 0.025 ** (1 / 8))
    assert list(found.loc["size"].index) == ["1 to 12", "13 to 24"] and found.attrs["average"] == pytest.approx(1 / 3)
    alone = slices.by_property(rows.assign(group=0), slices.binned(measured[["source"]]))
    assert alone["error_low"].isna().all()


def test_a_slice_within_a_listed_one_names_it():
    rows, measured = fabricated(1, images=900)
    rows["wrong"] |= measured["source"].eq("a")
    found = search(rows, measured)
    pd.testing.assert_frame_equal(found, search(rows, measured))  # the same draws again
    within = found.set_index("slice")["within"]
    assert within["source a"] == "" and within["label ProGAN, source a"] == "source a"
