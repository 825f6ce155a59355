"""The format audit."""

import numpy as np
import pandas as pd
import pytest

from dfd.analysis import audit


def table(seed=0, count=60, **by_label):
    """A manifest without images: three classes whose files look alike, but for the columns set by label."""
    rng = np.random.default_rng(seed)
    parts = []
    for label in ("RealPhotos", "ProGAN", "BigGAN"):
        width, height = rng.integers(64, 256, (2, count))
        part = pd.DataFrame({"label": label, "is_fake": label != "RealPhotos", "width": width, "height": height})
        part["group"] = [f"{label}{i // 2}" for i in range(count)]
        part["bytes"] = (width * height * rng.uniform(1, 2, count)).astype(int)
        parts.append(
            part.assign(**{"format": "PNG", "jpeg_quality": np.nan, "subsampling": None} | by_label.get(label, {}))
        )
    return pd.concat(parts, ignore_index=True)


JPEG = {"format": "JPEG", "jpeg_quality": 90.0, "subsampling": "4:2:0"}


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_quiet_without_a_leak(stage):
    found = audit.format_audit(table(), stage)
    assert found["warning"] is None
    assert found["auc"]["low"] < 0.6


def test_planted_codec_is_found_in_stage1():
    found = audit.format_audit(table(RealPhotos=JPEG), "stage1")
    assert found["auc"]["value"] > 0.95
    assert "whether an image is fake" in found["warning"] and "0.6" in found["warning"]
    assert set(list(found["features"])[:3]) == {"format", "jpeg_quality", "subsampling"}
    assert audit.format_audit(table(RealPhotos=JPEG), "stage2")["warning"] is None  # the fakes are alike


@pytest.mark.parametrize("leak", [JPEG, {"width": 300}, {"bytes": 900}])
def test_planted_leak_is_found_in_stage2(leak):
    assert "which generator" in audit.format_audit(table(BigGAN=leak), "stage2")["warning"]


def test_generators_may_be_called_by_numbers():
    plain, rows = audit.format_audit(table(BigGAN={"width": 300}), "stage2"), table(BigGAN={"width": 300})
    assert audit.format_audit(rows.assign(label=rows["label"].replace("BigGAN", "007")), "stage2") == plain


def test_quality_alone_is_found():
    every = dict.fromkeys(("RealPhotos", "ProGAN", "BigGAN"), JPEG)
    assert audit.format_audit(table(**every), "stage1")["warning"] is None
    every["RealPhotos"] = JPEG | {"jpeg_quality": 96.0}
    assert audit.format_audit(table(**every), "stage1")["warning"]


def test_a_leak_that_may_be_chance_is_not_warned_of():
    rows = table(count=60)
    rows.loc[rows.index[rows["label"] == "RealPhotos"][:14], list(JPEG)] = [*JPEG.values()]
    found = audit.format_audit(rows, "stage1")
    assert found["auc"]["low"] < 0.6 < found["auc"]["value"] and found["warning"] is None


def test_groups_are_not_shared_between_folds():
    """Each group has a size of its own: who has seen some of its images knows the class of the others."""
    rows = table(count=240)
    rows["group"] = rows.label + (rows.index // 12).astype(str)
    rows["width"] = rows["height"] = rows.group.map({g: 64 + i * 7 % 61 for i, g in enumerate(rows.group.unique())})
    assert audit.format_audit(rows, "stage1")["auc"]["low"] < 0.6


def test_interval_holds_the_value_and_shares_add_up():
    found = audit.format_audit(table(), "stage1")
    assert found["auc"]["low"] <= found["auc"]["value"] <= found["auc"]["high"]
    assert found["n"] == 180
    assert sum(found["features"].values()) == pytest.approx(1, abs=1e-3)
    assert audit.format_audit(table(), "stage1") == found  # the seed decides everything


def test_a_class_of_few_groups_is_not_tested():
    rows = table(BigGAN={"width": 300})
    few = rows[(rows["label"] != "BigGAN") | (rows.groupby("label").cumcount() < 14)]
    found = audit.format_audit(few, "stage2")
    assert found["auc"]["value"] > 0.9 and found["auc"]["low"] is None and found["warning"] is None
    assert audit.format_audit(rows, "stage2")["warning"]


def test_a_class_of_two_groups_is_used_and_one_of_a_single_group_is_not():
    rows = table(BigGAN=JPEG)
    for groups, used in ((2, 60 + 4), (1, 60)):
        kept = rows[(rows["label"] != "BigGAN") | (rows.groupby("label").cumcount() < 2 * groups)]
        found = audit.format_audit(kept[kept["label"] != "RealPhotos"], "stage2")
        assert found["n"] == used and (found["auc"]["value"] is None) == (groups == 1)


def test_too_little_data_is_said():
    rows = table()
    found = audit.format_audit(rows[rows.label != "BigGAN"], "stage2")
    assert found["auc"] == {"value": None, "low": None, "high": None}
    assert "two classes" in found["warning"]


def test_metadata_is_what_the_files_say():
    row = table(count=1, RealPhotos={"format": "WEBP", "width": 40, "height": 20, "bytes": 1600})[:1]
    assert audit.metadata(row).tolist() == [[2, 40, 20, 2, -1, -1, 2]]


def test_a_warning_names_no_fact_that_tells_nothing():
    rows = table()
    rows = rows.assign(width=64, height=64, bytes=np.where(rows["is_fake"], 4000, 9000))
    result = audit.format_audit(rows, "stage1")
    assert [name for name, share in result["features"].items() if share] == ["bytes_per_pixel"]
    assert "mostly from bytes_per_pixel. A network" in result["warning"]
