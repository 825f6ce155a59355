"""What makes stage 2's residual a fingerprint: it can be carried to a photo, and it holds nothing else.

x is a fake, G the UNet, r = G(x) its residual, c a real photo, the carrier, and c + r the fingerprinted carrier. The
classifier C must name x's generator from c + r too; D, a PatchGAN, must take c + r for a photo; V, VGG16 features, must
find in it what they find in c. After GFD-Net, arXiv:2106.08749.
"""

from __future__ import annotations

from functools import partial

import pandas as pd
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor, nn
from torch.utils.data import ConcatDataset

from dfd import config
from dfd.core import parallel
from dfd.core.parallel import gathered
from dfd.core.runs import Live
from dfd.data.crops import CarrierBuilder, GFDTwoViewDataset, RealFakeDataset, equalise
from dfd.degrade.registry import RandomDegrade
from dfd.inference.stage import Stage, fit_feature_bank
from dfd.losses import ADVERSARIAL, consistency_loss, focal_loss, real_fake_loss, source_loss
from dfd.models.adversarial import PatchDiscriminator, VGGPerceptual
from dfd.plots.results import plot_history
from dfd.train import launching
from dfd.train.learners import MODEL
from dfd.train.loop import CURVES, Session
from dfd.train.stage1 import Launderer


class Disentangler(nn.Module):
    """D and V of stage 2, with the losses of the fingerprinted carrier.

    Args:
        bound: largest absolute residual, in units of the [0, 1] range.
        width: channels after the discriminator's first layer.
        layers: strided layers of the discriminator; 3 see patches of 70 x 70 pixels.
        loss: hinge or nonsaturating.
        pretrained: ImageNet weights for V where they can be had.
        adversarial: whether there is a D.
        perceptual: whether there is a V.
        quality: JPEG quality that every crop passes; none leaves the fingerprinted carriers as they are.
    """

    def __init__(
        self,
        bound: float = 0.1,
        width: int = 32,
        layers: int = 3,
        loss: str = "hinge",
        pretrained: bool = True,
        adversarial: bool = True,
        perceptual: bool = True,
        quality: int | None = None,
    ):
        super().__init__()
        self.discriminator = PatchDiscriminator(width=width, layers=layers, gain=1 / bound) if adversarial else None
        self.perceptual = VGGPerceptual(pretrained) if perceptual else None
        self.quality = quality
        self.of_discriminator, self.of_generator = ADVERSARIAL[loss]

    def discriminator_loss(self, carriers: Tensor, carried: Tensor) -> Tensor:
        """What D minimises: carriers are photos, fingerprinted carriers are not; no gradient reaches G."""
        on_photos, on_carried = (self.discriminator(images).float() for images in (carriers, carried.detach()))
        return self.of_discriminator(gathered(on_photos), gathered(on_carried))

    def generator_losses(self, carriers: Tensor, carried: Tensor) -> dict[str, Tensor]:
        """What G minimises for the look of fingerprinted carriers, by name: adversarial (D) and perceptual (V).

        Args:
            carriers: (B, 3, S, S) in [0, 1], c.
            carried: (B, 3, S, S) in [0, 1], c + r, with its graph.
        """
        found = {}
        if self.discriminator is not None:
            found["adversarial"] = self.of_generator(gathered(self.discriminator(carried).float()))
        if self.perceptual is not None:
            found["perceptual"] = self.perceptual(carried, carriers)
        return found

    def seen(self, carried: Tensor) -> Tensor:
        """Fingerprinted carriers as the model meets them, behind the JPEG of every crop; same shape and range.

        The gradient is that of doing nothing: a codec has none of its own. The straight-through estimator of Bengio et
        al. 2013, arXiv:1308.3432.
        """
        return carried + (equalise(carried.detach().clamp(0, 1), self.quality) - carried).detach()


def fingerprinted(carriers: Tensor, residual: Tensor) -> Tensor:
    """Carriers with a fingerprint put on, c + r: (B, 3, H, W) in [0, 1]; the gradient passes the clipping."""
    put = carriers + residual
    return put + (put.clamp(0, 1) - put).detach()


DETECTION = {"bce": real_fake_loss, "focal": focal_loss}


def fit(table: pd.DataFrame, cfg: config.Stage1 | config.Stage2, processes: int = 0) -> pd.DataFrame:
    """Train the stage that the config is of, from a notebook: on all GPUs of the machine where it has several.

    Args:
        table, cfg: see `fit_stage1` and `fit_stage2`.
        processes: how many; 0 starts one for each GPU, and none where there is one GPU or none, or this process is one
            of several already.

    Returns:
        What the stage's own function does.
    """
    train = fit_stage1 if isinstance(cfg, config.Stage1) else fit_stage2
    processes = processes or launching.gpus()
    if processes < 2:
        return train(table, cfg)
    history = launching.launch(train, table, cfg, processes=processes)
    Live(CURVES).show(lambda: plot_history(history))
    return history


def fit_stage1(table: pd.DataFrame, cfg: config.Stage1) -> pd.DataFrame:
    """Train the real/fake detector and leave its best epoch in `best_real_fake_model.pt`.

    A discriminator takes a step on every batch. On every `adversarial_every`-th a launderer takes one too, and the
    detector learns from the laundered fakes as well.

    Args:
        table: the manifest, with its root in attrs; splits train and val are read.
        cfg: the parameters; all of them are stored in the checkpoint.

    Returns:
        One row per epoch: epoch, seconds, lr, train_loss, val_loss and val_auc (clean crops), val_auc_degraded,
        the launderer's losses, and the score that chose the best epoch: the mean of both AUCs.

    Raises:
        ValueError: a split lacks photos or fakes.
    """
    train, val, test = (table[table["split"] == split] for split in ("train", "val", "test"))
    for split, rows in (("train", train), ("val", val), ("test", test)):
        if rows["is_fake"].nunique() < 2:
            raise ValueError(f"stage 1 needs photos and fakes in split {split!r}; add images or change the fractions")
    session = Session("stage1", table, cfg, classes=["real", "fake"])
    shared = {"crop_size": cfg.crop_size, "equalise_quality": session.equalise_quality}
    crops = partial(RealFakeDataset, root=table.attrs["root"], **shared)
    data, clean = crops(train, degrade=session.degrade), crops(val)
    degraded = crops(val, degrade=RandomDegrade(smallest=cfg.crop_size))
    detection = partial(DETECTION[cfg.loss], smoothing=cfg.label_smoothing)
    adversary = launderer_of(session, cfg) if cfg.adversarial and not session.done else None
    for epoch in session.epochs():
        for images, is_fake in session.batches(data, train, binary=True):
            laundered = images[:0]
            if adversary:
                laundered = adversarial_turn(session, adversary, images[is_fake == 0], images[is_fake == 1], cfg)
            with session.precision():
                logits = session.model(torch.cat([images, laundered])).float()
            logits, escaped = (gathered(part) for part in logits.tensor_split([len(images)]))
            loss = detection(logits, gathered(is_fake))
            if len(escaped):
                loss = loss + cfg.laundered_weight * detection(escaped, torch.ones_like(escaped))
            session.step(loss)
        logits, is_fake = session.validate(clean)
        auc = roc_auc_score(is_fake.numpy(), logits.numpy())
        auc_degraded = roc_auc_score(is_fake.numpy(), session.validate(degraded)[0].numpy())
        values = {"val_loss": float(real_fake_loss(logits, is_fake)), "val_auc": auc, "val_auc_degraded": auc_degraded}
        session.end_epoch(epoch, values, score=(auc + auc_degraded) / 2)
    return session.finish()


def launderer_of(session: Session, cfg: config.Stage1) -> Launderer:
    """The adversary that the config asks for; its two networks are trained beside the detector."""
    adversary = Launderer(
        cfg.launderer_width,
        cfg.launderer_bound,
        cfg.discriminator_layers,
        cfg.adversarial_loss,
        cfg.pretrained,
        perceptual=cfg.perceptual_weight > 0,
        r1_weight=cfg.r1_weight,
    ).to(session.device)
    parallel.same(adversary)
    session.add("launderer", adversary.generator)
    session.add("discriminator", adversary.discriminator, cfg.lr_d)
    return adversary


def adversarial_turn(
    session: Session, adversary: Launderer, photos: Tensor, fakes: Tensor, cfg: config.Stage1
) -> Tensor:
    """One step of the discriminator and, where it is its turn, of the launderer; then what the detector learns from.

    Args:
        photos, fakes: crops (B, 3, S, S) in [0, 1]; where no process has any of either nothing is done.

    Returns:
        Laundered fakes through the codec of all classes, (B, 3, S, S) in [0, 1], without a gradient; none where it is
        not the launderer's turn.
    """
    if not parallel.everybody(len(photos)) or not parallel.everybody(len(fakes)):
        return fakes[:0]
    with session.precision():
        session.step(adversary.discriminator_loss(photos, fakes), "discriminator")
    if session.turn % cfg.adversarial_every:
        return fakes[:0]
    with session.precision():
        found = adversary.generator_losses(fakes, session.model)
    weights = {
        "adversarial": cfg.adversarial_weight,
        "evasion": cfg.evasion_weight,
        "perceptual": cfg.perceptual_weight,
    }
    session.step(sum(weights[name] * loss for name, loss in found.items()), "launderer")
    for name, loss in found.items():
        session.losses[name].append(loss.item())
    with torch.no_grad(), session.precision():
        return equalise(adversary(fakes).clamp(0, 1), session.equalise_quality)


def fit_stage2(table: pd.DataFrame, cfg: config.Stage2) -> pd.DataFrame:
    """Train residual extractor and classifier to name the generator; the best epoch is `best_gfd2_model.pt`.

    On every `carried_every`-th batch the residuals are put on photos of the train split, and a discriminator takes a
    step first. The baseline extractors have no residual to carry: they learn from sources and consistency alone.

    Args:
        table: the manifest, with its root in attrs; fakes of splits train and val, and photos of train, are read.
        cfg: the parameters; all of them are stored in the checkpoint.

    Returns:
        One row per epoch: epoch, seconds, lr, train_loss (the weighted sum), val_loss, val_balanced_accuracy, and each
        loss by itself, before its weight.

    Raises:
        ValueError: fewer than two generators, one that is missing from a split, or no photo to carry fingerprints.
    """
    fakes = table[table["is_fake"]]
    classes = sorted(fakes["label"].unique())
    if len(classes) < 2:
        raise ValueError(f"attribution needs at least two generators, the data has {classes or 'none'}")
    train, val, test = (fakes[fakes["split"] == split] for split in ("train", "val", "test"))
    for split, rows in (("train", train), ("val", val), ("test", test)):
        if missing := ", ".join(sorted(set(classes) - set(rows["label"]))):
            raise ValueError(f"split {split!r} has no image of {missing}; add images or change the fractions")
    session = Session("stage2", table, cfg, classes=classes)
    root = table.attrs["root"]
    shared = {"crop_size": cfg.crop_size, "equalise_quality": session.equalise_quality}
    carries = cfg.extractor == "unet" and cfg.carried_weight + cfg.adversarial_weight + cfg.perceptual_weight > 0
    carriers = CarrierBuilder(table, root, degrade=session.degrade, **shared) if carries else None
    views = partial(GFDTwoViewDataset, train, root, classes, degrade=session.degrade, **shared)
    data = ConcatDataset([views(carriers=carriers), views()])  # carriers only where they are put on: they take time
    check = GFDTwoViewDataset(val, root, classes, **shared)
    disentangler = disentangler_of(session, cfg) if carries and not session.done else None
    learners = learners_of(session, cfg)
    for epoch in session.epochs():
        for batch in session.batches(data, train, binary=False, every=cfg.carried_every):
            block, turn = divmod(session.turn, cfg.carried_every)
            found = attribution_losses(session, disentangler if turn == 0 else None, batch, cfg)
            for name, loss in found.items():
                session.losses[name].append(loss.item())
            total = found["source"] + sum(
                getattr(cfg, f"{name}_weight") * found[name] for name in found if name != "source"
            )
            session.step(total, learners[block % len(learners)])
        logits, source = session.validate(check)
        score = balanced_accuracy_score(source.numpy(), logits.argmax(1).numpy())
        loss = float(source_loss(logits, source))
        session.end_epoch(epoch, {"val_loss": loss, "val_balanced_accuracy": score}, score=score)
    history = session.finish()
    if parallel.is_main():
        stage = Stage.load(session.best_path)
        if stage.feature_bank is None:
            fit_feature_bank(stage, train, session.best_path, seed=cfg.seed)
    return history


def disentangler_of(session: Session, cfg: config.Stage2) -> Disentangler:
    """What the fingerprinted carriers are held to; its discriminator is trained beside the model."""
    disentangler = Disentangler(
        cfg.residual_bound,
        layers=cfg.discriminator_layers,
        loss=cfg.adversarial_loss,
        pretrained=cfg.pretrained,
        adversarial=cfg.adversarial_weight > 0,
        perceptual=cfg.perceptual_weight > 0,
        quality=session.equalise_quality,
    ).to(session.device)
    parallel.same(disentangler)
    if disentangler.discriminator is not None:
        session.add("discriminator", disentangler.discriminator, cfg.lr_d)
    return disentangler


def learners_of(session: Session, cfg: config.Stage2) -> list[str]:
    """The networks that learn from the total loss: the whole model, or its two parts in turns."""
    if cfg.joint or cfg.extractor != "unet" or session.done:
        return [MODEL]
    for name in ("generator", "classifier"):
        session.add(name, getattr(session.model, name), part=True)
    return ["generator", "classifier"]


def attribution_losses(
    session: Session, disentangler: Disentangler | None, batch: dict[str, Tensor], cfg: config.Stage2
) -> dict[str, Tensor]:
    """Each loss of one batch by name, before its weight; where there are carriers, D takes its step first.

    Args:
        disentangler: none leaves the carriers out of this batch.
        batch: view1, view2 and carrier (B, 3, S, S) in [0, 1], and source (B,).
    """
    source, smoothing = batch["source"], cfg.label_smoothing
    with session.precision():
        residual = session.model.generator(torch.cat([batch["view1"], batch["view2"]])).float()  # (2B, 3, S, S)
    found, again = {}, residual[:0]
    if disentangler is not None:
        carriers = batch["carrier"]
        carried = fingerprinted(carriers, residual.chunk(2)[0])
        with session.precision():
            if disentangler.discriminator is not None:
                session.step(disentangler.discriminator_loss(carriers, carried), "discriminator")
            found = disentangler.generator_losses(carriers, carried)
            if cfg.carried_weight:
                again = session.model.generator(disentangler.seen(carried)).float()
    with session.precision():
        logits = session.model.name(torch.cat([residual, again])).float()
    views = [gathered(part) for part in logits.split(len(source))]  # of the two views, and of what they are put on
    source = gathered(source)
    found["source"] = source_loss(torch.cat(views[:2]), source.repeat(2), smoothing)
    if len(views) > 2:
        found["carried"] = source_loss(views[2], source, smoothing)
    if cfg.consistency_weight:
        found["consistency"] = consistency_loss(*views[:2])
    return found
