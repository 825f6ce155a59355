"""Stage 2, which generator: an extractor G whose residual is a fingerprint, and a classifier C that names its source.

x is a fake, r = G(x) its residual, c a real photo, the carrier, and c + r the fingerprinted carrier. C must name x's
generator from c + r too; D, a PatchGAN, must take c + r for a photo; V, VGG16 features, must find in it what they find
in c. After GFD-Net, arXiv:2106.08749.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn
from torch.utils.data import ConcatDataset

from dfd import config
from dfd.data.crops import CarrierBuilder, EpochSampler, GFDTwoViewDataset, equalise
from dfd.degrade.registry import RandomDegrade
from dfd.inference import Stage, fit_feature_bank
from dfd.losses import consistency_loss, hinge_discriminator_loss, hinge_generator_loss, source_loss
from dfd.models.adversarial import PatchDiscriminator, VGGPerceptual
from dfd.train.loop import Trainer


class Disentangler(nn.Module):
    """D and V of stage 2, with the losses of the fingerprinted carrier; a weight of 0 in the config leaves one out."""

    def __init__(self, cfg: config.Stage2):
        super().__init__()
        gain, layers = 1 / cfg.residual_bound, cfg.discriminator_layers
        has_discriminator, has_perceptual = cfg.adversarial_weight > 0, cfg.perceptual_weight > 0
        self.discriminator = PatchDiscriminator(width=32, layers=layers, gain=gain) if has_discriminator else None
        self.perceptual = VGGPerceptual(cfg.pretrained) if has_perceptual else None
        self.quality = cfg.equalise_quality if cfg.equalise else None

    def discriminator_loss(self, carriers: Tensor, carried: Tensor) -> Tensor:
        """What D minimises: carriers are photos, fingerprinted carriers are not; no gradient reaches G."""
        on_photos, on_carried = (self.discriminator(images).float() for images in (carriers, carried.detach()))
        return hinge_discriminator_loss(on_photos, on_carried)

    def generator_losses(self, carriers: Tensor, carried: Tensor) -> dict[str, Tensor]:
        """What G minimises for the look of fingerprinted carriers, by name: adversarial (D) and perceptual (V).

        Args:
            carriers: (B, 3, S, S) in [0, 1], c.
            carried: (B, 3, S, S) in [0, 1], c + r, with its graph.
        """
        losses = {}
        if self.discriminator is not None:
            losses["adversarial"] = hinge_generator_loss(self.discriminator(carried).float())
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual(carried, carriers)
        return losses

    def equalised(self, carried: Tensor) -> Tensor:
        """Fingerprinted carriers behind the JPEG of every crop; same shape and range.

        The gradient is that of the identity, as a codec has none: the straight-through estimator of Bengio et al. 2013,
        arXiv:1308.3432.
        """
        return carried + (equalise(carried.detach().clamp(0, 1), self.quality) - carried).detach()


def fingerprinted(carriers: Tensor, residual: Tensor) -> Tensor:
    """Carriers with a fingerprint put on, c + r: (B, 3, H, W) in [0, 1]; the gradient passes the clipping."""
    carried = carriers + residual
    return carried + (carried.clamp(0, 1) - carried).detach()


def attribution_losses(
    model: nn.Module,
    residual: Tensor,
    source: Tensor,
    cfg: config.Stage2,
    disentangler: Disentangler | None = None,
    carriers: Tensor | None = None,
    carried: Tensor | None = None,
) -> dict[str, Tensor]:
    """What the model minimises, each loss by name and before its weight.

    Args:
        model: G and C.
        residual: (2B, 3, S, S), of the first views, then of the second.
        source: (B,), class indices.
        cfg: smoothing and weights; a loss without weight is left out.
        disentangler, carriers, carried: as in Disentangler.generator_losses; none leaves the carriers out.
    """
    losses, views = {}, [residual]
    if disentangler is not None:
        losses = disentangler.generator_losses(carriers, carried)
        if cfg.carried_weight:
            views.append(model.generator(disentangler.equalised(carried)).float())
    logits = model.name(torch.cat(views)).float().split(len(source))  # one batch, or batch norm would tell them apart
    losses["source"] = source_loss(torch.cat(logits[:2]), source.repeat(2), cfg.label_smoothing)
    if len(logits) > 2:
        losses["carried"] = source_loss(logits[2], source, cfg.label_smoothing)
    if cfg.consistency_weight:
        losses["consistency"] = consistency_loss(*logits[:2])
    return losses


def fit_stage2(
    table: pd.DataFrame, cfg: config.Stage2, on_epoch: Callable[[pd.DataFrame], None] | None = None
) -> pd.DataFrame:
    """Train residual extractor and classifier to name the generator; the best epoch is `best_gfd2_model.pt`.

    On every `carried_every`-th batch the residuals are put on photos of the train split, and a discriminator takes a
    step first. The baseline extractors have no residual to carry: they learn from sources and consistency alone.
    The same call resumes an interrupted training. Several processes average their gradients; see `dfd.train.loop`.

    Args:
        table: the manifest, with its root in attrs; fakes of splits train and val, and photos of train, are read.
        cfg: the parameters; all of them are stored in the checkpoint.
        on_epoch: is given the history so far after every epoch.

    Returns:
        One row per epoch: epoch, seconds, lr, train_loss (the weighted sum), val_loss, val_balanced_accuracy, each
        loss by itself, before its weight, and the score that chose the best epoch: the balanced accuracy.

    Raises:
        ValueError: fewer than two generators, one that is missing from a split, or no photo to carry fingerprints.
        Interrupted: SIGINT or SIGTERM came; the step was finished and the state is saved.
    """
    fakes = table[table["is_fake"]]
    classes = sorted(fakes["label"].unique())
    if len(classes) < 2:
        raise ValueError(f"attribution needs at least two generators, the data has {classes or 'none'}")
    train, val, test = (fakes[fakes["split"] == split] for split in ("train", "val", "test"))
    for split, rows in (("train", train), ("val", val), ("test", test)):
        if missing := ", ".join(sorted(set(classes) - set(rows["label"]))):
            raise ValueError(f"split {split!r} has no image of {missing}; add images or change the fractions")
    trainer = Trainer("stage2", table, cfg, classes, on_epoch)
    if trainer.is_finished():
        return pd.DataFrame(trainer.history)

    root, quality = table.attrs["root"], cfg.equalise_quality if cfg.equalise else None
    degrade = RandomDegrade(smallest=cfg.crop_size) if cfg.degrade else None
    crops = {"crop_size": cfg.crop_size, "equalise_quality": quality}
    views = partial(GFDTwoViewDataset, train, root, classes, degrade=degrade, **crops)
    carries = cfg.extractor == "unet" and cfg.carried_weight + cfg.adversarial_weight + cfg.perceptual_weight > 0
    data, every = views(), 1
    if carries:  # carriers only where they are put on: they take time
        with_carriers = views(carriers=CarrierBuilder(table, root, degrade=degrade, **crops))
        data, every = ConcatDataset([with_carriers, data]), cfg.carried_every
    trainer.load("train", data, EpochSampler(train, cfg, binary=False, every=every))
    trainer.load("val", GFDTwoViewDataset(val, root, classes, **crops))

    model, disentangler = trainer.build_model(), None
    trainer.add("model", model, cfg.lr_gc)
    if carries:
        disentangler = Disentangler(cfg).to(trainer.device)
        if disentangler.discriminator is not None:
            trainer.add("discriminator", disentangler.discriminator, cfg.lr_d, every=every)

    with trainer.running():
        for _ in trainer.epochs():
            for step, batch in trainer.batches():
                source, is_carried = batch["source"], disentangler is not None and step % every == 0
                with trainer.autocast():
                    residual = model.generator(torch.cat([batch["view1"], batch["view2"]])).float()
                put_on = {}
                if is_carried:
                    carriers = batch["carrier"]
                    carried = fingerprinted(carriers, residual[: len(source)])
                    put_on = {"disentangler": disentangler, "carriers": carriers, "carried": carried}
                    if disentangler.discriminator is not None:
                        # 1. critic: photos against fingerprinted photos
                        with trainer.autocast():
                            loss = disentangler.discriminator_loss(carriers, carried)
                        trainer.step("discriminator", loss)
                # 2. extractor and classifier: name the source, from carriers too
                with trainer.autocast():
                    losses = attribution_losses(model, residual, source, cfg, **put_on)
                trainer.record(losses)
                total = sum(getattr(cfg, f"{name}_weight", 1.0) * loss for name, loss in losses.items())
                trainer.step("model", total)
            # 3. validate, keep the best, save the state
            logits, source = trainer.validate("val")
            loss = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(source)).item()
            accuracy = balanced_accuracy_score(source, logits.argmax(1))
            trainer.end_epoch(accuracy, loss, val_balanced_accuracy=accuracy)
    if trainer.is_main:
        path = trainer.checkpoint.path
        fit_feature_bank(Stage.load(path), train, path, seed=cfg.seed)
    return trainer.finish()
