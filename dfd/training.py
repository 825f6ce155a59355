"""Training: one visible loop per stage, and the session that keeps what both need between epochs.

A session seeds every epoch by itself, so a run that was killed and goes on gives the same weights as one that was
not: exactly on a CPU with the same `workers`, else but for rounding and draws. `train_<stage>.pt` holds the state to
go on from; `best_<…>.pt` holds the best epoch for use.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dfd import config, evaluation, manifest
from dfd.datasets import GFDTwoViewDataset, RealFakeDataset, balanced_sampler
from dfd.degrade import RandomDegrade
from dfd.inference import CHECKPOINTS, build_model, save_checkpoint, update_checkpoint, uses_bfloat16
from dfd.losses import real_fake_loss, source_loss
from dfd.progress import bar


def fit_stage1(table: pd.DataFrame, cfg: config.Stage1) -> pd.DataFrame:
    """Train the real/fake detector and leave its best epoch in `best_real_fake_model.pt`.

    Args:
        table: the manifest, with its root in attrs; splits train and val are read.
        cfg: the parameters; all of them are stored in the checkpoint.

    Returns:
        One row per epoch: epoch, seconds, lr, train_loss, val_loss, val_auc.

    Raises:
        ValueError: a split lacks photos or fakes.
    """
    train, val, test = (table[table["split"] == split] for split in ("train", "val", "test"))
    for split, rows in (("train", train), ("val", val), ("test", test)):
        if rows["is_fake"].nunique() < 2:
            raise ValueError(f"stage 1 needs photos and fakes in split {split!r}; add images or change the fractions")
    session = Session("stage1", table, cfg, classes=["real", "fake"])
    data = RealFakeDataset(train, table.attrs["root"], cfg.crop_size, session.degrade, session.equalise_quality)
    check = RealFakeDataset(val, table.attrs["root"], cfg.crop_size, None, session.equalise_quality)
    for epoch in session.epochs():
        for images, is_fake in session.batches(data, train, binary=True):
            with session.precision():
                logits = session.model(images).float()
            session.step(real_fake_loss(logits, is_fake, cfg.label_smoothing))
        logits, is_fake = session.validate(check)
        auc = evaluation.auc(is_fake.numpy(), logits.numpy())
        session.end_epoch(epoch, {"val_loss": float(real_fake_loss(logits, is_fake)), "val_auc": auc}, score=auc)
    return session.finish()


def fit_stage2(table: pd.DataFrame, cfg: config.Stage2) -> pd.DataFrame:
    """Train residual extractor and classifier to name the generator; the best epoch is `best_gfd2_model.pt`.

    Args:
        table: the manifest, with its root in attrs; the fakes of splits train and val are read.
        cfg: the parameters; all of them are stored in the checkpoint.

    Returns:
        One row per epoch: epoch, seconds, lr, train_loss, val_loss, val_balanced_accuracy.

    Raises:
        ValueError: fewer than two generators, or one that is missing from a split.
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
    root, quality = table.attrs["root"], session.equalise_quality
    data = GFDTwoViewDataset(train, root, classes, cfg.crop_size, session.degrade, quality)
    check = GFDTwoViewDataset(val, root, classes, cfg.crop_size, None, quality)
    for epoch in session.epochs():
        for batch in session.batches(data, train, binary=False):
            views = torch.cat([batch["view1"], batch["view2"]])  # (2B, 3, S, S)
            with session.precision():
                logits = session.model(views).float()
            session.step(source_loss(logits, batch["source"].repeat(2), cfg.label_smoothing))
        logits, source = session.validate(check)
        score = evaluation.balanced_accuracy(source.numpy(), logits.argmax(1).numpy())
        loss = float(source_loss(logits, source))
        session.end_epoch(epoch, {"val_loss": loss, "val_balanced_accuracy": score}, score=score)
    return session.finish()


class Session:
    """What a training run keeps: model, optimiser, history, best epoch; and how it goes on after a kill.

    Args:
        stage: stage1 or stage2.
        table: the manifest; its digest goes into the checkpoint.
        cfg: parameters of the stage.
        classes: names of the logits.
    """

    def __init__(self, stage: str, table: pd.DataFrame, cfg: config.Training, classes: list[str]):
        self.stage, self.cfg, self.classes = stage, cfg, classes
        self.out = Path(cfg.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.best_path, self.state_path = self.out / CHECKPOINTS[stage], self.out / f"train_{stage}.pt"
        self.manifest_hash = manifest.digest(table)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.degrade = RandomDegrade() if cfg.degrade else None
        self.equalise_quality = cfg.equalise_quality if cfg.equalise else None
        self.settings = {k: v for k, v in dataclasses.asdict(cfg).items() if k not in ("data", "out", "resume")}
        unlimited = {k: v for k, v in self.settings.items() if k not in ("workers", "minutes", "crops")}
        made_of = json.dumps([stage, self.manifest_hash, unlimited, _sources()])
        self.key = hashlib.sha256(made_of.encode()).hexdigest()[:16]
        self.history: list[dict] = []
        self.best = [-math.inf, -math.inf, 0]  # score, minus the loss, and the epoch that reached them
        self.done = self.out_of_time = False
        if cfg.resume and self._finished():
            return
        seed_everything(cfg.seed)
        self.model = build_model(stage, self.settings, len(classes), pretrained=cfg.pretrained).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), cfg.lr_gc, weight_decay=cfg.weight_decay)
        if cfg.resume:
            self._go_on()

    def epochs(self) -> Iterator[int]:
        """Epochs still to run; stops early when the validation score has stopped rising or the time is up."""
        started = time.monotonic()
        while not self.done and len(self.history) < self.cfg.num_epochs:
            if len(self.history) - self.best[2] >= self.cfg.patience:
                print(f"{self.stage}: no better validation score for {self.cfg.patience} epochs; stopped early.")
                break
            if self.cfg.minutes and time.monotonic() - started > 60 * self.cfg.minutes:
                print(f"{self.stage}: the limit of {self.cfg.minutes:g} minutes is reached; stopped.")
                self.out_of_time = True
                break
            self.started, self.losses = time.monotonic(), []
            yield len(self.history)

    def batches(self, data: Dataset, table: pd.DataFrame, binary: bool) -> Iterator:
        """One epoch of balanced batches on the device, seeded by the epoch's number, under a progress bar."""
        epoch, cfg = len(self.history), self.cfg
        seed_everything(cfg.seed * 10_007 + epoch + 1)
        generator = torch.Generator().manual_seed(cfg.seed * 10_007 + epoch + 1)
        draws = max(cfg.images_per_epoch or len(data), cfg.batch_size)
        sampler = balanced_sampler(table, draws, binary, generator)
        loader = self._loader(data, sampler=sampler, drop_last=True, generator=generator)
        self.total_steps = len(loader) * cfg.num_epochs
        self.model.train()
        shown = bar(loader, desc=f"{self.stage} epoch {epoch + 1}/{cfg.num_epochs}", unit="batch")
        for step, batch in enumerate(shown):
            self.set_learning_rate((epoch * len(loader) + step) / self.total_steps)
            yield self._to_device(batch)
            shown.set_postfix(loss=f"{np.mean(self.losses[-20:]):.3f}")

    def set_learning_rate(self, progress: float) -> None:
        """Warm up linearly over the first 5 % of the training, then fall to 1 % along a cosine."""
        scale = progress / 0.05 if progress < 0.05 else 0.5 * (1 + math.cos(math.pi * (progress - 0.05) / 0.95))
        for group in self.optimizer.param_groups:
            group["lr"] = self.cfg.lr_gc * max(scale, 0.01)

    def step(self, loss: Tensor) -> None:
        """Walk the loss back, clip the gradient's norm to 1, and update.

        Raises:
            ValueError: the loss is not finite.
        """
        if not torch.isfinite(loss):
            raise ValueError(f"{self.stage}: the loss became {loss.item()}; lower lr_gc and run again")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.losses.append(loss.item())

    @torch.inference_mode()
    def validate(self, data: Dataset) -> tuple[Tensor, Tensor]:
        """Logits and targets of one fixed crop per image, the same in every epoch."""
        seed_everything(self.cfg.seed)
        self.model.eval()
        logits, targets = [], []
        for batch in self._loader(data, generator=torch.Generator().manual_seed(self.cfg.seed)):
            images, target = (batch["view1"], batch["source"]) if isinstance(batch, dict) else batch
            with self.precision():
                logits.append(self.model(images.to(self.device)).float().cpu())
            targets.append(target)
        return torch.cat(logits), torch.cat(targets)

    def end_epoch(self, epoch: int, values: dict[str, float], score: float) -> None:
        """Add a row to the history, keep the epoch if it is the best, and write the state to go on from."""
        row = {
            "epoch": epoch + 1,
            "seconds": time.monotonic() - self.started,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": float(np.mean(self.losses)),
            **values,
        }
        self.history.append(row)
        left = (self.cfg.num_epochs - epoch - 1) * row["seconds"]
        shown = ", ".join(f"{name} {row[name]:.4f}" for name in ("train_loss", *values))
        time_text = f"{row['seconds']:.0f} s, at most {left:.0f} s left"
        print(f"{self.stage} epoch {epoch + 1}/{self.cfg.num_epochs}: {shown} ({time_text})")
        if [score, -values["val_loss"]] > self.best[:2]:
            self.best = [score, -values["val_loss"], epoch + 1]
            self._save_best()
        state = {"key": self.key, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        save_checkpoint({**state, "history": self.history, "best": self.best}, self.state_path)

    def finish(self) -> pd.DataFrame:
        """Mark the best checkpoint as finished, drop the state to go on from, and give the history.

        A training that ran out of time keeps its state, so that it goes on when it is given more.
        """
        if not self.done and not self.out_of_time:
            best = torch.load(self.best_path, map_location="cpu", weights_only=True)
            save_checkpoint({**best, "history": self.history, "finished": True}, self.best_path)
            self.state_path.unlink(missing_ok=True)
            self.done = True
        return pd.DataFrame(self.history)

    def precision(self):
        """Mixed precision where the hardware has bfloat16; full precision elsewhere."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=uses_bfloat16(self.device))

    def _save_best(self) -> None:
        content = {
            "stage": self.stage,
            "weights": self.model.state_dict(),
            "classes": self.classes,
            "preprocessing": self._preprocessing(),
            "crops": self.cfg.crops,
            "threshold": 0.5,
            "temperature": 1.0,
            "config": self.settings,
            "manifest_hash": self.manifest_hash,
            "metrics": {"val": self.history[-1]},
            "history": self.history,
            "key": self.key,
            "finished": False,
        }
        save_checkpoint(content, self.best_path)

    def _preprocessing(self) -> dict:
        """What a crop goes through; mean and std are None where the network normalises each image by itself."""
        named = dict(self.model.named_buffers())
        values = {name: named[name].flatten().tolist() if name in named else None for name in ("mean", "std")}
        return {"crop_size": self.cfg.crop_size, "equalise_quality": self.equalise_quality, **values}

    def _finished(self) -> bool:
        if not self.best_path.exists():
            return False
        best = torch.load(self.best_path, map_location="cpu", weights_only=True)
        if best["key"] != self.key or not best["finished"]:
            return False
        print(f"{self.stage}: {self.best_path.name} is already trained on this data with these parameters; kept.")
        if best["crops"] != self.cfg.crops:
            update_checkpoint(self.best_path, crops=self.cfg.crops)
        self.history, self.done = best["history"], True
        return True

    def _go_on(self) -> None:
        if not self.state_path.exists():
            return
        state = torch.load(self.state_path, map_location="cpu", weights_only=True)
        if state["key"] != self.key:
            print(f"{self.stage}: {self.state_path.name} belongs to other data or parameters; starting afresh.")
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history, self.best = state["history"], state["best"]
        print(f"{self.stage}: going on after epoch {len(self.history)}.")

    def _loader(self, data: Dataset, **options) -> DataLoader:
        return DataLoader(
            data, self.cfg.batch_size, num_workers=self.cfg.workers, pin_memory=self.device.type == "cuda", **options
        )

    def _to_device(self, batch):
        if isinstance(batch, dict):
            return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        return [value.to(self.device, non_blocking=True) for value in batch]


def _sources() -> list[str]:
    """The code that a training follows from: when it changes, an old state is not gone on from."""
    here = Path(__file__).parent
    files = [here / f"{name}.py" for name in ("datasets", "degrade", "losses", "training")]
    return [path.read_text("utf-8") for path in (*files, *sorted(here.glob("models/*.py")))]


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch, the CPU's and the GPU's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
