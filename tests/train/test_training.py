"""Training: fixed seeds, resume equal to no interruption, early stopping, atomic checkpoints, and real learning."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dfd import config
from dfd.config import CHECKPOINTS
from dfd.data import crops, manifest
from dfd.evaluate import scores as scores_module
from dfd.inference.stage import Stage, save_checkpoint
from dfd.train import kept, loop, stage2

FITS = {"stage1": (stage2.fit_stage1, config.Stage1), "stage2": (stage2.fit_stage2, config.Stage2)}
BACKBONES = {"stage1": "test_resnet.r160_in1k", "stage2": "test_efficientnet.r160_in1k"}


@pytest.fixture
def table(tiny_data, tmp_path):
    return manifest.scan(tiny_data, tmp_path / "scan", progress=False)


def configured(stage, out, data, **changes):
    small = {"backbone": BACKBONES[stage], "pretrained": False, "crop_size": 32, "num_epochs": 3, "batch_size": 8}
    wide = {"unet_width": 4} if stage == "stage2" else {"launderer_width": 4, "adversarial_every": 2}
    options = {**small, **wide, "workers": 0, "images_per_epoch": 16, "lr_gc": 1e-3, **changes}
    return FITS[stage][1](data=str(data), out=str(out), **options)


def weights(out, stage):
    return torch.load(out / CHECKPOINTS[stage], weights_only=True)["weights"]


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_same_seed_gives_the_same_first_loss(stage, table, tiny_data, tmp_path):
    losses = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        cfg = configured(stage, tmp_path / name, tiny_data, num_epochs=1, seed=seed)
        losses[name] = FITS[stage][0](table, cfg)["train_loss"][0]
    assert losses["a"] == losses["b"] != losses["c"]


@pytest.mark.parametrize(("stage", "workers"), [("stage1", 0), ("stage2", 0), ("stage1", 1)])
def test_resumed_training_equals_an_uninterrupted_one(stage, workers, table, tiny_data, tmp_path, monkeypatch):
    fit = FITS[stage][0]
    whole = fit(table, configured(stage, tmp_path / "whole", tiny_data))

    end_epoch = loop.Session.end_epoch

    def killed_after_first(self, epoch, *rest, **options):
        if epoch == 1:
            raise KeyboardInterrupt
        end_epoch(self, epoch, *rest, **options)

    monkeypatch.setattr(loop.Session, "end_epoch", killed_after_first)
    with pytest.raises(KeyboardInterrupt):
        fit(table, configured(stage, tmp_path / "resumed", tiny_data, workers=workers))
    monkeypatch.setattr(loop.Session, "end_epoch", end_epoch)
    resumed = fit(table, configured(stage, tmp_path / "resumed", tiny_data, workers=workers))

    pd.testing.assert_frame_equal(whole.drop(columns="seconds"), resumed.drop(columns="seconds"), check_exact=True)
    one, other = weights(tmp_path / "whole", stage), weights(tmp_path / "resumed", stage)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not (tmp_path / "resumed" / f"train_{stage}.pt").exists()


def test_batches_hang_neither_on_workers_nor_on_the_batches_before(table, tiny_data, tmp_path):
    train = table[table["is_fake"] & (table["split"] == "train")]
    found = {}
    for name, changes in {"0": {}, "2": {"workers": 2}, "seed": {"seed": 1}}.items():
        session = loop.Session("stage2", table, configured("stage2", tmp_path, tiny_data, **changes), ["a", "b"])
        carriers = crops.CarrierBuilder(table, tiny_data, "train", 32, session.degrade)
        data = crops.GFDTwoViewDataset(train, tiny_data, ["BigGAN", "ProGAN"], 32, session.degrade, 90, carriers)
        session.losses = {"model": [0.0]}
        found[name] = list(session.batches(data, train, binary=False))
        assert len(found[name]) == 2
    for alone, split in zip(found["0"], found["2"], strict=True):
        assert all(torch.equal(alone[name], split[name]) for name in alone)
    assert not torch.equal(found["0"][0]["view1"], found["seed"][0]["view1"])
    later = next(iter(session._loader(data, session.plan(0, train, binary=False)[1:])))
    assert all(torch.equal(later[name], found["seed"][1][name]) for name in later)
    assert session.plan(0, train, False) != session.plan(1, train, False)


def test_finished_training_is_kept_and_changed_parameters_train_anew(table, tiny_data, tmp_path, capsys):
    first = stage2.fit_stage1(table, configured("stage1", tmp_path, tiny_data, num_epochs=1))
    stamp = (tmp_path / CHECKPOINTS["stage1"]).stat().st_mtime_ns
    again = stage2.fit_stage1(table, configured("stage1", tmp_path, tiny_data, num_epochs=1))
    assert (tmp_path / CHECKPOINTS["stage1"]).stat().st_mtime_ns == stamp
    pd.testing.assert_frame_equal(first, again)
    assert "already trained" in capsys.readouterr().out
    stage2.fit_stage1(table, configured("stage1", tmp_path, tiny_data, num_epochs=1, lr_gc=2e-3))
    assert (tmp_path / CHECKPOINTS["stage1"]).stat().st_mtime_ns != stamp


def test_a_finished_training_leaves_the_state_of_another_alone(tmp_path, capsys):
    one, other = (kept.Files("stage1", tmp_path, key) for key in ("one", "other"))
    one.save_best({"crops": 1, "crop_mode": "five", "history": [{"epoch": 1}]})
    one.finish([{"epoch": 1}])
    other.save_state({"steps": 3})
    assert one.finished(1, "five") == [{"epoch": 1}] and other.state()["steps"] == 3
    one.save_state({"steps": 4})
    assert one.finished(1, "five") and not one.state_path.exists()


@pytest.mark.parametrize(
    "name", ["checkpoints", "decoded", "evaluation", "images", "learners", "stage", "training", "perceptual"]
)
def test_a_training_goes_on_only_with_the_code_that_it_began_with(name, monkeypatch):
    before, read = kept.key("stage1", "a", {}), Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, *given: read(path, *given) + "#" * (path.stem == name))
    assert kept.key("stage1", "a", {}) != before


def test_early_stopping_counts_epochs_without_a_better_score(table, tiny_data, tmp_path, capsys):
    cfg = configured("stage1", tmp_path, tiny_data, num_epochs=9, patience=2, lr_gc=1e-12, images_per_epoch=8)
    session = loop.Session("stage1", table, cfg, ["real", "fake"])
    scores = iter([0.6, 0.7, 0.65, 0.7, 0.9])
    for epoch in session.epochs():
        session.losses["model"].append(1.0)
        session.end_epoch(epoch, {"val_loss": 1.0, "val_auc": 0.0}, score=next(scores))
    assert len(session.history) == 4 and session.best[2] == 2
    assert "stopped early" in capsys.readouterr().out


def test_checkpoint_holds_what_the_design_says(table, tiny_data, tmp_path):
    stage2.fit_stage2(table, configured("stage2", tmp_path, tiny_data, num_epochs=1))
    content = torch.load(tmp_path / CHECKPOINTS["stage2"], weights_only=True)
    assert content["classes"] == ["BigGAN", "ProGAN"]
    assert content["preprocessing"] == {"crop_size": 32, "equalise_quality": 90, "mean": None, "std": None}
    assert content["manifest_hash"] == manifest.digest(table)
    assert content["config"]["unet_width"] == 4 and content["finished"]
    assert {"weights", "threshold", "temperature", "metrics"} <= set(content)


def test_failed_write_leaves_the_previous_checkpoint_whole(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    save_checkpoint({"epoch": 1}, path)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_missing_classes_are_named(table, tiny_data, tmp_path):
    photos = table[~table["is_fake"]]
    with pytest.raises(ValueError, match="photos and fakes"):
        stage2.fit_stage1(photos, configured("stage1", tmp_path, tiny_data))
    one = table[table["label"] != "BigGAN"]
    with pytest.raises(ValueError, match="at least two generators"):
        stage2.fit_stage2(one, configured("stage2", tmp_path, tiny_data))
    gone = table[(table["label"] != "BigGAN") | (table["split"] != "val")]
    with pytest.raises(ValueError, match="'val' has no image of BigGAN"):
        stage2.fit_stage2(gone, configured("stage2", tmp_path, tiny_data))


def test_a_loss_that_is_not_finite_stops_with_a_remedy(table, tiny_data, tmp_path):
    session = loop.Session("stage1", table, configured("stage1", tmp_path, tiny_data), ["real", "fake"])
    with pytest.raises(ValueError, match="lower lr_gc"):
        session.step(torch.tensor(float("nan"), requires_grad=True))


def test_a_training_out_of_time_goes_on_when_given_more(table, tiny_data, tmp_path, capsys):
    short = stage2.fit_stage1(table, configured("stage1", tmp_path, tiny_data, minutes=1e-6))
    longer = stage2.fit_stage1(table, configured("stage1", tmp_path, tiny_data))
    assert len(short) == 1 and len(longer) == 3
    assert "going on after epoch 1" in capsys.readouterr().out


def test_the_adversaries_take_their_turns(table, tiny_data, tmp_path):
    history = stage2.fit_stage1(table, configured("stage1", tmp_path / "with", tiny_data, num_epochs=1))
    adversaries = {"launderer_loss", "discriminator_loss", "adversarial_loss", "evasion_loss", "perceptual_loss"}
    assert adversaries <= set(history)
    alone = configured("stage1", tmp_path / "alone", tiny_data, num_epochs=1, adversarial=False)
    assert not adversaries & set(stage2.fit_stage1(table, alone))
    blind = configured("stage1", tmp_path / "blind", tiny_data, num_epochs=1, perceptual_weight=0.0)
    assert "perceptual_loss" not in stage2.fit_stage1(table, blind)


def test_a_step_changes_the_named_network_alone(table, tiny_data, tmp_path):
    cfg = configured("stage1", tmp_path, tiny_data)
    session = loop.Session("stage1", table, cfg, ["real", "fake"])
    adversary = stage2.launderer_of(session, cfg)
    for _ in session.epochs():
        break
    photos, fakes = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)
    losses = {
        "discriminator": lambda: adversary.discriminator_loss(photos, fakes),
        "launderer": lambda: sum(adversary.generator_losses(fakes, session.model).values()),
        "model": lambda: session.model(fakes).mean(),
    }
    for trained, loss in losses.items():
        before = {name: [p.clone() for p in network.parameters()] for name, network in session.networks.items()}
        session.step(loss(), trained)
        for name, network in session.networks.items():
            pairs = zip(network.parameters(), before[name], strict=True)
            assert any(not torch.equal(a, b) for a, b in pairs) == (name == trained), (trained, name)


def test_the_kept_weights_are_the_moving_average(table, tiny_data, tmp_path):
    session = loop.Session("stage1", table, configured("stage1", tmp_path, tiny_data, ema=0.5), ["real", "fake"])
    session.losses = {"model": []}
    tracked = []
    for _ in range(4):
        session.step(session.model(torch.rand(2, 3, 32, 32)).square().mean())
        tracked.append(next(session.model.parameters()).detach().clone())
    expected = tracked[0]
    for count, weight in enumerate(tracked[1:], 1):
        decay = min(0.5, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(next(session.averaged.module.parameters()), expected)


def test_the_losses_of_stage_2_are_all_in_the_history(table, tiny_data, tmp_path):
    five = {f"{name}_loss" for name in ("source", "carried", "adversarial", "perceptual", "consistency")}
    history = stage2.fit_stage2(table, configured("stage2", tmp_path / "all", tiny_data, num_epochs=1))
    assert five | {"discriminator_loss"} <= set(history)
    one = history.iloc[0]
    assert one["train_loss"] > one["source_loss"] > 0
    fixed = configured("stage2", tmp_path / "fixed", tiny_data, num_epochs=1, extractor="highpass")
    assert five & set(stage2.fit_stage2(table, fixed)) == {"source_loss", "consistency_loss"}


def test_extractor_and_classifier_may_learn_in_turns(table, tiny_data, tmp_path, monkeypatch):
    cfg = configured("stage2", tmp_path, tiny_data, num_epochs=1, joint=False, carried_every=1, images_per_epoch=32)
    steps, step = [], loop.Session.step

    def watched(self, loss, name="model"):
        parts = {part: [p.clone() for p in self.networks[part].parameters()] for part in ("generator", "classifier")}
        step(self, loss, name)
        for part, before in parts.items():
            moved = any(not torch.equal(a, b) for a, b in zip(self.networks[part].parameters(), before, strict=True))
            assert moved == (part == name), (name, part)
        steps.append(name)

    monkeypatch.setattr(loop.Session, "step", watched)
    history = stage2.fit_stage2(table, cfg)
    assert steps == ["discriminator", "generator", "discriminator", "classifier"] * 2
    assert "train_loss" in history and "generator_loss" not in history


@pytest.mark.parametrize(("wrong", "message"), [("ProGAN", "at least two generators"), ("RealPhotos", "no real photo")])
def test_stage_2_names_what_is_missing(wrong, message, table, tiny_data, tmp_path):
    rest = table[table["label"] != wrong]
    with pytest.raises(ValueError, match=message):
        stage2.fit_stage2(rest, configured("stage2", tmp_path, tiny_data))


def textures(folder, names, rng):
    """40 photos, and fakes of two textures under the given names: checkerboard and stripes."""
    rows, columns = np.mgrid[:40, :40]
    kinds = {"RealPhotos": 0 * rows, names[0]: (rows + columns) % 2 * 2 - 1, names[1]: columns // 2 % 2 * 2 - 1}
    for label, texture in kinds.items():
        (folder / label).mkdir(parents=True)
        for number in range(40):
            small = Image.fromarray(rng.integers(40, 216, (5, 5, 3), dtype=np.uint8))
            pixels = np.asarray(small.resize((40, 40), Image.Resampling.BICUBIC), dtype=float) + 12 * texture[..., None]
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / label / f"{number:02}.png")
    return folder


def answers(table, out, folder):
    """Train stage 2 on the table; the names that its test images get, in the order of the table's test rows."""
    cfg = configured(
        "stage2", out, folder, num_epochs=5, images_per_epoch=64, lr_gc=3e-3, degrade=False, equalise_quality=95,
        perceptual_weight=0.0, crops=1,
    )  # fmt: skip
    stage2.fit_stage2(table, cfg)
    test = table[table["is_fake"] & (table["split"] == "test")]
    return test, scores_module.score(Stage.load(Path(cfg.out) / CHECKPOINTS["stage2"]), test)["prediction"].to_numpy()


@pytest.mark.slow
def test_swapped_folders_swap_the_answers_and_shuffled_labels_bring_chance(tmp_path):
    right = {}
    for names in (("ProGAN", "BigGAN"), ("BigGAN", "ProGAN")):
        folder = textures(tmp_path / names[0], names, np.random.default_rng(0))
        table = manifest.scan(folder, tmp_path / f"scan {names[0]}", test_fraction=0.4, progress=False)
        test, named = answers(table, tmp_path / f"run {names[0]}", folder)
        right[names] = (named == test["label"]).mean()
    assert min(right.values()) > 0.9, right  # the same pixels under the other name get the other name
    fakes = table.index[table["is_fake"]]
    shuffled = table.assign(label=table["label"].where(~table["is_fake"]))
    shuffled.loc[fakes, "label"] = np.random.default_rng(1).permutation(table.loc[fakes, "label"])
    shuffled.attrs = table.attrs
    test, named = answers(shuffled, tmp_path / "shuffled", folder)
    assert len(test) >= 28 and 0.25 < (named == test["label"]).mean() < 0.75


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "metric"), [("stage1", "val_auc"), ("stage2", "val_balanced_accuracy")])
def test_both_stages_learn_obvious_textures(stage, metric, table, tiny_data, tmp_path):
    cfg = configured(
        stage, tmp_path, tiny_data, num_epochs=8, images_per_epoch=96, lr_gc=3e-3, degrade=False, equalise_quality=95
    )
    assert FITS[stage][0](table, cfg)[metric].max() > 0.9


def test_carriers_are_loaded_only_where_they_are_put_on(table, tiny_data, tmp_path, monkeypatch):
    """And a batch without them has the views that it had beside them."""
    batches, losses = {}, stage2.attribution_losses

    def watched(session, disentangler, batch, cfg):
        assert ("carrier" in batch) >= (disentangler is not None)
        batches.setdefault(cfg.out, []).append(batch)
        return losses(session, disentangler, batch, cfg)

    monkeypatch.setattr(stage2, "attribution_losses", watched)
    plan = loop.Session.plan
    for name in ("spared", "always"):
        cfg = configured("stage2", tmp_path / name, tiny_data, num_epochs=1, images_per_epoch=48, carried_every=3)
        stage2.fit_stage2(table, cfg)
        monkeypatch.setattr(loop.Session, "plan", lambda self, *given: plan(self, *given[:3]))
    spared, always = batches.values()
    assert ["carrier" in batch for batch in spared] == [True, False, False] * 2
    assert all("carrier" in batch for batch in always)
    for one, other in zip(spared, always, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
