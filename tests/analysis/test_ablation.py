"""The ablation: which variants there are, and that each is trained, scored and kept."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score, roc_auc_score

from dfd import config
from dfd.analysis import ablation
from dfd.config import CHECKPOINTS
from dfd.core.runs import run_lock
from dfd.data import manifest
from dfd.degrade import parse_all
from dfd.evaluate import scores
from dfd.inference.decide import UNKNOWN, decide
from dfd.inference.files import update_checkpoint
from dfd.inference.stage import Stage

RGB = "baseline: classifier on rgb"


def small(stage, data, folder, **changes):
    """The config of a training that takes seconds, into folder / run."""
    quick = {"pretrained": False, "crop_size": 32, "num_epochs": 1, "batch_size": 8, "images_per_epoch": 16}
    return stage(data=str(data), out=str(folder / "run"), workers=0, **quick, **changes)


def test_each_variant_changes_one_thing(tmp_path):
    cfg = config.Stage1(out=str(tmp_path), representation="rgb")
    found = ablation.variants(cfg)
    changed = {
        name: {key for key in vars(cfg) if key != "out" and getattr(one, key) != getattr(cfg, key)}
        for name, one in found.items()
    }
    assert changed == {
        "as configured": set(),
        "without adversarial part": {"adversarial"},
        "without perceptual part": {"perceptual_weight"},
        "without degradation": {"degrade"},
        "highpass instead of rgb": {"representation"},
    }
    assert len({one.out for one in found.values()}) == len(found)


def test_what_is_off_already_is_not_left_out_again():
    found = ablation.variants(config.Stage1(adversarial=False, degrade=False))
    assert not {"without adversarial part", "without perceptual part", "without degradation"} & set(found)
    one_loss = dict.fromkeys(ablation.LOSSES, 0.0) | {"carried_weight": 1.0}  # left out, it is the source loss alone
    found = ablation.variants(config.Stage2(**one_loss))
    assert "without carried loss" in found and "source loss alone" not in found
    found = ablation.variants(config.Stage2(**config.profile("quick", "02_stage2_attribution")))
    assert list(found) == ["as configured", "without degradation", *map(ablation.BASELINE.format, ("highpass", "rgb"))]


def test_stage_2_is_compared_without_each_loss_and_with_its_baselines(tmp_path):
    cfg = config.Stage2(out=str(tmp_path))
    found = ablation.variants(cfg)
    off = {
        name: {k for k in vars(cfg) if k != "out" and getattr(one, k) != getattr(cfg, k)} for name, one in found.items()
    }
    weights = {f"{name}_weight" for name in ("carried", "adversarial", "perceptual", "consistency")}
    assert off == {
        "as configured": set(),
        **{f"without {name.removesuffix('_weight')} loss": {name} for name in weights},
        "source loss alone": weights,
        "without degradation": {"degrade"},
        "baseline: classifier on highpass": {"extractor"},
        "baseline: classifier on rgb": {"extractor"},
    }
    assert found["baseline: classifier on rgb"].extractor == "rgb"


@pytest.mark.slow
def test_stage_2_and_its_baselines_are_trained_and_scored(tiny_data, tmp_path, monkeypatch):
    table = manifest.scan(tiny_data, tmp_path / "scan", progress=False)
    cfg = small(config.Stage2, tiny_data, tmp_path, backbone="test_efficientnet.r160_in1k", unet_width=4)
    monkeypatch.setattr(ablation, "CONDITIONS", parse_all(["jpeg 50"]))
    some = {name: one for name, one in ablation.variants(cfg).items() if name in ("as configured", RGB)}
    monkeypatch.setattr(ablation, "variants", lambda cfg: some)
    found = ablation.run(table, cfg)
    assert list(found["variant"].unique()) == ["as configured", RGB]
    assert {"accuracy", "accuracy_low", "balanced_accuracy", "recall ProGAN", "recall BigGAN"} <= set(found)
    test = table[table["is_fake"] & (table["split"] == "test")]
    for row in found.to_dict("records"):
        trained = Stage.load(Path(some[row["variant"]].out) / CHECKPOINTS["stage2"])
        degraded = () if row["degradation"] == "as it is" else ("jpeg", 50)
        logits = scores.score(trained, test, *degraded)[["logit_BigGAN", "logit_ProGAN"]].to_numpy()
        named = np.array(["BigGAN", "ProGAN"])[logits.argmax(1)]
        assert row["accuracy"] == pytest.approx(accuracy_score(test["label"], named))
        assert row["recall ProGAN"] == pytest.approx(np.mean(named[test["label"] == "ProGAN"] == "ProGAN"))


@pytest.mark.slow
def test_every_variant_is_trained_scored_and_kept(tiny_data, tmp_path, monkeypatch, capsys):
    table = manifest.scan(tiny_data, tmp_path / "scan", progress=False)
    cfg = small(config.Stage1, tiny_data, tmp_path, backbone="test_resnet.r160_in1k", launderer_width=4, track="none")
    monkeypatch.setattr(ablation, "CONDITIONS", parse_all(["jpeg 50"]))
    with run_lock(cfg.out):  # as `train` holds it; no tracker makes the variants' folders
        first = ablation.run(table, cfg)
    assert list(first["variant"].unique()) == list(ablation.variants(cfg))
    assert set(first["degradation"]) == {"as it is", "JPEG 50"}
    assert {"auc", "auc_low", "auc_high", "accuracy", "auc ProGAN", "auc BigGAN"} <= set(first)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "run" / "ablation_stage1.csv"), first)
    settings = torch.load(
        tmp_path / "run" / "ablation_stage1" / "rgb_instead_of_highpass" / CHECKPOINTS["stage1"], weights_only=True
    )["config"]
    assert settings["representation"] == "rgb"
    monkeypatch.setattr("dfd.train.loop.Trainer.step", None)  # would fail if anything were trained again
    pd.testing.assert_frame_equal(ablation.run(table, cfg), first)
    found = partial(ablation.trained, table, tmp_path / "run", "stage1", ablation.NO_ADVERSARIES)
    assert found() is not None
    update_checkpoint(tmp_path / "run" / CHECKPOINTS["stage1"], config=settings | {"batch_size": 9})
    assert found() is None and "trained with other batch_size" in capsys.readouterr().out


@pytest.mark.slow
def test_each_generator_is_left_out_in_turn(three_generators, tmp_path):
    table = manifest.scan(three_generators, tmp_path / "scan", progress=False)
    cfg = small(
        config.Stage2, three_generators, tmp_path, backbone="test_efficientnet.r160_in1k", unet_width=4, crops=1,
        track="none",
    )  # fmt: skip
    with run_lock(cfg.out):
        found = ablation.leave_out(table, cfg)
    assert found["left_out"].tolist() == ["BigGAN", "ProGAN", "StyleGAN2"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "run" / "left_out.csv"), found)
    own = shutil.copy(tmp_path / "run/left_out/ProGAN" / CHECKPOINTS["stage2"], tmp_path / "run")
    assert ablation.left_out_fits(table, cfg.out) and not ablation.left_out_fits(table.iloc[1:], cfg.out)
    update_checkpoint(Path(own), config=torch.load(own)["config"] | {"batch_size": 9})
    assert not ablation.left_out_fits(table, cfg.out) and not ablation.left_out_fits(table, tmp_path)
    fakes = table[table["is_fake"]]
    for row in found.to_dict("records"):
        name = row["left_out"]
        stage = Stage.load(tmp_path / "run" / "left_out" / name / CHECKPOINTS["stage2"])
        judged = scores.score(stage, fakes)
        unknown, strange = judged["label"] == name, judged["ood_score"]
        own = unknown & (judged["split"] == "test")
        for column, split in {"auroc": "test", "auroc_val": "val"}.items():
            asked = own | ~unknown & (judged["split"] == split)
            assert row[column] == pytest.approx(roc_auc_score(unknown[asked], strange[asked]))
        assert row["accepted"] == pytest.approx(np.mean(strange[own] <= stage.ood_threshold))
        assert name not in stage.classes and len(stage.classes) == 2
        assert stage.ood_threshold < 2 and decide([[1e6, 0.0]], stage, [2.0]).prediction == UNKNOWN


def test_two_generators_are_too_few_to_leave_one_out(tiny_data, tmp_path):
    table = manifest.scan(tiny_data, tmp_path / "scan", progress=False)
    with pytest.raises(ValueError, match="three generators, the data has BigGAN, ProGAN"):
        ablation.leave_out(table, config.Stage2(data=str(tiny_data), out=str(tmp_path / "run")))
