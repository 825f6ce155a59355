"""What both stages' trainings share. Each process has a part of every batch, and batch norms see that part alone."""

import math
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator, InitProcessGroupKwargs, skip_first_batches
from accelerate.utils import DataLoaderConfiguration, broadcast_object_list, set_seed
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from dfd.core import ImageError, runs
from dfd.data.crops import EpochSampler, seeds
from dfd.inference import build_model, save_checkpoint, update_checkpoint, uses_bfloat16
from dfd.train.checkpoint import Checkpoint, Tracking
from dfd.train.processes import TIMEOUT, average_over_processes, broadcast_module, build_loader, loading

OnEpoch = Callable[[pd.DataFrame], None] | None
PROGRESS = ("history", "best", "step_number", "seconds", "losses")  # of a Trainer, as its state keeps it


class TrainedNetwork:
    """A module with its optimizer and schedule: a linear warm-up over 5 % of its steps, then a cosine to 1 %."""

    def __init__(self, module: nn.Module, lr: float, weight_decay: float, steps: int, loss_name: str):
        self.module, self.loss_name, warmup = module, loss_name, max(1, round(0.05 * steps))
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr, weight_decay=weight_decay, fused=True)
        rise = LinearLR(self.optimizer, 0.01, total_iters=warmup)
        fall = CosineAnnealingLR(self.optimizer, max(1, steps - warmup), eta_min=0.01 * lr)
        self.schedule = SequentialLR(self.optimizer, [rise, fall], [warmup])
        self.parts = {"network": module, "optimizer": self.optimizer, "schedule": self.schedule}


class Trainer:
    """One training on a manifest with its root in attrs; `on_epoch` is given the history after each epoch."""

    def __init__(self, stage: str, table: pd.DataFrame, cfg: Any, classes: list[str], on_epoch: OnEpoch = None):
        self.stage, self.cfg, self.classes, self.on_epoch = stage, cfg, classes, on_epoch
        self.checkpoint, self.tracking = Checkpoint(stage, table, cfg, classes), Tracking(stage, table, cfg)
        self.crops: Any = {"root": Path(table.attrs["root"])} | self.checkpoint.crops
        has_gpu = torch.cuda.is_available()
        self.accelerator = Accelerator(
            cpu=not has_gpu, log_with=self.tracking.name, project_dir=Path(cfg.out) / "tensorboard",
            mixed_precision="bf16" if uses_bfloat16(torch.device("cuda" if has_gpu else "cpu")) else "no",
            dataloader_config=DataLoaderConfiguration(split_batches=True, non_blocking=True),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)])  # fmt: skip
        if cfg.batch_size < 2 * (processes := self.accelerator.num_processes):  # else some have photos alone
            raise ValueError(f"batch_size {cfg.batch_size} is too few: each of {processes} processes takes two images")
        self.autocast, self.device = self.accelerator.autocast, self.accelerator.device
        self.is_main = self.accelerator.is_main_process
        self.networks, self.loaders = dict[str, TrainedNetwork](), dict[str, DataLoader]()
        self.history: list[dict[str, float]] = []
        self.best = [-math.inf, -math.inf, 0]  # score, minus the validation loss, and the epoch that reached them
        self.step_number, self.seconds, self.losses = 0, 0.0, {}  # of the epoch that is not finished
        self.stop, self.saved, self.began, self.views = SimpleNamespace(number=0), time.monotonic(), 0.0, torch.empty(0)

    def is_finished(self) -> bool:
        """Whether this training was finished before, on the same data with the same parameters; says so."""
        (self.history,) = broadcast_object_list([self.checkpoint.finished_history() if self.is_main else []])
        if self.history and self.on_epoch and self.is_main:
            self.on_epoch(pd.DataFrame(self.history))
        return bool(self.history)

    def load(self, name: str, data: Any, sampler: EpochSampler | None = None) -> None:
        """Load balanced batches for `batches`, under the name train, or one crop of each image for `validate`."""
        draws = sampler or list(enumerate(seeds(len(data), self.cfg.seed, 0)))
        self.loaders[name] = self.accelerator.prepare(build_loader(data, draws, self.cfg, self.device))
        self.sampler = sampler or self.sampler

    def build_model(self) -> nn.Module:
        """The stage's network, and the moving average of its weights, which is what is validated and kept."""
        set_seed(self.cfg.seed)
        settings, pretrained = self.checkpoint.settings, self.cfg.pretrained
        self.model = build_model(self.stage, settings, len(self.classes), pretrained).to(self.device)

        def average(averaged: Any, current: Any, count: Tensor | int) -> None:
            decay = min(self.cfg.ema, (1 + int(count)) / (10 + int(count)))  # fast while the weights are young
            get_ema_multi_avg_fn(decay)(averaged, current, count)

        self.averaged = AveragedModel(self.model, self.device, multi_avg_fn=average, use_buffers=True)
        return self.model

    def add(self, name: str, network: nn.Module, lr: float, every: int = 1) -> None:
        """Let a network learn, at most at `lr`, by a `step` of its name in `every` batches of the loaded data."""
        steps = math.ceil(self.sampler.batches / every) * self.cfg.num_epochs  # each epoch begins with one
        loss_name = "train" if network is self.model else name
        self.networks[name] = TrainedNetwork(network, lr, self.cfg.weight_decay, steps, loss_name)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Work alone in the run folder; a signal ends the training after the step, with a state and Interrupted."""
        say = f"{self.stage}: stopping after this step; once more ends at once."
        with runs.run_lock(self.cfg.out, shared=True), runs.deferred(say) as self.stop, self.tracking.environment():
            try:
                yield
            finally:
                self.loaders.clear()
                self.accelerator.free_memory()  # which holds the loaders too: their processes end
                for tracker in self.accelerator.trackers:
                    tracker.finish()

    def epochs(self) -> Iterator[int]:
        """Epochs still to run; stops early when the validation score has stopped rising."""
        self._resume()
        while len(self.history) < self.cfg.num_epochs:
            self.began = time.monotonic() - self.seconds
            self._pause()
            if len(self.history) - self.best[2] >= self.cfg.patience:
                text = f"no better validation score for {self.cfg.patience} epochs; stopped early."
                self.accelerator.print(f"{self.stage}: {text}")
                return
            yield len(self.history)

    def batches(self) -> Iterator[tuple[int, Any]]:
        """The rest of the epoch's batches on the device, with their numbers, under a progress bar."""
        epoch, first = len(self.history), self.step_number
        self.sampler.epoch = epoch
        for network in self.networks.values():
            network.module.train()
        title = f"{self.stage} epoch {epoch + 1}/{self.cfg.num_epochs}"
        with runs.bar(None, desc=title, initial=first, total=self.sampler.batches, disable=not self.is_main) as shown:
            for step, batch in enumerate(self._read("train", first), first):
                set_seed(seeds(1, self.cfg.seed, epoch + 1, step + 1)[0])
                self.views = (batch["view1"] if isinstance(batch, dict) else batch[0])[:16]  # for the tracker
                yield step, batch
                self.step_number = step + 1
                shown.set_postfix(loss=f"{np.mean(self.losses['train'][-20:]):.3f}", refresh=False)
                shown.update()

    def step(self, name: str, losses: Tensor | dict[str, Tensor]) -> None:
        """Backpropagate a loss, or losses by name with the config's weights, into one network only, and update it."""
        network, parts = self.networks[name], losses if isinstance(losses, dict) else {}
        weighted = [getattr(self.cfg, f"{part}_weight", 1.0) * value for part, value in parts.items()]
        loss: Any = sum(weighted) if parts else losses
        values = torch.stack([value.detach().float() for value in (loss, *parts.values())])
        network.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss, inputs=network.parameters)
        gradients = [parameter.grad for parameter in network.parameters if parameter.grad is not None]
        average_over_processes(self.accelerator, [values, *gradients])
        numbers = values.tolist()
        if not math.isfinite(numbers[0]):
            raise ValueError(f"{self.stage}: the loss of {name} became {numbers[0]}; lower lr_gc or lr_d and run again")
        nn.utils.clip_grad_norm_(network.parameters, 1.0)
        network.optimizer.step()
        network.schedule.step()
        for part, value in zip((network.loss_name, *parts), numbers, strict=True):
            self.losses.setdefault(part, []).append(value)
        if network.loss_name == "train":
            self.averaged.update_parameters(self.model)

    @torch.inference_mode()
    def validate(self, name: str, answer: Callable[[Any], Tensor] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Logits (N, ...) of the averaged weights, or `answer`s, and a set's targets (N,); the same in each process."""
        self.averaged.eval()
        broadcast_module(self.averaged)  # its batch norms have seen one process's part
        outputs = []
        for batch in self._read(name):
            images, target = (batch["view1"], batch["source"]) if isinstance(batch, dict) else batch
            with self.autocast():
                logits = (answer(batch) if answer else self.averaged(images)).float()
            outputs.append([part.cpu() for part in self.accelerator.gather_for_metrics((logits, target))])
        logits, targets = (torch.cat(parts).numpy() for parts in zip(*outputs, strict=True))
        return logits, targets

    def end_epoch(self, score: float, val_loss: float, right: pd.Series, **metrics: float) -> None:
        """Add the epoch to the history, keep it if its score is the best or its loss the lowest of those, save all.

        `right` says of validation images, by their rows of the table, whether they were judged right: for trackers.
        """
        losses = {name: float(np.mean(values)) for name, values in self.losses.items()}
        row = {"epoch": len(self.history) + 1, "seconds": time.monotonic() - self.began}
        row["lr"] = next(iter(self.networks.values())).optimizer.param_groups[0]["lr"]
        row |= {"train_loss": losses.pop("train"), "val_loss": val_loss, **metrics}
        row |= {f"{name}_loss": value for name, value in losses.items()} | {"score": score}
        self.history.append(row)
        self.step_number, self.seconds, self.losses = 0, 0.0, {}
        if is_better := [score, -val_loss] > self.best[:2]:
            self.best = [score, -val_loss, row["epoch"]]
        shown = ", ".join(f"{name} {row[name]:.4f}" for name in ("train_loss", "val_loss", *metrics))
        left = (self.cfg.num_epochs - row["epoch"]) * row["seconds"]
        title = f"{self.stage} epoch {row['epoch']}/{self.cfg.num_epochs}"
        self.accelerator.print(f"{title}: {shown} ({row['seconds']:.0f} s, at most {left:.0f} s left)")
        if self.is_main:
            self.tracking.log(self.accelerator, self.history, right, self.views.float().cpu())
            if self.on_epoch:
                self.on_epoch(pd.DataFrame(self.history))
            if is_better:
                self.checkpoint.save_best(self.averaged.module, self.history)
        self._save_state()

    def finish(self) -> pd.DataFrame:
        """Mark the training as finished; gives the history."""
        if self.is_main:
            update_checkpoint(self.checkpoint.path, history=self.history, finished=True)
            self.checkpoint.state_path.unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()
        return pd.DataFrame(self.history)

    def _read(self, name: str, first: int = 0) -> Iterator[Any]:
        """The batches from the first. No variable holds loader or iterator: their processes would outlive an error."""
        try:
            with loading():
                for batch in skip_first_batches(self.loaders[name], first) if first else self.loaders[name]:
                    self._pause()
                    yield batch
            self._pause()
        except (ImageError, OSError) as error:
            traceback.clear_frames(error.__traceback__)
            self._pause() if self.stop.number else self._save_state()  # Ctrl-C ends a process that is just starting
            if not isinstance(error, ImageError):
                raise
            raise ImageError(f"{error}; what is trained is kept in {self.checkpoint.state_path}") from error

    def _pause(self) -> None:
        """Between two steps: save the state where it is due, and stop where a signal asked any process to."""
        is_due = 0 < 60 * self.cfg.checkpoint_minutes < time.monotonic() - self.saved
        flags: Any = self.accelerator.reduce(torch.tensor([self.stop.number > 0, is_due], device=self.device).int())
        is_stopped, is_due = (flags > 0).tolist()
        if is_stopped or is_due:
            self._save_state()
        if is_stopped:
            self.accelerator.wait_for_everyone()  # the first to end takes the others with it
            number = self.stop.number or signal.SIGTERM
            if not self.is_main:
                raise SystemExit(128 + number)
            text = f"{self.stage}: stopped after {self._where()}; kept in {self.checkpoint.state_path}."
            raise runs.Interrupted(f"{text} The same again goes on from there, with resume.", number)

    def _where(self) -> str:
        epoch = len(self.history)
        return f"step {self.step_number} of epoch {epoch + 1}" if self.step_number else f"epoch {epoch}"

    def _save_state(self) -> None:
        self.saved = time.monotonic()
        self.seconds = self.saved - self.began if self.step_number else 0.0
        if self.is_main:
            state = {name: getattr(self, name) for name in PROGRESS}
            for name, network in self.networks.items():
                state[name] = {key: part.state_dict() for key, part in network.parts.items()}
            state |= {"averaged": self.averaged.state_dict(), "key": self.checkpoint.key}
            save_checkpoint(state, self.checkpoint.state_path)

    def _resume(self) -> None:
        (state,) = broadcast_object_list([self.checkpoint.load_state() if self.is_main else {}])
        if not state:
            for network in self.networks.values():
                broadcast_module(network.module)
            return
        for name, network in self.networks.items():
            for key, part in network.parts.items():
                part.load_state_dict(state[name][key])
        self.averaged.load_state_dict(state["averaged"])
        vars(self).update({name: state[name] for name in PROGRESS})
        self.accelerator.print(f"{self.stage}: going on after {self._where()}.")
