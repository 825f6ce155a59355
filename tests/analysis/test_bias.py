"""The bias probe: planted faults are found from the files on, honest detectors are not accused."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from score_tables import noisy_table
from sklearn.metrics import roc_auc_score

from dfd.analysis import audit
from dfd.data import manifest
from dfd.degrade import registry
from dfd.evaluate import robustness
from dfd.inference.stage import Stage

SIDE = 64
CONDITIONS = registry.parse_all(["jpeg 60", "jpeg 60 4:4:4 + webp 90", "blur 1", "resample 0.8 bilinear"])


class Planted(Stage):
    """A stage 1 whose network is a formula on the crop."""

    def __init__(self, formula):
        self.device, self.model, self.formula = torch.device("cpu"), torch.nn.Identity(), formula
        self.stage, self.classes, self.crops, self.crop_mode = "stage1", ["real", "fake"], 1, "five"
        self.crop_size, self.equalise_quality, self.threshold, self.temperature = SIDE, None, 0.5, 1.0
        self.feature_bank = self.likelihood = self.band = self.ood_threshold = None
        self.rates, self.is_held_out, self.smallest = [], False, 0

    def _of_crops(self, batch):
        return [(torch.stack([torch.zeros(()), one]), None) for one in self.formula(batch.mean(1))]


def jpeg_is_real(grey):
    """Blocks of 8 x 8, seen at their borders, are what this detector calls a photo."""
    steps = grey.diff(dim=-1).abs().mean(1)  # (B, S - 1)
    borders = steps[:, 7::8].mean(1) / steps[:, 3::8].mean(1)
    return 8 * (1.2 - borders)


def checkerboard_is_fake(grey):
    """The trace of the planted generator, and nothing else."""
    rows = torch.arange(SIDE)
    sign = ((rows[:, None] + rows) % 2 * 2 - 1).float()
    return 400 * ((grey * sign).mean((1, 2)) - 0.01)


def folder(tmp_path, photos):
    """Photos in the given format, fakes as BMP, whose size tells nothing, with a weak checkerboard; as a manifest."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for label in ("RealPhotos", "ProGAN"):
        (tmp_path / label).mkdir()
        for number in range(40):
            small = Image.fromarray(rng.integers(40, 216, (9, 9, 3), dtype=np.uint8))
            pixels = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=float)
            texture = 6.0 * ((rows + columns) % 2 * 2 - 1) * (label == "ProGAN")
            image = Image.fromarray((pixels + texture[..., None]).clip(0, 255).astype(np.uint8))
            is_jpeg = photos == "JPEG" and label == "RealPhotos"
            image.save(
                tmp_path / label / f"{number:02}.{'jpg' if is_jpeg else 'bmp'}", **({"quality": 60} if is_jpeg else {})
            )
    return manifest.scan(tmp_path, val_fraction=0.1, test_fraction=0.6, progress=False)


def swept(formula, table, out):
    test = table[table["split"] == "test"]
    return robustness.sweep({"stage1": Planted(formula)}, test, CONDITIONS, out)["stage1"]


@pytest.mark.parametrize("photos", ["BMP", "JPEG"])
def test_a_detector_that_answers_by_file_format_is_exposed(tmp_path, photos):
    """Where all files are alike JPEG moves it; where photos alone are JPEGs it is perfect until the blocks are gone."""
    table = folder(tmp_path, photos)
    found = audit.probe(swept(jpeg_is_real, table, tmp_path / "run"))
    if photos == "BMP":
        assert found.loc["jpeg 60", "named"] and found.loc["jpeg 60", "moved"] > 0.3
        assert audit.verdict(found).startswith("Named: this detector answers by the codec. It moves with jpeg 60")
    else:
        assert found["clean"].iloc[0] > 0.99 and found["named"].sum() >= 2
        assert found.loc[["blur 1", "resample 0.8 bilinear"], "named"].all()
        assert "Named" in audit.verdict(found) and "resample 0.8 bilinear (AUC -" in audit.verdict(found)


@pytest.mark.parametrize("photos", ["BMP", "JPEG"])
def test_an_honest_detector_is_not_accused_though_its_traces_are_fragile(tmp_path, photos):
    found = audit.probe(swept(checkerboard_is_fake, folder(tmp_path, photos), tmp_path / "run"))
    assert found["clean"].iloc[0] > 0.99 and found.loc["blur 1", "fakes_only"] < 0.8
    assert not found["named"].any() and audit.verdict(found).startswith("Not named: under none of the 4 conditions")


def conditions(**shifts):
    """Noisy scores as they are, and under jpeg 50 with a shift for photos and one for fakes."""
    plain = noisy_table()
    shift = plain["label"].eq("RealPhotos").map({True: shifts["photos"], False: shifts["fakes"]})
    after = plain.assign(degradation="jpeg", level=50.0, logit_fake=plain["logit_fake"] + shift)
    return pd.concat([plain, after], ignore_index=True)


def test_the_four_areas_are_those_of_mixed_tables():
    table = conditions(photos=-1.0, fakes=-0.5)
    plain, after = (part for _, part in table.groupby("degradation", sort=False))
    photos = plain["label"] == "RealPhotos"
    mixes = {
        "clean": plain,
        "photos_only": pd.concat([after[photos.to_numpy()], plain[~photos]]),
        "fakes_only": pd.concat([plain[photos], after[~photos.to_numpy()]]),
        "both": after,
    }
    row = audit.probe(table[::-1]).loc["jpeg 50"]  # whichever condition comes first
    for name, mix in mixes.items():
        assert row[name] == pytest.approx(roc_auc_score(mix["label"] != "RealPhotos", mix["logit_fake"]))
    moves = [row["photos_only"] - row["clean"], row["both"] - row["fakes_only"]]
    assert row["moved"] == pytest.approx(max(moves, key=abs))


def test_photos_of_few_groups_are_not_tested():
    table = conditions(photos=-2.0, fakes=-2.0)
    number = pd.factorize(table["path"])[0]
    table["group"] = np.where(table["label"] == "RealPhotos", number % 7, 7 + number)
    found = audit.probe(table)
    assert not found["named"].any() and audit.verdict(found).startswith("Not tested: there are too few groups")


@pytest.mark.parametrize(
    ("photos", "fakes", "named"),
    [(0.0, 0.0, False), (0.0, -2.0, False), (-2.0, -2.0, True), (2.0, 2.0, True), (2.0, 0.0, True), (0.2, 0.2, False)],
)
def test_only_what_moves_the_photos_is_named(photos, fakes, named):
    row = audit.probe(conditions(photos=photos, fakes=fakes)).loc["jpeg 50"]
    assert row["named"] == named and row["moved"] * -photos >= 0


def test_the_verdict_names_codecs_first_and_counts_the_rest():
    names = ["jpeg 50", "webp 50", "jpeg 30", "blur 1 + jpeg 75", "blur 2", "social 70", "noise 0.02"]
    moved = [0.2, -0.3, 0.25, 0.4, -0.6, -0.5, 0.0]
    table = pd.DataFrame({"moved": moved, "moved_low": 0.0, "named": [True] * 6 + [False]}, index=names)
    text = audit.verdict(table)
    codecs = "webp 50 (AUC -0.30), jpeg 30 (AUC +0.25), jpeg 50 (AUC +0.20)"
    assert f"Named: this detector answers by the codec. It moves with {codecs}." in text
    # of which the blur, or what a social network shrinks by, may be the reason
    others = "blur 2 (AUC -0.60), social 70 (AUC -0.50), blur 1 + jpeg 75 (AUC +0.40)"
    assert f"It also moves with how an image was processed: {others}." in text
    for name in ("blur 2", "social 70"):
        assert audit.verdict(table.loc[[name]]).startswith("Named: this detector's answer moves with how")
    untested = table.assign(moved_low=np.nan, named=False)  # as `probe` gives it of fewer than eight groups
    assert audit.verdict(untested).startswith("Not tested: there are too few groups of test images for an interval")
