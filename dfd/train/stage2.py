"""Stage 2, which generator: an extractor G whose residual is a fingerprint, and a classifier C that names its source.

x is a fake, r = G(x) its residual, c a real photo, the carrier. C must name x's generator from c + r too; D, a
PatchGAN, must take that for a photo; V, VGG16, must find c in it. After GFD-Net, arXiv:2106.08749.
"""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor
from torch.utils.data import ConcatDataset

from dfd import config
from dfd.data.crops import CarrierBuilder, EpochSampler, GFDTwoViewDataset
from dfd.degrade.registry import CLEAN, RandomDegrade
from dfd.inference import Stage, fit_feature_bank
from dfd.losses import consistency_loss
from dfd.train.loop import OnEpoch, Trainer
from dfd.train.processes import sum_over_processes
from dfd.train.stage1 import Adversary, equalised


def attribution_losses(model: Any, residual: Tensor, source: Tensor, cfg: config.Stage2, adversary=None, carriers=None,
                       carried: Any = None) -> dict[str, Tensor]:  # fmt: skip
    """What G and C minimise: each loss by name, before its weight, and none whose weight is 0.

    `residual` (2B, 3, S, S) is of the first views, then of the second; `source` (B,) are classes; `carriers`, and
    `carried` with fingerprints behind the codec, (B, 3, S, S) in [0, 1], go with an adversary.
    """
    losses, views = {}, [residual]
    if adversary is not None:
        losses = adversary.generator_losses(carried, carriers)
        if cfg.carried_weight:
            views.append(model.generator(carried).float())
    logits = model.name(torch.cat(views)).float().split(len(source))  # one batch, or batch norm would tell them apart
    losses["source"] = F.cross_entropy(torch.cat(logits[:2]), source.repeat(2), label_smoothing=cfg.label_smoothing)
    if len(logits) > 2:
        losses["carried"] = F.cross_entropy(logits[2], source, label_smoothing=cfg.label_smoothing)
    if cfg.consistency_weight:
        losses["consistency"] = consistency_loss(*logits[:2])
    return losses


def with_class_means(residual: Tensor, source: Tensor, classes: int) -> Tensor:
    """Residuals (B, 3, S, S), every other one replaced by its generator's mean in the batch: content cancels."""
    of_source = F.one_hot(source, classes).to(residual)  # (B, classes)
    means = sum_over_processes(of_source.T @ residual.flatten(1))
    means = means / sum_over_processes(of_source.sum(0)).clamp(min=1)[:, None]
    is_mean = (torch.arange(len(source), device=source.device) % 2 > 0)[:, None, None, None]
    return torch.where(is_mean, means[source].view_as(residual), residual)


def carrying(trainer: Trainer, adversary: Any) -> dict[str, float]:
    """How far carrying got on validation crops, whose photos training did not put fingerprints on.

    val_discriminator_auc: D tells photos from fingerprinted ones. val_carried_accuracy: balanced, of their names.
    """

    def answer(batch: Any) -> Tensor:
        model: Any = trainer.averaged.module
        carriers = batch["carrier"]
        carried = equalised(carriers + model.generator(batch["view1"]).float(), adversary.quality)
        critic = adversary.discriminator or (lambda images: images.new_zeros(len(images), 1, 1, 1))
        opinions = [critic(images).mean((1, 2, 3)) for images in (carriers, carried)]
        return torch.cat([torch.stack(opinions, dim=1), model(carried)], dim=1)

    adversary.eval()
    answers, source = trainer.validate("val", answer)
    curves = {"val_carried_accuracy": balanced_accuracy_score(source, answers[:, 2:].argmax(1))}
    if adversary.discriminator:
        curves["val_discriminator_auc"] = roc_auc_score(np.repeat([1, 0], len(answers)), answers[:, :2].T.ravel())
    return curves


def fit_stage2(table: pd.DataFrame, cfg: config.Stage2, on_epoch: OnEpoch = None) -> pd.DataFrame:
    """Train residual extractor and classifier to name the generator; the best epoch is `best_gfd2_model.pt`.

    Residuals are put on photos in every `carried_every`-th batch, but for baseline extractors, that have none; history,
    `on_epoch` and signals are those of `fit_stage1`; the score is the balanced accuracy. Fewer than two generators, one
    that a split lacks, and no photo to carry fingerprints are a ValueError.
    """
    fakes = table[table["is_fake"]]
    classes = sorted(fakes["label"].unique())
    trainer = Trainer("stage2", table, cfg, classes, on_epoch)
    if trainer.is_finished():
        return pd.DataFrame(trainer.history)

    splits = {split: fakes[fakes["split"] == split] for split in ("train", "val")}
    degrade = RandomDegrade(smallest=cfg.crop_size, p_clean=CLEAN) if cfg.degrade else None
    views = partial(GFDTwoViewDataset, splits["train"], classes=classes, degrade=degrade, **trainer.crops)
    carries = cfg.extractor == "unet" and cfg.carried_weight + cfg.adversarial_weight + cfg.perceptual_weight > 0
    data, every = views(), 1
    if carries:  # carriers only where they are put on: they take time
        carriers = CarrierBuilder(table, degrade=degrade, **trainer.crops)
        data, every = ConcatDataset([views(carriers=carriers), data]), cfg.carried_every
    trainer.load("train", data, EpochSampler(splits["train"], cfg, binary=False, every=every))
    on = CarrierBuilder(table, split="val", **trainer.crops) if carries else None
    trainer.load("val", GFDTwoViewDataset(splits["val"], classes=classes, carriers=on, **trainer.crops))

    model: Any = trainer.build_model()
    trainer.add("model", model, cfg.lr_gc)
    adversary = Adversary(cfg).to(trainer.device) if carries else None
    if adversary and adversary.discriminator:
        trainer.add("discriminator", adversary.discriminator, cfg.lr_d, every=every)

    with trainer.running():
        for _ in trainer.epochs():
            for step, batch in trainer.batches():
                source, put_on = batch["source"], {}
                with trainer.autocast():
                    residual = model.generator(torch.cat([batch["view1"], batch["view2"]])).float()
                if adversary and step % every == 0:
                    carriers = batch["carrier"]
                    fingerprints = with_class_means(residual[: len(source)], source, len(classes))
                    carried = equalised(carriers + fingerprints, adversary.quality)
                    put_on = {"adversary": adversary, "carriers": carriers, "carried": carried}
                    if adversary.discriminator:
                        # 1. critic: photos against fingerprinted photos
                        with trainer.autocast():
                            loss = adversary.discriminator_loss(carriers, carried)
                        trainer.step("discriminator", loss)
                # 2. extractor and classifier: name the source, from carriers too
                with trainer.autocast():
                    losses = attribution_losses(model, residual, source, cfg, **put_on)
                trainer.step("model", losses)
            # 3. validate, keep the best, save the state
            logits, source = trainer.validate("val")
            loss = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(source)).item()
            accuracy = balanced_accuracy_score(source, logits.argmax(1))
            curves = carrying(trainer, adversary) if adversary else {}
            right = pd.Series(logits.argmax(1) == source, splits["val"].index)
            trainer.end_epoch(accuracy, loss, right, val_balanced_accuracy=accuracy, **curves)
    if trainer.is_main:
        path = trainer.checkpoint.path
        fit_feature_bank(Stage.load(path), splits["train"], path, seed=cfg.seed)
    return trainer.finish()
