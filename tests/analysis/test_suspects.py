"""Suspected labels: swapped ones come to the top."""

import numpy as np
import pandas as pd
import pytest
from networks import untrained
from PIL import Image

from dfd.analysis import audit
from dfd.data import manifest

LABELS = ["RealPhotos", "ProGAN", "BigGAN", "StyleGAN2"]


def clouds(seed=0, images=400, per_group=4, apart=5.0):
    """A manifest and features: a Gaussian cloud for each label, images of a group near to one another."""
    rng = np.random.default_rng(seed)
    group = np.arange(images) // per_group
    label = np.array(LABELS)[group % 4]
    centres = rng.normal(0, 1, (4, 32))
    centres *= apart / np.linalg.norm(centres, axis=1, keepdims=True)
    values = (
        centres[group % 4] + rng.normal(0, 0.7, (images // per_group, 32))[group] + rng.normal(0, 0.7, (images, 32))
    )
    split = np.where(group % 5 == 0, "test", "train")
    path = [f"{name}/{i}.png" for i, name in enumerate(label)]
    return pd.DataFrame({"path": path, "label": label, "group": group, "split": split}), values.astype(np.float32)


def swap(table, count, seed=0):
    """The table with `count` labels swapped for another, and their paths."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(table), count, replace=False)
    names = sorted(table["label"].unique())
    swapped = table.copy()
    for row in rows:
        swapped.loc[row, "label"] = rng.choice([name for name in names if name != table["label"][row]])
    return swapped, set(table["path"][rows])


@pytest.mark.parametrize("seed", range(3))
def test_twenty_swapped_labels_are_among_the_first_forty_suspects(seed):
    table, values = clouds(seed)
    swapped, planted = swap(table, 20, seed)
    found = audit.suspected(values, swapped)
    assert planted <= set(found["path"].head(40))
    right = found[found["path"].isin(planted)].merge(table[["path", "label"]], on="path", suffixes=("", "_true"))
    assert (right["suggested"] == right["label_true"]).mean() >= 0.9
    assert len(found) == len(table) and found["suspected"].sum() < 60


def test_good_labels_are_hardly_suspected():
    table, values = clouds()
    found = audit.suspected(values, table)
    assert found["suspected"].sum() <= 4
    assert found["suspected"].is_monotonic_decreasing and (found["p_label"] > found["p_suggested"]).mean() > 0.97


def test_an_image_is_not_judged_by_its_own_group():
    """Noise for features, but equal within a group: only a fold that cuts a group could name the labels."""
    rng = np.random.default_rng(0)
    table, _ = clouds(images=200, per_group=10)
    values = rng.normal(0, 1, (20, 32))[table["group"]]
    p = audit.held_out_probabilities(values, table["label"], table["group"])
    assert (p.idxmax(axis=1) == table["label"]).mean() < 0.6
    own = audit.held_out_probabilities(values, table["label"], pd.Series(range(200)))
    assert (own.idxmax(axis=1) == table["label"]).mean() > 0.95
    with pytest.raises(ValueError, match="at least two groups"):
        audit.held_out_probabilities(values, table["label"], table["label"])


def test_swapped_files_are_found_by_the_features_of_images(tmp_path):
    """From files to suspects: 180 pictures in three folders, 20 of them in the wrong one."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64]
    textures = {"RealPhotos": 0 * rows, "ProGAN": (rows + columns) % 2 * 2 - 1, "BigGAN": columns // 2 % 2 * 2 - 1}
    wrong = set(rng.choice(180, 20, replace=False).tolist())
    planted = set()
    for name in textures:
        (tmp_path / "data" / name).mkdir(parents=True)
    for i in range(180):
        true = list(textures)[i % 3]
        folder = list(textures)[(i + 1) % 3] if i in wrong else true
        small = Image.fromarray(rng.integers(40, 216, (5, 5, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize((64, 64), Image.Resampling.BICUBIC), dtype=float)
        pixels = pixels + 12 * textures[true][..., None] + rng.normal(0, 2, pixels.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "data" / folder / f"{i}.png")
        planted |= {f"{folder}/{i}.png"} if i in wrong else set()
    table = manifest.scan(tmp_path / "data", progress=False)
    values = audit.image_features([untrained("stage1", representation="highpass")], table)
    found = audit.suspected(values, table)
    assert planted <= set(found["path"].head(40))


def test_swapped_labels_are_called_suspected():
    table, values = clouds()
    swapped, planted = swap(table, 20)
    found = audit.suspected(values, swapped)
    assert found["suspected"][found["path"].isin(planted)].mean() > 0.4
