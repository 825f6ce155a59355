"""The session of a training: what both stages keep between epochs, and how they go on after a kill.

Each draw of an epoch has its own seed, and so has each step. So `workers` changes nothing, and a run that was killed
and goes on gives the same weights as one that was not: exactly on a CPU, else but for rounding.
"""

from __future__ import annotations

import math
import random
import time
import traceback
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dfd import config
from dfd.core import parallel, runs
from dfd.core.images import ImageError
from dfd.core.runs import Live, bar
from dfd.data import manifest
from dfd.data.crops import balanced_sampler, seeds, spread
from dfd.degrade.registry import RandomDegrade
from dfd.inference.stage import build_model
from dfd.plots.results import plot_history
from dfd.train import kept, loading, tracking
from dfd.train.learners import MODEL, Learners

CURVES = "Training: losses and validation metrics over the epochs"


class Session(Learners):
    """What a training run keeps: networks, optimisers, averaged weights, history, best epoch.

    Args:
        stage: stage1 or stage2.
        table: the manifest; its digest goes into the checkpoint.
        cfg: parameters of the stage.
        classes: names of the logits.
    """

    def __init__(self, stage: str, table: pd.DataFrame, cfg: config.Training, classes: list[str]):
        parallel.join()
        super().__init__(stage, cfg, parallel.device())
        self.classes = classes
        self.out = Path(cfg.out)
        if parallel.is_main():
            self.out.mkdir(parents=True, exist_ok=True)
        self.manifest_hash = manifest.digest(table)
        runs.keep_freed()
        self.degrade = RandomDegrade(smallest=cfg.crop_size) if cfg.degrade else None
        self.equalise_quality = cfg.equalise_quality if cfg.equalise else None
        self.settings = {k: v for k, v in cfg.model_dump().items() if k not in kept.NOT_LEARNT_FROM}
        self.key = kept.key(stage, self.manifest_hash, self.settings)
        self.files = kept.Files(stage, self.out, self.key)
        self.root = Path(table.attrs.get("root", cfg.data))
        self.tracker = tracking.Tracker(cfg.track, self.out).begin(stage, self.settings, self.key)
        self.history: list[dict] = []
        self.steps, self.spent = 0, 0.0  # of the epoch that is not finished
        self.stop, self.started = runs.Stop(), time.monotonic()
        self.best = [-math.inf, -math.inf, 0]  # score, minus the loss, and the epoch that reached them
        self.curves = Live(CURVES)
        self.done = self.out_of_time = False
        if cfg.batch_size < parallel.count():
            raise ValueError(f"batch_size is {cfg.batch_size}, too small for {parallel.count()} processes")
        if cfg.resume and parallel.is_main() and (finished := self.files.finished(cfg.crops, cfg.crop_mode)):
            self.history, self.done = finished, True
            self._draw()
        self.done, self.history = parallel.agreed((self.done, self.history))
        if self.done:
            return
        seed_everything(cfg.seed)
        self.add(MODEL, build_model(stage, self.settings, len(classes), pretrained=cfg.pretrained))
        self.begin_average()

    @property
    def best_path(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.files.best_path

    def epochs(self) -> Iterator[int]:
        """Epochs still to run; stops early when the validation score has stopped rising or the time is up.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the step was finished and the state is kept.
            InUse: another run works in the folder.
        """
        if self.done:
            return
        say = f"{self.stage}: stopping after this step; once more ends at once."
        with runs.run_lock(self.out), runs.deferred(say) as self.stop:
            yield from self._epochs()

    def _epochs(self) -> Iterator[int]:
        if self.cfg.resume:
            self._go_on()
        started, before = time.monotonic(), len(self.history)
        while len(self.history) < self.cfg.num_epochs:
            self.started = time.monotonic() - self.spent
            self._stop_if_asked()
            if len(self.history) - self.best[2] >= self.cfg.patience:
                print(f"{self.stage}: no better validation score for {self.cfg.patience} epochs; stopped early.")
                break
            late = parallel.agreed(self.cfg.minutes and time.monotonic() - started > 60 * self.cfg.minutes)
            if late and len(self.history) > before:
                print(f"{self.stage}: the limit of {self.cfg.minutes:g} minutes is reached; stopped.")
                self.out_of_time = True
                break
            yield len(self.history)

    def batches(self, data: Dataset, table: pd.DataFrame, binary: bool, every: int = 1) -> Iterator:
        """One epoch of balanced batches on the device, seeded by the epoch's number, under a progress bar.

        Args:
            data: of the table's images; where `every` is above 1 it holds them twice, see `plan`.
            table, binary, every: as in `plan`.
        """
        epoch, cfg = len(self.history), self.cfg
        plan = self.plan(epoch, table, binary, every)
        self.total_steps = len(plan) * cfg.num_epochs
        for network in self.networks.values():
            network.train()
        loader = self._loader(data, [parallel.share(batch) for batch in plan[self.steps :]])
        title = f"{self.stage} epoch {epoch + 1}/{cfg.num_epochs}"
        where = {"initial": self.steps, "total": len(plan), "disable": not parallel.is_main()}
        shown = bar(loader, desc=title, unit="batch", **where)
        for step, batch in enumerate(self._read(shown), self.steps):
            self.set_learning_rate((epoch * len(plan) + step) / self.total_steps)
            self.turn = step
            seed_everything(seeds(parallel.count(), cfg.seed, epoch + 1, step + 1)[parallel.rank()])
            yield self._to_device(batch)
            shown.set_postfix(loss=f"{np.mean(self.losses[MODEL][-20:]):.3f}")
            self.steps = step + 1
            self._stop_if_asked()
            if self.files.due(cfg.checkpoint_minutes):
                self._save_state()

    def should_stop(self) -> bool:
        """Whether a signal asked to end, in any of the processes; all are told at the same step."""
        self.stop.number = parallel.most(self.stop.number)
        return bool(self.stop.number)

    def _stop_if_asked(self) -> None:
        if self.should_stop():
            self._save_state()
            self.tracker.end("stopped")
            parallel.agreed(None)  # one that ends takes the others with it: not before the state is written
            how = "The same again goes" if self.cfg.resume else "With resume, the same goes"
            text = f"{self.stage}: stopped after {self._where()}; kept in {self.files.state_path}. {how} on from there."
            raise runs.Interrupted(text, self.stop.number)

    def _where(self) -> str:
        epoch = len(self.history)
        return f"step {self.steps} of epoch {epoch + 1}" if self.steps else f"epoch {epoch}"

    def _read(self, batches: Iterable) -> Iterator:
        """The batches, as many in each process; where one cannot be read, the state is kept and all raise why."""
        batches = iter(batches)
        while True:
            batch = error = None
            try:
                batch = next(batches, None)
            except Exception as raised:
                traceback.clear_frames(raised.__traceback__)  # they hold the loader, whose processes would linger
                error = self._explained(raised)
            if batch is error is None:
                return
            if parallel.most(int(error is not None)):
                self._save_state()
                try:
                    raise parallel.first(error)  # which waits for the state: one that ends takes the others with it
                finally:
                    error = None  # as the error holds this frame
            yield batch

    def _explained(self, error: Exception) -> Exception:
        if not self.root.is_dir():
            text = f"{self.stage}: the data folder {self.root} is gone; bring it back and run the same again. "
            found = FileNotFoundError(f"{text}What is trained is kept in {self.files.state_path}")
        elif isinstance(error, ImageError):
            found = ImageError(str(error).rpartition("ImageError: ")[2].strip())  # a loader process adds its traceback
        else:
            return error
        found.__cause__ = error
        return found

    def plan(self, epoch: int, table: pd.DataFrame, binary: bool, every: int = 1) -> list[list[tuple[int, int]]]:
        """The draws of each batch of an epoch, (index, seed) each, by the epoch's number alone: none is loaded.

        Args:
            epoch: from 0.
            table, binary: as in `balanced_sampler`.
            every: batches for one of indices as they are; those of the others count on from the table's length, where
                the data set has the images once more.
        """
        cfg = self.cfg
        draws = max(cfg.images_per_epoch or len(table), cfg.batch_size)
        order, *each = seeds(draws + 1, cfg.seed, epoch + 1)
        chosen = np.array(list(balanced_sampler(table, draws, binary, torch.Generator().manual_seed(order))))
        chosen = chosen[spread(table["is_fake"].to_numpy()[chosen])].tolist()
        found = _batches(list(zip(chosen, each, strict=True)), cfg.batch_size)[: draws // cfg.batch_size]
        return [[(i + len(table) * bool(turn % every), seed) for i, seed in batch] for turn, batch in enumerate(found)]

    @torch.inference_mode()
    def validate(self, data: Dataset) -> tuple[Tensor, Tensor]:
        """Logits of the averaged weights, and targets, for one fixed crop per image, the same in every epoch."""
        self.averaged.eval()
        logits, targets = [], []
        draws = parallel.share(list(enumerate(seeds(len(data), self.cfg.seed, 0))))
        size = -(-self.cfg.batch_size // parallel.count())
        plan = _batches(draws, size)
        most = -(-len(data) // (parallel.count() * size))  # of a process; one that has a batch less reads one in vain
        for batch in self._read(self._loader(data, plan + [[(0, 0)]] * (most - len(plan)))):
            self._stop_if_asked()
            images, target = (batch["view1"], batch["source"]) if isinstance(batch, dict) else batch
            with self.precision():
                logits.append(self.averaged(images.to(self.device)).float().cpu())
            targets.append(target)
        return tuple(parallel.gathered(torch.cat(parts)[: len(draws)]) for parts in (logits, targets))

    def end_epoch(self, epoch: int, values: dict[str, float], score: float) -> None:
        """Add a row to the history, redraw the curves, keep the epoch if it is the best, and write the state."""
        values, score = parallel.agreed((values, score))
        losses = {name: float(np.mean(found)) for name, found in self.losses.items()}
        row = {
            "epoch": epoch + 1,
            "seconds": time.monotonic() - self.started,
            "lr": self.optimizers[MODEL].param_groups[0]["lr"],
            "train_loss": losses.pop(MODEL),
            **values,
            **{f"{name}_loss": value for name, value in losses.items()},
            "score": score,
        }
        self.history.append(row)
        self.tracker.epoch(row)
        self.steps, self.spent, self.losses = 0, 0.0, defaultdict(list)
        better = [score, -values["val_loss"]] > self.best[:2]
        if better:
            self.best = [score, -values["val_loss"], epoch + 1]
        if parallel.is_main():
            self._report_epoch(epoch, row, values)
            if better:
                self._save_best()
            self._save_state()

    def _report_epoch(self, epoch: int, row: dict[str, float], values: dict[str, float]) -> None:
        left = (self.cfg.num_epochs - epoch - 1) * row["seconds"]
        shown = ", ".join(f"{name} {row[name]:.4f}" for name in ("train_loss", *values))
        time_text = f"{row['seconds']:.0f} s, at most {left:.0f} s left"
        print(f"{self.stage} epoch {epoch + 1}/{self.cfg.num_epochs}: {shown} ({time_text})")
        self._draw()

    def _save_state(self) -> None:
        if not parallel.is_main():
            return
        state = {
            **self.learnt(),
            "history": self.history,
            "best": self.best,
            "steps": self.steps,
            "losses": dict(self.losses),
            "spent": time.monotonic() - self.started if self.steps else 0.0,
        }
        self.files.save_state(state)

    def finish(self) -> pd.DataFrame:
        """Mark the best checkpoint as finished, drop the state to go on from, and give the history.

        A training that ran out of time keeps its state, so that it goes on when it is given more.
        """
        if not self.done:
            self.tracker.end("stopped" if self.out_of_time else "finished")
        if not self.done and not self.out_of_time and parallel.is_main():
            self.files.finish(self.history)
        self.done = parallel.agreed(self.done or not self.out_of_time)
        return pd.DataFrame(self.history)

    def _draw(self) -> None:
        if parallel.count() > 1:
            return  # a notebook shows them when its processes have ended; they have no way to its page
        self.curves.show(lambda: plot_history(pd.DataFrame(self.history)))

    def _save_best(self) -> None:
        content = {
            "stage": self.stage,
            "weights": self.averaged.module.state_dict(),
            "classes": self.classes,
            "preprocessing": self._preprocessing(),
            "crops": self.cfg.crops,
            "crop_mode": self.cfg.crop_mode,
            "threshold": 0.5,
            "operating_points": {},
            "temperature": 1.0,
            "bank": None,
            "ood_threshold": None,
            "conformal_quantile": 1.0,
            "config": self.settings,
            "manifest_hash": self.manifest_hash,
            "metrics": {"val": self.history[-1]},
            "history": self.history,
        }
        self.files.save_best(content)

    def _preprocessing(self) -> dict:
        """What a crop goes through; mean and std are None where the network normalises each image by itself."""
        named = dict(self.model.named_buffers())
        values = {name: named[name].flatten().tolist() if name in named else None for name in ("mean", "std")}
        return {"crop_size": self.cfg.crop_size, "equalise_quality": self.equalise_quality, **values}

    def _go_on(self) -> None:
        state = parallel.agreed(self.files.state() if parallel.is_main() else None)
        if state is None:
            return
        self.take_up(state)
        self.history, self.best = state["history"], state["best"]
        self.steps, self.spent = state["steps"], state["spent"]
        self.losses = defaultdict(list, state["losses"])
        print(f"{self.stage}: going on after {self._where()}.")

    def _loader(self, data: Dataset, plan: list[list[tuple[int, int]]]) -> Iterator:
        return loading.batches(data, plan, self.device, self.cfg.workers)

    def _to_device(self, batch):
        if isinstance(batch, dict):
            return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        return [value.to(self.device, non_blocking=True) for value in batch]


def _batches(draws: list[tuple[int, int]], size: int) -> list[list[tuple[int, int]]]:
    return [draws[start : start + size] for start in range(0, len(draws), size)]


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch, the CPU's and the GPU's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
