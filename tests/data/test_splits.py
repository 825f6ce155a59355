"""Groups and splits."""

import numpy as np
import pandas as pd
import pytest

from dfd.data import splits

FRACTIONS = {"val_fraction": 0.2, "test_fraction": 0.2}


def hashed(*flipped):
    """256-bit hexadecimal hashes: the given bits set, all others clear."""
    return [f"{sum(1 << bit for bit in bits):064x}" for bits in flipped]


def images(hashes, **columns):
    """A table of images with different bytes; by default nothing ties them."""
    rows = range(len(hashes))
    table = pd.DataFrame(
        {"path": [f"A/{i}.png" for i in rows], "sha256": [f"{i:02x}" * 32 for i in rows], "phash": hashes}
    )
    return table.assign(**columns)


def series(*values):
    return pd.Series(values, dtype=object)


def unlike(count):
    """Random hashes; two of 256 random bits differ in about 128."""
    return [np.random.default_rng(i).bytes(32).hex() for i in range(count)]


def labelled(counts, size=1):
    """Groups of `size` images each: as many groups per label as asked."""
    rows = [(label, f"{label}{i}") for label, count in counts.items() for i in range(count) for _ in range(size)]
    return pd.DataFrame(rows, columns=["label", "group"])


def draw(table, fixed=None, given=None, seed=0):
    nothing = pd.Series([None] * len(table), dtype=object)
    given, fixed = (nothing if values is None else values for values in (given, fixed))
    return splits.assign(table.assign(given=given, fixed=fixed), seed, **FRACTIONS)


def separate(table, given, fixed):
    return splits.separate(table.assign(given=given, fixed=fixed))


def test_equal_bytes_make_a_group():
    numbers = splits.components(images([None] * 3, sha256=["a", "b", "a"]))
    assert numbers[0] == numbers[2] != numbers[1]


@pytest.mark.parametrize(("bits", "together"), [(0, True), (splits.NEAR, True), (splits.NEAR + 1, False)])
def test_near_has_a_sharp_edge(bits, together):
    numbers = splits.components(images(hashed([], range(100, 100 + bits))))
    assert (numbers[0] == numbers[1]) == together


def test_groups_chain():
    numbers = splits.components(images(hashed([], range(60), range(120))))
    assert len(set(numbers)) == 1


def test_splits_follow_from_the_order_of_groups_and_not_from_their_names():
    """A group is named by the smallest hash in it, which the rounding of a simulated fake may change."""
    group = [f"{name}" for name in "zyxwvutsrqponmlkjihgfedcba" for _ in range(2)]
    table = pd.DataFrame({"label": ["RealPhotos", "ProGAN"] * 26, "group": group})
    other = table.assign(group=[name.swapcase() if name < "n" else name for name in group])
    drawn = [splits.assign(rows.assign(fixed=None, given=None), 0, 0.2, 0.2).tolist() for rows in (table, other)]
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 3


def test_a_class_that_gets_a_group_takes_no_other_class_its_only_one():
    """B has none in val, and its smallest group that may go there is the only one that A has in train."""
    rows = [("A", "g2")] + [("A", "g4")] + [("A", "g5")] * 3 + [("B", "g1")] * 4 + [("B", "g2")] * 4 + [("B", "g4")] * 2
    table = pd.DataFrame(rows, columns=["label", "group"])
    assert not splits.gaps(table.assign(split=draw(table)))


def test_images_without_hash_or_tie_stay_alone():
    assert len(set(splits.components(images([None] * 4, tied=[None, None, "x", "y"])))) == 4


def test_sidecar_ties():
    numbers = splits.components(images(unlike(4), tied=["x", None, "x", None]))
    assert numbers[0] == numbers[2]
    assert len(set(numbers)) == 3


def test_components_agree_with_a_loop_over_all_pairs():
    rng = np.random.default_rng(0)
    bits = np.concatenate([rng.integers(0, 2, (6, 256)), np.zeros((6, 256), int)])
    bits[6:] = bits[:6] ^ (rng.random((6, 256)) < 0.2)  # about 51 of 256 bits away from an original
    numbers = splits.components(images([np.packbits(row).tobytes().hex() for row in bits]))
    for i in range(12):
        for j in range(12):
            if (bits[i] != bits[j]).sum() <= splits.NEAR:
                assert numbers[i] == numbers[j]
    assert len(set(numbers)) >= 6


def test_new_image_that_bridges_two_splits_is_left_out():
    table = images(hashed([], range(60), range(120)) + unlike(1))
    groups, dropped = separate(table, series(*[None] * 4), series("train", None, "test", None))
    assert list(groups.index) == [0, 2, 3]
    assert groups.nunique() == 3
    assert dropped == {1: "near-duplicates link it to: train image A/0.png and test image A/2.png"}


def test_new_image_beside_an_old_one_joins_it():
    table = images(hashed([], range(60)))
    groups, dropped = separate(table, series(None, None), series("test", None))
    assert groups[0] == groups[1] and not dropped


def test_given_test_image_outranks_its_near_duplicate_in_train():
    table = images(hashed([], range(10)) + unlike(1))
    given = series("train", "test", "train")
    groups, dropped = separate(table, given, given)
    assert list(groups.index) == [1, 2]
    assert dropped == {0: "near-duplicate of test image A/1.png (same group)"}


def test_image_of_a_given_train_folder_never_joins_a_given_test_image():
    table = images(hashed([], range(10)) + unlike(1))
    groups, dropped = separate(table, series("train", "test", "train"), series(None, "test", None))
    assert list(groups.index) == [1, 2]
    assert dropped == {0: "near-duplicate of test image A/1.png (same group)"}


def test_no_group_crosses_whatever_the_past():
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 2, (15, 256)).repeat(4, axis=0)
    bits ^= rng.random(bits.shape) < 0.08  # about 38 bits apart within a cluster of four
    hashes = [np.packbits(row).tobytes().hex() for row in bits]
    fixed = pd.Series(rng.choice(np.array(["train", "val", "test", None, None, None, None], dtype=object), 60))
    table = images(hashes, label="A")
    nothing = pd.Series([None] * 60, dtype=object)
    groups, dropped = separate(table, nothing, fixed)
    kept = table.loc[groups.index].assign(group=groups)
    sides = draw(kept, fixed[groups.index], nothing[groups.index])
    assert sorted([*groups.index, *dropped]) == list(range(60))
    assert kept.group.nunique() > 10 and dropped
    assert (sides.groupby(kept.group).nunique() == 1).all()
    assert (sides == fixed[groups.index])[fixed[groups.index].notna()].all()
    near = splits.components(kept)  # computed afresh, without the images left out
    assert (sides.groupby(near).nunique() == 1).all()


def test_group_names_do_not_depend_on_the_order():
    table = images(hashed([], range(10)) + unlike(2))
    nothing = series(*[None] * 4)
    groups, _ = separate(table, nothing, nothing)
    turned, _ = separate(table[::-1].reset_index(drop=True), nothing, nothing)
    assert list(groups) == list(turned[::-1])


def test_fractions_are_met_in_every_class():
    table = labelled({"A": 100, "B": 50, "C": 20})
    counts = pd.crosstab(table.label, draw(table))
    assert counts.loc["A"].to_dict() == {"test": 20, "train": 60, "val": 20}
    assert counts.loc["C"].to_dict() == {"test": 4, "train": 12, "val": 4}


def test_a_small_fraction_is_not_rounded_to_one_group():
    table = labelled({"A": 400, "B": 400}).assign(given=None, fixed=None)
    counts = splits.assign(table, 0, val_fraction=0.02, test_fraction=0.03).value_counts()
    assert abs(counts["test"] - 24) < 3 and abs(counts["val"] - 16) < 3


def test_of_unlike_parts_the_one_nearest_to_the_fraction_is_taken():
    table = pd.DataFrame({"label": "A", "group": np.repeat([*"abc"], [50, 30, 20])}).assign(given=None, fixed=None)
    for seed in range(5):
        counts = splits.assign(table, seed, val_fraction=1 / 3, test_fraction=0).value_counts()
        assert counts.to_dict() == {"train": 50, "val": 30, "test": 20}  # which is moved in, for it lacked the class


def test_groups_stay_whole():
    table = labelled({"A": 30, "B": 30}, size=4)
    assert (draw(table).groupby(table.group).nunique() == 1).all()


def test_fifteen_photos_with_their_fakes_fill_three_splits():
    rows = [(label, f"photo{i}") for i in range(15) for label in "ABCD" for _ in range(5 + i)]
    table = pd.DataFrame(rows, columns=["label", "group"])
    for seed in range(5):
        counts = pd.crosstab(table.label, draw(table, seed=seed))
        assert counts.min().min() > 0
        assert 0.08 < counts["test"].sum() / len(table) < 0.35
        assert table.group[draw(table, seed=seed) == "test"].nunique() >= 2


def test_seed_decides():
    table = labelled({"A": 60, "B": 60})
    assert draw(table).equals(draw(table))
    assert not draw(table).equals(draw(table, seed=1))


def test_old_images_keep_their_split_and_new_ones_make_up_for_the_fractions():
    table = labelled({"A": 100})
    fixed = pd.Series(["train"] * 50 + [None] * 50, dtype=object)
    split = draw(table, fixed)
    assert (split[:50] == "train").all()
    assert split.value_counts().to_dict() == {"train": 60, "val": 20, "test": 20}


def test_one_image_at_a_time_reaches_every_split():
    table, split = labelled({"A": 40}), pd.Series(dtype=object)
    for count in range(1, 41):
        split = draw(table[:count], split.reindex(range(count)).astype(object))
    assert split.value_counts().min() >= 6


def test_given_splits_are_not_drawn_into():
    table = labelled({"A": 50, "B": 50})
    given = pd.Series((["train"] * 40 + ["test"] * 10) * 2, dtype=object)
    split = draw(table, given.where(given == "test", None), given)
    assert ((split == "test") == (given == "test")).all()
    assert (split == "val").sum() == 20  # a fifth of the whole


def test_class_of_three_groups_is_in_every_split():
    for seed in range(5):
        table = labelled({"A": 60, "B": 3})
        assert pd.crosstab(table.label, draw(table, seed=seed)).loc["B"].to_dict() == {"test": 1, "train": 1, "val": 1}


def test_class_that_the_draw_left_out_is_moved_in():
    table = labelled({"A": 60, "B": 3})
    split = splits.assign(table.assign(given=None, fixed=None), 0, 0.2, 0.005)  # less than one image for the test split
    assert pd.crosstab(table.label, split)["test"].to_dict() == {"A": 1, "B": 1}


def test_what_is_moved_in_is_the_smallest_group():
    sizes = {"x": 5, "y": 2, "z": 3}
    rows = [("A", f"A{i}") for i in range(60)] + [("B", group) for group, size in sizes.items() for _ in range(size)]
    table = pd.DataFrame(rows, columns=["label", "group"])
    split = splits.assign(table.assign(given=None, fixed=None), 0, 0.005, 0.005)  # less than one image a split
    assert dict(zip(table.group[60:], split[60:], strict=True)) == {"x": "train", "y": "test", "z": "val"}


def test_new_image_takes_the_split_of_its_old_group():
    table = labelled({"A": 20}, size=2)
    fixed = pd.Series(["test", None] * 20, dtype=object)
    assert (draw(table, fixed) == "test").all()


def test_gaps_are_named():
    table = labelled({"A": 60, "B": 2})
    assert splits.gaps(table.assign(split=["train", "val", "test"] * 20 + ["train", "test"])) == ["no B in val"]


def test_two_groups_stay_in_train():
    assert (draw(labelled({"A": 2})) == "train").all()


@pytest.mark.parametrize("block", [7, 512])
def test_blocks_change_no_group(block, monkeypatch):
    """Chains, copies and strangers in any order, against a loop over all pairs that floods the groups."""
    rng = np.random.default_rng(1)
    seeds = rng.integers(0, 2, (12, 256))
    chain = [seeds[0] ^ (np.arange(256) < 50 * step) for step in range(5)]
    near = [seeds[i % 12] ^ (rng.random(256) < 0.25) for i in range(60)]  # about 64 bits away: either side of NEAR
    bits = rng.permutation(np.array([*seeds, *chain, *near, *seeds[:3]]))
    expected, rest = [], set(range(len(bits)))
    while rest:
        group, edge = set(), {min(rest)}
        while edge:
            group |= edge
            edge = {j for j in rest - group if any((bits[i] != bits[j]).sum() <= splits.NEAR for i in edge)}
        expected.append(group)
        rest -= group
    assert 12 < len(expected) < 70
    monkeypatch.setattr(splits, "PAIRS", block * len(bits))
    numbers = splits.components(images([np.packbits(row).tobytes().hex() for row in bits]))
    groups = pd.Series(range(len(bits))).groupby(numbers).agg(set)
    assert sorted(map(min, groups)) == sorted(map(min, expected)) and all(group in expected for group in groups)


def test_near_is_60_bits():
    assert len(set(splits.components(images(hashed([], range(100, 161)))))) == 2
