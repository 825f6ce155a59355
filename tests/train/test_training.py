"""Training: fixed seeds, early stopping, what a checkpoint holds, which network learns from what, and real learning."""

import math
import re
import shutil
import time

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from trainings import BACKBONES, FITS, configured, fit_one_epoch

from dfd import config
from dfd.analysis import fingerprint
from dfd.config import CHECKPOINTS
from dfd.core import read_json, write_json
from dfd.data import crops, manifest
from dfd.degrade import RandomDegrade
from dfd.degrade.operators import as_float
from dfd.evaluate import scores as scores_module
from dfd.inference import decide, save_checkpoint, update_checkpoint
from dfd.inference.files import read_content
from dfd.inference.stage import Stage
from dfd.train import fit, fit_stage1, fit_stage2, loop, stage1, stage2

CLASSES = {"stage1": ("RealPhotos", "ProGAN"), "stage2": ("BigGAN", "ProGAN")}


@pytest.fixture
def table(tiny_data, tmp_path):
    return manifest.scan(tiny_data, tmp_path / "scan", progress=False)


def trainer_of(table, cfg):
    """A trainer of stage 1 with its detector and nothing else."""
    trainer = loop.Trainer("stage1", table, cfg, ["real", "fake"])
    train = table[table["split"] == "train"]
    trainer.load("train", crops.RealFakeDataset(train, cfg.data, cfg.crop_size), crops.EpochSampler(train, cfg, True))
    trainer.add("detector", trainer.build_model(), cfg.lr_gc)
    return trainer


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_same_seed_gives_the_same_first_loss_whatever_the_workers(stage, table, tiny_data, tmp_path):
    losses = {}
    for name, changes in {"a": {}, "b": {"workers": 2}, "c": {"seed": 1}}.items():
        losses[name] = fit(table, configured(stage, tmp_path / name, tiny_data, num_epochs=1, **changes))["train_loss"][
            0
        ]
    assert losses["a"] == losses["b"] != losses["c"]


def test_each_process_has_photos_and_fakes(table, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 8)
    with pytest.raises(ValueError, match="batch_size 8 is too few: each of 8 processes takes two images"):
        fit(table, configured("stage1", tmp_path, tiny_data, batch_size=8))


def test_finished_training_is_kept_and_changed_parameters_train_anew(table, tiny_data, tmp_path, capsys):
    cfg, shown = configured("stage1", tmp_path, tiny_data, num_epochs=2), []
    first = fit(table, cfg, lambda history: shown.append(len(history)))
    assert shown == [1, 2]
    path = tmp_path / config.CHECKPOINTS["stage1"]
    update_checkpoint(path, operating_points={"balanced": 0.4})
    write_json(tmp_path / "metrics.json", {"stage1": {"test": {}}, "stage2": {"test": {}}})
    before = path.read_bytes()
    fit(table, cfg)
    assert path.read_bytes() == before  # by which `run` knows that it keeps what was made from it
    again = fit(table, cfg.model_copy(update={"crops": 3}), lambda history: shown.append(len(history)))
    pd.testing.assert_frame_equal(first, again)
    assert shown == [1, 2, 2] and "already trained" in capsys.readouterr().out
    assert Stage.load(path).crops == 3 and not Stage.load(path).operating_points  # which were of another number
    assert read_json(tmp_path / "metrics.json").keys() == {"stage1", "stage2"}
    fit(table, configured("stage1", tmp_path, tiny_data, num_epochs=1, lr_gc=2e-3))
    assert "already trained" not in capsys.readouterr().out
    assert read_json(tmp_path / "metrics.json").keys() == {"stage2"}  # stage 1's were of the weights before


def test_a_finished_training_leaves_the_state_of_another_alone(table, tiny_data, tmp_path):
    cfg = configured("stage1", tmp_path, tiny_data, num_epochs=1)
    fit(table, cfg)
    key = torch.load(tmp_path / config.CHECKPOINTS["stage1"], weights_only=True)["key"]
    for of, stays in (("another", True), (key, False)):
        save_checkpoint({"key": of}, tmp_path / "train_stage1.pt")
        fit(table, cfg)
        assert (tmp_path / "train_stage1.pt").exists() == stays


def test_code_that_changed_trains_anew(table, tiny_data, tmp_path, monkeypatch, capsys):
    cfg = configured("stage1", tmp_path, tiny_data, num_epochs=1)
    fit(table, cfg)
    monkeypatch.setattr("dfd.train.checkpoint.code", lambda: "other")
    fit(table, cfg)
    assert "already trained" not in capsys.readouterr().out


def test_the_state_of_another_training_is_not_used(table, tiny_data, tmp_path, capsys):
    fit_one_epoch(table, configured("stage1", tmp_path, tiny_data))
    assert (tmp_path / "train_stage1.pt").exists()
    history = fit(table, configured("stage1", tmp_path, tiny_data, num_epochs=1, lr_gc=2e-3))
    assert "train_stage1.pt belongs to other data or parameters; starting afresh" in capsys.readouterr().out
    assert len(history) == 1


@pytest.mark.parametrize("gone", [True, False])
def test_a_state_without_the_best_file_of_its_training_is_not_used(gone, table, tiny_data, tmp_path, capsys):
    """Heads of profile clip leave it where it is; and who is told to delete a damaged file does so."""
    fit_one_epoch(table, configured("stage1", tmp_path, tiny_data))
    best = tmp_path / CHECKPOINTS["stage1"]
    key = read_content(best)["key"]
    best.unlink() if gone else save_checkpoint(read_content(best) | {"key": "another"}, best)
    assert len(fit(table, configured("stage1", tmp_path, tiny_data))) == 3
    assert "starting afresh" in capsys.readouterr().out
    assert read_content(best)["key"] == key and len(read_content(best)["history"]) >= 1


def test_damaged_metrics_end_a_training_before_it_begins(table, tiny_data, tmp_path, capsys):
    """What the first best epoch would find is found now, not after the hours that an epoch takes."""
    (tmp_path / "metrics.json").write_text('{"stage1": ')
    with pytest.raises(ValueError, match=r"metrics.json is damaged .*; take a copy, or delete it"):
        fit(table, configured("stage1", tmp_path, tiny_data))
    assert "epoch 1" not in capsys.readouterr().out and not (tmp_path / CHECKPOINTS["stage1"]).exists()


def test_a_stopped_training_goes_on(table, tiny_data, tmp_path, capsys):
    fit_one_epoch(table, configured("stage1", tmp_path, tiny_data))
    assert len(fit(table, configured("stage1", tmp_path, tiny_data))) == 3
    assert "going on after epoch 1" in capsys.readouterr().out


def test_early_stopping_counts_epochs_without_a_better_score(table, tiny_data, tmp_path, capsys):
    cfg = configured("stage1", tmp_path, tiny_data, num_epochs=9, patience=2, images_per_epoch=8)
    trainer, scores = trainer_of(table, cfg), iter([0.6, 0.7, 0.65, 0.7, 0.9])
    with trainer.running():
        for _ in trainer.epochs():
            trainer.losses["train"] = [1.0]
            trainer.end_epoch(next(scores), 1.0, pd.Series(dtype=bool))
    assert len(trainer.history) == 4 and trainer.best[2] == 2
    assert "stopped early" in capsys.readouterr().out


def test_averaged_weights_of_the_best_epoch_are_kept_of_equal_scores_the_lower_loss_and_each_has_its_own_crops(
    table, tiny_data, tmp_path
):
    trainer, weights, drawn = trainer_of(table, configured("stage1", tmp_path, tiny_data, num_epochs=4)), [], []
    results = iter([(0.7, 0.9), (0.7, 0.5), (0.7, 0.6), (0.6, 0.1)])
    with trainer.running():
        for _ in trainer.epochs():
            for _, (images, _) in trainer.batches():
                trainer.step("detector", trainer.model(images).square().mean())
                drawn.append(images.mean().item())
            weights.append({name: value.clone() for name, value in trainer.averaged.module.named_parameters()})
            trainer.end_epoch(*next(results), pd.Series(dtype=bool))
    kept = torch.load(tmp_path / config.CHECKPOINTS["stage1"], weights_only=True)
    assert kept["metrics"]["val"]["epoch"] == 2 and len(set(drawn)) == 8
    assert all(torch.equal(kept["weights"][name], value) for name, value in weights[1].items())


def test_a_state_is_due_after_the_minutes_that_were_asked_for(table, tiny_data, tmp_path):
    trainer = trainer_of(table, configured("stage1", tmp_path, tiny_data, checkpoint_minutes=2))
    for seconds, is_due in ((90, False), (150, True)):
        trainer.saved = time.monotonic() - seconds
        trainer._pause()
        assert trainer.checkpoint.state_path.exists() == is_due


def test_an_epoch_tells_its_seconds_and_those_that_are_left_with_what_it_took_before_a_stop(
    table, tiny_data, tmp_path, capsys
):
    def ended(trainer):
        trainer.losses["train"] = [1.0]
        trainer.end_epoch(0.5, 1.0, pd.Series(dtype=bool))

    cfg = configured("stage1", tmp_path, tiny_data, num_epochs=3)
    with (trainer := trainer_of(table, cfg)).running():
        epochs = trainer.epochs()
        next(epochs)
        trainer.began -= 1000
        ended(trainer)
        next(epochs)
        trainer.step_number, trainer.began = 1, trainer.began - 2000
        trainer._save_state()
    with (trainer := trainer_of(table, cfg)).running():
        for _ in trainer.epochs():
            trainer.began -= 300
            ended(trainer)
    lines = re.findall(r"\((\d+) s, at most (\d+) s left\)", capsys.readouterr().out)
    expected = [(1000, 2000), (2300, 2300), (300, 0)]
    assert np.allclose(np.array(lines, float), expected, atol=60)
    assert np.allclose([row["seconds"] for row in trainer.history], [seconds for seconds, _ in expected], atol=30)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_each_network_learns_at_its_own_rate_from_images_as_the_config_wants_them(
    stage, table, tiny_data, tmp_path, monkeypatch
):
    trainers, loaded, load = [], {}, loop.Trainer.load

    def ready(self):
        trainers.append(self)
        raise KeyboardInterrupt

    def watched(self, name, data, *rest):
        loaded[name] = data
        load(self, name, data, *rest)

    monkeypatch.setattr(loop.Trainer, "load", watched)
    monkeypatch.setattr(loop.Trainer, "running", ready)
    for wanted in (True, False):
        changes = {"lr_d": 0.25, "weight_decay": 0.125, "degrade": wanted, "equalise": wanted}
        with pytest.raises(KeyboardInterrupt):
            fit(table, configured(stage, tmp_path, tiny_data, **changes))
        for part in getattr(loaded["train"], "datasets", [loaded["train"]]):
            assert part.equalise_quality == (90 if wanted else None)
            given = getattr(part.degrade, "p_clean", None), getattr(part.degrade, "smallest", None)
            assert given == ((stage1.CLEAN, 32) if wanted else (None, None))
        for name, network in trainers[-1].networks.items():
            told = network.optimizer.defaults
            assert (told["lr"], told["weight_decay"]) == (0.25 if name == "discriminator" else 1e-3, 0.125)
    if stage == "stage2":  # photos that training put nothing on
        photos = table["path"][~table["is_fake"] & table["split"].eq("val")]
        assert loaded["val"].carriers.paths == [tiny_data / path for path in photos]


def test_the_learning_rate_warms_up_and_falls_to_a_hundredth(table, tiny_data, tmp_path):
    cfg = configured("stage1", tmp_path, tiny_data, num_epochs=10, images_per_epoch=160, lr_gc=0.5)  # 200 steps
    network, rates = trainer_of(table, cfg).networks["detector"], []
    for _ in range(200):
        rates.append(network.optimizer.param_groups[0]["lr"])
        network.optimizer.step()
        network.schedule.step()
    assert rates[0] == pytest.approx(0.005) and rates[10] == pytest.approx(0.5) == pytest.approx(max(rates))
    assert rates[105] == pytest.approx(0.5 * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * 95 / 190))), rel=1e-3)
    assert rates[-1] == pytest.approx(0.005, rel=0.05)


@pytest.mark.parametrize(("images", "every"), [(40, 4), (56, 3), (64, 4)])
def test_no_learning_rate_rises_again_whatever_the_batches_that_a_network_sits_out(
    images, every, table, tiny_data, tmp_path
):
    cfg = configured("stage1", tmp_path, tiny_data, num_epochs=12, images_per_epoch=images, lr_gc=0.5)
    trainer, rates = trainer_of(table, cfg), []
    trainer.add("launderer", torch.nn.Linear(1, 1), 0.5, every=every)
    network = trainer.networks["launderer"]
    for _ in range(12):
        for step in range(images // 8):
            if step % every == 0:
                rates.append(network.optimizer.param_groups[0]["lr"])
                network.optimizer.step()
                network.schedule.step()
    top = rates.index(max(rates))
    assert rates[top:] == sorted(rates[top:], reverse=True) and rates[-1] < 0.06 * 0.5


def test_a_training_belongs_to_the_sources_that_its_images_were_from(table, tiny_data, tmp_path, capsys):
    cfg = configured("stage1", tmp_path, tiny_data, num_epochs=1)
    table.attrs["root"] = str(shutil.copytree(tiny_data, tmp_path / "data"))
    rows = pd.DataFrame({"file": table["path"], "source": "one"})
    for sources, is_kept in ((["one"] * 36, False), (["one"] * 36, True), (["two"] + ["one"] * 35, False)):
        rows.assign(source=sources).to_csv(tmp_path / "provenance.csv", index=False)
        fit(table, cfg)
        assert ("already trained" in capsys.readouterr().out) == is_kept


def test_a_damaged_checkpoint_is_named_with_what_to_do(table, tiny_data, tmp_path):
    (tmp_path / config.CHECKPOINTS["stage1"]).write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"best_real_fake_model.pt is damaged \(.{1,99}\); take a copy, or delete it"):
        fit(table, configured("stage1", tmp_path, tiny_data))


def test_the_kept_weights_are_the_moving_average(table, tiny_data, tmp_path):
    trainer, tracked = trainer_of(table, configured("stage1", tmp_path, tiny_data, ema=0.5)), []
    for _ in range(4):
        trainer.step("detector", trainer.model(torch.rand(2, 3, 32, 32)).square().mean())
        tracked.append(next(trainer.model.parameters()).detach().clone())
    expected = tracked[0]
    for count, weight in enumerate(tracked[1:], 1):
        decay = min(0.5, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(next(trainer.averaged.module.parameters()), expected)


def test_a_step_follows_the_weighted_sum_of_its_losses(table, tiny_data, tmp_path, monkeypatch):
    cfg = configured("stage1", tmp_path, tiny_data, evasion_weight=0.25, perceptual_weight=3.0)
    trainer, seen = trainer_of(table, cfg), []
    monkeypatch.setattr(trainer.accelerator, "backward", lambda loss, **_: seen.append(loss.item()) or loss.backward())
    parts = {
        name: trainer.model(torch.rand(2, 3, 32, 32)).square().mean() for name in ("evasion", "perceptual", "other")
    }
    parts["other"] = 1e6 * parts["other"]
    trainer.step("detector", parts)
    evasion, perceptual, other = (part.item() for part in parts.values())
    assert seen == [pytest.approx(0.25 * evasion + 3 * perceptual + other, rel=1e-5)]
    gradients = [weight.grad.norm() for weight in trainer.networks["detector"].parameters]
    assert torch.stack(gradients).norm() == pytest.approx(1, rel=1e-3)  # clipped


def test_laundered_fakes_are_taught_as_fakes_and_validation_has_a_degraded_half(
    table, tiny_data, tmp_path, monkeypatch
):
    asked, built = [], []

    def loss(logits, truth, smoothing=0.0):
        asked.append((truth.clone(), smoothing))
        return 0 * logits.sum() + 1

    class Watched(crops.RealFakeDataset):
        def __init__(self, rows, *args, **options):
            super().__init__(rows, *args, **options)
            built.append((rows["split"].iloc[0], getattr(options.get("degrade"), "p_clean", None)))

    monkeypatch.setattr(stage1, "real_fake_loss", loss)
    monkeypatch.setattr(stage1, "RealFakeDataset", Watched)
    weights = {"label_smoothing": 0.1, "adversarial_every": 1, "laundered_weight": 0.25}
    history = fit(table, configured("stage1", tmp_path, tiny_data, num_epochs=1, **weights))
    assert history["train_loss"].tolist() == [1.25]
    evasion = [truth for truth, smoothing in asked if smoothing == 0.0]
    taught = [truth for truth, smoothing in asked if smoothing == 0.1]
    assert evasion and not any(truth.any() for truth in evasion)  # the launderer wants: photos
    batches, laundered = taught[::2], taught[1::2]
    assert laundered and all(truth.all() for truth in laundered)
    assert all(0 < truth.mean() < 1 for truth in batches)
    assert built == [("train", stage1.CLEAN), ("val", None), ("val", RandomDegrade().p_clean)]


def test_a_loss_that_is_not_finite_stops_with_a_remedy(table, tiny_data, tmp_path):
    trainer = trainer_of(table, configured("stage1", tmp_path, tiny_data))
    with pytest.raises(ValueError, match="the loss of detector became nan; lower lr_gc"):
        trainer.step("detector", trainer.model(torch.rand(2, 3, 32, 32)).sum() * math.nan)


def test_checkpoint_holds_what_the_design_says(table, tiny_data, tmp_path):
    fit_stage2(table, configured("stage2", tmp_path, tiny_data, num_epochs=1))
    content = torch.load(tmp_path / config.CHECKPOINTS["stage2"], weights_only=True)
    assert content["classes"] == ["BigGAN", "ProGAN"]
    assert content["preprocessing"] == {"crop_size": 32, "equalise_quality": 90, "mean": None, "std": None}
    assert content["manifest_hash"] == manifest.digest(table)
    assert content["config"]["unet_width"] == 4 and "out" not in content["config"] and content["finished"]
    assert (content["threshold"], content["temperature"]) == (0.5, 1.0)  # until they are fitted
    pd.testing.assert_frame_equal(pd.DataFrame(content["history"]), pd.DataFrame([content["metrics"]["val"]]))
    learnt_from = table[table["is_fake"] & (table["split"] == "train")]
    features = Stage.load(tmp_path / config.CHECKPOINTS["stage2"]).backbone.get_classifier().in_features
    assert content["feature_bank"].shape == (len(learnt_from), features)
    fit_stage1(table, configured("stage1", tmp_path, tiny_data, num_epochs=1, crops=3, crop_mode="grid"))
    content = torch.load(tmp_path / config.CHECKPOINTS["stage1"], weights_only=True)
    normal = timm.get_pretrained_cfg(BACKBONES["stage1"])
    assert content["preprocessing"]["mean"] == pytest.approx(normal.mean)
    assert content["preprocessing"]["std"] == pytest.approx(normal.std)
    assert content["generators"] == ["BigGAN", "ProGAN"] and content["classes"] == ["real", "fake"]
    assert (content["crops"], content["crop_mode"]) == (3, "grid")


def test_missing_classes_are_named(table, tiny_data, tmp_path):
    photos = table[~table["is_fake"]]
    with pytest.raises(ValueError, match="'train' has no image of fake"):
        fit_stage1(photos, configured("stage1", tmp_path, tiny_data))
    gone = table[(table["label"] != "BigGAN") | (table["split"] != "val")]
    with pytest.raises(ValueError, match="'val' has no image of BigGAN"):
        fit_stage2(gone, configured("stage2", tmp_path, tiny_data))
    for label, message in (("ProGAN", "at least two generators"), ("RealPhotos", "no real photo")):
        with pytest.raises(ValueError, match=message):
            fit_stage2(table[table["label"] != label], configured("stage2", tmp_path, tiny_data))


@pytest.mark.parametrize(
    ("stage", "changes", "expected"),
    [
        ("stage1", {}, {"launderer", "discriminator", "adversarial", "evasion", "perceptual"}),
        ("stage1", {"adversarial": False}, set()),
        ("stage1", {"perceptual_weight": 0.0}, {"launderer", "discriminator", "adversarial", "evasion"}),
        ("stage2", {}, {"discriminator", "source", "carried", "adversarial", "perceptual", "consistency"}),
        ("stage2", {"extractor": "highpass"}, {"source", "consistency"}),
    ],
)
def test_each_part_that_learns_has_its_loss_in_the_history(stage, changes, expected, table, tiny_data, tmp_path):
    history = fit(table, configured(stage, tmp_path, tiny_data, num_epochs=1, **changes))
    parts = {name.removesuffix("_loss") for name in history if name.endswith("_loss")}
    assert parts - {"train", "val"} == expected


@pytest.mark.parametrize(
    ("stage", "changes", "expected"),
    [
        (
            "stage1",
            {"images_per_epoch": 32},
            ["discriminator", "launderer", "detector", "discriminator", "detector"] * 2,
        ),
        ("stage2", {"carried_every": 2}, ["discriminator", "model", "model"]),
    ],
)
def test_networks_take_their_turns_and_a_step_changes_one_alone(
    stage, changes, expected, table, tiny_data, tmp_path, monkeypatch
):
    steps, step = [], loop.Trainer.step

    def watched(self, name, loss):
        before = {n: [p.clone() for p in network.parameters] for n, network in self.networks.items()}
        step(self, name, loss)
        for other, network in self.networks.items():
            moved = any(not torch.equal(*pair) for pair in zip(network.parameters, before[other], strict=True))
            assert moved == (other == name), (name, other)
        steps.append(name)

    monkeypatch.setattr(loop.Trainer, "step", watched)
    fit(table, configured(stage, tmp_path, tiny_data, num_epochs=1, **changes))
    assert steps == expected


def test_carriers_are_loaded_only_where_they_are_put_on(table, tiny_data, tmp_path, monkeypatch):
    batches, put_on, losses = [], [], stage2.attribution_losses
    monkeypatch.setattr(stage2, "with_class_means", lambda residual, *_: 0 * residual + 0.25)
    monkeypatch.setattr(stage2, "equalised", lambda images, quality: images)
    read = loop.Trainer._read

    def watched(self, name, first=0):
        for batch in read(self, name, first):
            batches.append("carrier" in batch)
            yield batch

    monkeypatch.setattr(loop.Trainer, "_read", watched)

    def asked(*given, **options):
        put_on.append(bool(options))
        if options:
            assert torch.allclose(options["carried"], options["carriers"] + 0.25)
        return losses(*given, **options)

    monkeypatch.setattr(stage2, "attribution_losses", asked)
    fit(table, configured("stage2", tmp_path, tiny_data, num_epochs=1, images_per_epoch=48, carried_every=3))
    assert batches[:6] == put_on == [True, False, False] * 2


@pytest.mark.parametrize(("stage", "judge"), [("stage1", "RealFakeClassifier"), ("stage2", "Attribution")])
def test_all_networks_see_images_behind_one_codec(stage, judge, table, tiny_data, tmp_path, monkeypatch):
    """Nine levels in place of the JPEG that all crops and sums pass: in no batch do G, C, D and V see any others."""
    expected = {judge, "UNetRes", "PatchDiscriminator", "VGGPerceptual"}
    monkeypatch.setattr(crops, "jpeg", lambda images, quality: (8 * as_float(images)).round() / 8)
    seen, others = set(), set()

    def look(module, images):
        if (name := type(module).__name__) in expected:
            seen.add(name)
            if any((8 * x - (8 * x).round()).abs().max() > 1e-4 for x in images):
                others.add(name)

    handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        fit(table, configured(stage, tmp_path, tiny_data, num_epochs=1))
    finally:
        handle.remove()
    assert seen == expected and others == set()


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


def trained(table, out, **changes):
    """A stage trained for a few seconds on the table, stage 2 unless named, and its answers on the test images."""
    stage = changes.pop("stage", "stage2")
    quick = {"num_epochs": 4, "images_per_epoch": 64, "lr_gc": 3e-3, "degrade": False, "equalise_quality": 95}
    off = {"perceptual_weight": 0.0, "adversarial_weight": 0.0, "crops": 1}
    fit(table, configured(stage, out, table.attrs["root"], **{**quick, **off, **changes}))
    judge = Stage.load(out / config.CHECKPOINTS[stage])
    test = table[(table["split"] == "test") & (table["is_fake"] | (stage == "stage1"))]
    return judge, scores_module.score(judge, test)


@pytest.mark.slow
def test_swapped_folders_swap_the_answers_which_photos_carry_and_shuffled_labels_bring_chance(tmp_path):
    for names in (("ProGAN", "BigGAN"), ("BigGAN", "ProGAN")):
        folder = textures(tmp_path / names[0], names, np.random.default_rng(0))
        table = manifest.scan(folder, tmp_path / f"scan {names[0]}", test_fraction=0.4, progress=False)
        stage, found = trained(table, tmp_path / f"run {names[0]}", carried_every=2)
        assert (found["prediction"] == found["label"]).mean() > 0.9  # the same pixels under the other name
        carried = fingerprint.summary(fingerprint.carry(stage, table, limit=20))
        assert carried["carried"]["value"] > 0.9 and carried["carrier_alone"]["value"] < 0.7
    fakes = table.index[table["is_fake"]]
    shuffled = table.assign(label=table["label"].where(~table["is_fake"]))
    shuffled.loc[fakes, "label"] = np.random.default_rng(1).permutation(table.loc[fakes, "label"])
    shuffled.attrs = table.attrs
    _, found = trained(shuffled, tmp_path / "shuffled", carried_weight=0.0)
    assert len(found) >= 28 and 0.25 < (found["prediction"] == found["label"]).mean() < 0.75


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_where_the_subject_speaks_against_the_trace_the_trace_decides(stage, tmp_path):
    """Of the images to learn from three in four of a class are warm, or cold, and all have its texture; of the test
    images all have the other class's colour."""
    rng, (first, second) = np.random.default_rng(0), CLASSES[stage]
    rows, columns = np.mgrid[:40, :40]
    kinds = {first: columns // 2 % 2 * 2 - 1, second: (rows + columns) % 2 * 2 - 1}
    if stage == "stage2":
        kinds["RealPhotos"] = 0 * rows
    files = []
    for label, texture in kinds.items():
        (tmp_path / label).mkdir()
        for number in range(40):
            split = "train" if number < 20 else "val" if number < 28 else "test"
            warm = (label == first) == (number % 4 > 0 if split != "test" else False)
            small = rng.integers(60, 140, (5, 5, 3)) + 50 * np.array([warm, 0, not warm])
            picture = Image.fromarray(small.astype(np.uint8)).resize((40, 40), Image.Resampling.BICUBIC)
            pixels = (np.asarray(picture, dtype=float) + 8 * texture[..., None]).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{number:02}.png")
            files.append((f"{label}/{number:02}.png", split, pixels[..., 0].mean() > pixels[..., 2].mean()))
    table = manifest.scan(tmp_path, progress=False)
    paths, splits, warm = zip(*files, strict=True)
    subject = table["path"].map(dict(zip(paths, warm, strict=True)))
    told = table.assign(split=table["path"].map(dict(zip(paths, splits, strict=True))))
    told.attrs = table.attrs
    by_subject = (subject == (told["label"] == first))[told["label"].isin(CLASSES[stage])]
    shares = by_subject.groupby(told["split"]).mean()
    assert shares["test"] == 0 and 0.7 < shares["train"] < 0.8  # what a judge of colours alone gets
    part = {"adversarial": False} if stage == "stage1" else {"carried_weight": 0.0}
    _, found = trained(told, tmp_path / "run", stage=stage, **part)
    assert (found["prediction"] == decide.true_class(found)).mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "metric"), [("stage1", "val_auc"), ("stage2", "val_balanced_accuracy")])
def test_both_stages_learn_obvious_textures(stage, metric, table, tiny_data, tmp_path):
    cfg = configured(
        stage, tmp_path, tiny_data, num_epochs=4, images_per_epoch=96, lr_gc=3e-3, degrade=False, equalise_quality=95,
        perceptual_weight=0.0,
    )  # fmt: skip
    assert FITS[stage][0](table, cfg)[metric].iloc[-1] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_the_profile_for_a_gpu_trains(stage, table, tiny_data, tmp_path):
    """ResNet50 and the UNet as `full` has them, in a few steps."""
    stem = next(stem for stem in config.NOTEBOOKS if stage in stem)
    few = {"num_epochs": 1, "images_per_epoch": 8, "batch_size": 4, "workers": 0, "pretrained": False}
    cfg = FITS[stage][1](**config.profile("full", stem) | few | {"data": str(tiny_data), "out": str(tmp_path)})
    history = fit(table, cfg)
    assert cfg.crop_size == 128 and len(history) == 1 and history["train_loss"].notna().all()
    trained = Stage.load(tmp_path / config.CHECKPOINTS[stage])
    assert cfg.backbone == {"stage1": "resnet50", "stage2": "tf_efficientnet_lite0"}[stage]
    assert ("layer4" in dict(trained.backbone.named_children())) == (stage == "stage1")
    untrained = loop.build_model(
        stage, loop.Checkpoint(stage, table, cfg, trained.classes).settings, len(trained.classes)
    )
    before, after = untrained.state_dict(), trained.model.state_dict()
    assert before.keys() == after.keys() and all(torch.isfinite(value).all() for value in after.values())
