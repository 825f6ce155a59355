"""Stage 1, real or fake: a detector C against a launderer G that changes fakes until a critic D takes them for photos.

x is a fake and x' = x + G(x) the laundered fake. D, a PatchGAN, says whether x' looks like a photo; V, VGG16 features,
holds its content to that of x; C is to be evaded. All learn in turns (Goodfellow et al. 2014, arXiv:1406.2661).
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from dfd import config
from dfd.data.crops import EpochSampler, RealFakeDataset, equalise
from dfd.degrade.registry import CLEAN, RandomDegrade
from dfd.losses import hinge_discriminator_loss, hinge_generator_loss, real_fake_loss
from dfd.models.networks import PatchDiscriminator, UNetRes, VGGPerceptual
from dfd.train.loop import OnEpoch, Trainer


class Adversary(nn.Module):
    """D and V of either stage, with the losses of changed images; a weight of 0 in the config leaves one out."""

    def __init__(self, cfg: config.Stage1 | config.Stage2):
        super().__init__()
        self.discriminator: Any = PatchDiscriminator(pretrained=cfg.pretrained) if cfg.adversarial_weight else None
        self.perceptual = VGGPerceptual(cfg.pretrained) if cfg.perceptual_weight else None
        self.quality = cfg.equalise_quality if cfg.equalise else None

    def discriminator_loss(self, photos: Tensor, changed: Tensor) -> Tensor:
        """What D minimises: photos are photos, changed images are not; no gradient reaches G."""
        logits = self.discriminator(torch.cat([photos, changed.detach()])).float()
        return hinge_discriminator_loss(*logits.tensor_split([len(photos)]))

    def generator_losses(self, changed: Tensor, before: Tensor) -> dict[str, Tensor]:
        """What G minimises for the look of images, both (B, 3, S, S) in [0, 1]: adversarial (D), perceptual (V)."""
        losses = {}
        if self.discriminator is not None:
            losses["adversarial"] = hinge_generator_loss(self.discriminator(changed).float())
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual(changed, before)
        return losses


def equalised(images: Tensor, quality: int | None) -> Tensor:
    """(B, 3, S, S) images in [0, 1] behind the JPEG of all classes; the gradient is the identity's, arXiv:1308.3432."""
    return images + (equalise(images.detach().float().clamp(0, 1), quality) - images).detach()


class Launderer(Adversary):
    """G of stage 1, which changes fakes, and its adversaries."""

    def __init__(self, cfg: config.Stage1):
        generator = UNetRes(cfg.launderer_width, cfg.launderer_bound, from_high_pass=False)
        super().__init__(cfg)
        self.generator = generator

    def forward(self, fakes: Tensor) -> Tensor:
        """Laundered fakes x + G(x) behind the codec: (B, 3, H, W) in [0, 1] for the same."""
        return equalised(fakes + self.generator(fakes).float(), self.quality)

    def laundering_losses(self, fakes: Tensor, detector: nn.Module) -> dict[str, Tensor]:
        """What G minimises on fakes (B, 3, H, W) in [0, 1], by name: those for the look, and evasion (C)."""
        laundered, is_training = self(fakes), detector.training
        detector.eval()  # batch statistics of laundered fakes alone must not enter its averages
        logits = detector(laundered).float()
        detector.train(is_training)
        return self.generator_losses(laundered, fakes) | {"evasion": real_fake_loss(logits, torch.zeros_like(logits))}

    def curves(self, trainer: Trainer, logits: np.ndarray) -> dict[str, float]:
        """How far the adversaries got, on validation crops whose `logits`, (N,), are known.

        val_discriminator_auc: photos told from laundered fakes by D. val_laundered_found: the share of laundered fakes
        that the detector calls fake at the cut above which it finds nine in ten as they were.
        """

        def answer(batch: Any) -> Tensor:
            images, is_fake = batch
            changed = torch.where(is_fake[:, None, None, None] > 0, self(images), images)
            critic = self.discriminator(changed).mean((1, 2, 3)) if self.discriminator else 0 * is_fake
            return torch.stack([trainer.averaged(changed), critic], dim=1)

        self.eval()
        answers, is_fake = trainer.validate("clean", answer)
        share = float((answers[is_fake > 0, 0] >= np.quantile(logits[is_fake > 0], 0.1)).mean())
        auc = {"val_discriminator_auc": roc_auc_score(1 - is_fake, answers[:, 1])} if self.discriminator else {}
        return auc | {"val_laundered_found": share}


def fit_stage1(table: pd.DataFrame, cfg: config.Stage1, on_epoch: OnEpoch = None) -> pd.DataFrame:
    """Train the real/fake detector on a manifest with its root in attrs; the best epoch is `best_real_fake_model.pt`.

    Returns the history, a row an epoch, as `on_epoch` is given it after each; the score, the mean of both validation
    AUCs, chose the best. A split without photos or fakes is a ValueError. SIGINT and SIGTERM end it after the step, as
    Interrupted, with a state from which the same call goes on.
    """
    trainer = Trainer("stage1", table, cfg, ["real", "fake"], on_epoch)
    if trainer.is_finished():
        return pd.DataFrame(trainer.history)

    splits = {split: table[table["split"] == split] for split in ("train", "val")}
    crops, degrade = partial(RealFakeDataset, **trainer.crops), RandomDegrade(smallest=cfg.crop_size)
    mixed = replace(degrade, p_clean=CLEAN) if cfg.degrade else None
    trainer.load("train", crops(splits["train"], degrade=mixed), EpochSampler(splits["train"], cfg, binary=True))
    trainer.load("clean", crops(splits["val"]))
    trainer.load("degraded", crops(splits["val"], degrade=degrade))

    detector, launderer = trainer.build_model(), None
    trainer.add("detector", detector, cfg.lr_gc)
    if cfg.adversarial:
        launderer = Launderer(cfg).to(trainer.device)
        trainer.add("launderer", launderer.generator, cfg.lr_gc, every=cfg.adversarial_every)
        if launderer.discriminator:
            trainer.add("discriminator", launderer.discriminator, cfg.lr_d)
    detection = partial(real_fake_loss, smoothing=cfg.label_smoothing)

    with trainer.running():
        for _ in trainer.epochs():
            for step, (images, is_fake) in trainer.batches():
                photos, fakes = images[is_fake == 0], images[is_fake == 1]
                laundered = fakes[:0]
                if launderer:
                    # 1. critic: photos against laundered fakes
                    if launderer.discriminator:
                        with trainer.autocast():
                            with torch.no_grad():
                                changed = launderer(fakes)
                            loss = launderer.discriminator_loss(photos, changed)
                        trainer.step("discriminator", loss)
                    if step % cfg.adversarial_every == 0:
                        # 2. launderer: pass for photos before critic and detector, keep the content
                        with trainer.autocast():
                            losses = launderer.laundering_losses(fakes, detector)
                        trainer.step("launderer", losses)
                        with torch.no_grad(), trainer.autocast():
                            laundered = launderer(fakes)
                # 3. detector: photos, fakes and laundered fakes
                with trainer.autocast():
                    logits = detector(torch.cat([images, laundered])).float()
                logits, logits_laundered = logits.tensor_split([len(images)])
                loss = detection(logits, is_fake)
                if len(laundered):
                    loss = loss + cfg.laundered_weight * detection(logits_laundered, torch.ones_like(logits_laundered))
                trainer.step("detector", loss)
            # 4. validate, keep the best, save the state
            logits, is_fake = trainer.validate("clean")
            logits_degraded, _ = trainer.validate("degraded")
            auc, auc_degraded = (roc_auc_score(is_fake, scores) for scores in (logits, logits_degraded))
            curves = {"val_auc": auc, "val_auc_degraded": auc_degraded}
            curves |= launderer.curves(trainer, logits) if launderer else {}
            loss = F.binary_cross_entropy_with_logits(torch.from_numpy(logits), torch.from_numpy(is_fake)).item()
            right = pd.Series((logits > 0) == (is_fake > 0), splits["val"].index)
            trainer.end_epoch((auc + auc_degraded) / 2, loss, right, **curves)
    return trainer.finish()
