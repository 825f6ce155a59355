"""The networks that a training trains: an optimiser each, one schedule for all, and the model's moving average."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dfd import config
from dfd.core import parallel
from dfd.inference.stage import uses_bfloat16

MODEL = "model"  # the network that the checkpoint is about; others are added by name


class Learners:
    """What of a training learns; `dfd.train.loop.Session` adds what it learns from, when, and what is kept.

    Args:
        stage: stage1 or stage2.
        cfg: parameters of the stage.
        device: where the networks are.
    """

    def __init__(self, stage: str, cfg: config.Training, device: torch.device):
        self.stage, self.cfg, self.device = stage, cfg, device
        self.networks: dict[str, nn.Module] = {}
        self.parts = {MODEL}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.losses: dict[str, list[float]] = defaultdict(list)  # of the epoch that is not finished

    @property
    def model(self) -> nn.Module:
        """The network that is trained for use."""
        return self.networks[MODEL]

    def add(self, name: str, network: nn.Module, rate: float | None = None, part: bool = False) -> nn.Module:
        """Train one more network beside the model, with an optimiser of its own; before the first epoch.

        Args:
            name: of its loss in the history.
            rate: learning rate at its highest; none takes lr_gc.
            part: the network is a part of the model; its loss counts as the model's, and the average follows it.
        """
        self.parts |= {name} if part else set()
        self.networks[name] = network = parallel.together(network.to(self.device))
        parallel.same(network)
        rate, decay = rate or self.cfg.lr_gc, self.cfg.weight_decay
        self.optimizers[name] = torch.optim.AdamW(
            [{"params": network.parameters(), "highest": rate}], rate, weight_decay=decay, fused=True
        )
        return network

    def begin_average(self) -> None:
        """Average the model's weights from now on; the networks are there."""
        self.averaged = AveragedModel(self.model, multi_avg_fn=_moving_average(self.cfg.ema), use_buffers=True)

    def set_learning_rate(self, progress: float) -> None:
        """Warm up linearly over the first 5 % of the training, then fall to 1 % along a cosine."""
        scale = progress / 0.05 if progress < 0.05 else 0.5 * (1 + math.cos(math.pi * (progress - 0.05) / 0.95))
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["highest"] * max(scale, 0.01)

    def step(self, loss: Tensor, name: str = MODEL) -> None:
        """Walk the loss back into one network alone, clip the gradient's norm to 1, and update.

        Args:
            loss: of the whole batch, in every process.
            name: of the network.

        Raises:
            ValueError: the loss is not finite.
        """
        if not torch.isfinite(loss):
            raise ValueError(f"{self.stage}: the loss of {name} became {loss.item()}; lower lr_gc and run again")
        parameters = list(self.networks[name].parameters())
        self.optimizers[name].zero_grad(set_to_none=True)
        loss.backward(inputs=parameters)
        parallel.add_up(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizers[name].step()
        is_model = name in self.parts
        self.losses[MODEL if is_model else name].append(loss.item())
        if is_model:
            self.averaged.update_parameters(self.model)

    def precision(self):
        """Mixed precision where the hardware has bfloat16; full precision elsewhere."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=uses_bfloat16(self.device))

    def learnt(self) -> dict[str, Any]:
        """All weights and what the optimisers know, to go on from."""
        return {
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "averaged": self.averaged.state_dict(),
        }

    def take_up(self, state: dict[str, Any]) -> None:
        """Go on from what `learnt` gave."""
        for name, network in self.networks.items():
            network.load_state_dict(state["networks"][name])
            self.optimizers[name].load_state_dict(state["optimizers"][name])
        self.averaged.load_state_dict(state["averaged"])


def _moving_average(decay: float):
    """Exponential moving average, fast while the weights are young; counters are copied."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        count = int(count)
        weight = 1 - min(decay, (1 + count) / (10 + count))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, weight)
        else:
            torch._foreach_copy_(averaged, current)

    return update
