"""What a training keeps on disk: the state to go on from, and the best epoch for use.

`train_<stage>.pt` is written after each epoch, every few minutes within one, and at a signal; `best_<…>.pt` at each
epoch that is better than those before.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch

from dfd import __version__
from dfd.config import CHECKPOINTS
from dfd.inference.stage import save_checkpoint, update_checkpoint

# Parameters that leave the weights as they are.
NOT_LEARNT_FROM = (
    "data", "out", "resume", "track", "checkpoint_minutes", "workers", "decoded_gb",
    "ablate", "leave_out", "coverage", "accept",
)  # fmt: skip


class Files:
    """The two files of one training.

    Args:
        stage: stage1 or stage2.
        out: the run folder.
        key: of what the training follows from, see `key`; a file with another one is not gone on from.
    """

    def __init__(self, stage: str, out: Path, key: str):
        self.stage, self.key = stage, key
        self.best_path, self.state_path = out / CHECKPOINTS[stage], out / f"train_{stage}.pt"
        self.saved = time.monotonic()

    def due(self, minutes: float) -> bool:
        """Whether the last state is older than some minutes; never for 0."""
        return 0 < 60 * minutes < time.monotonic() - self.saved

    def save_state(self, content: dict[str, Any]) -> None:
        """Write the state to go on from."""
        save_checkpoint({"key": self.key, **content}, self.state_path)
        self.saved = time.monotonic()

    def save_best(self, content: dict[str, Any]) -> None:
        """Write the best epoch so far."""
        save_checkpoint({**content, "key": self.key, "finished": False}, self.best_path)

    def finish(self, history: list[dict]) -> None:
        """Mark the best epoch as that of a finished training, and drop the state."""
        best = torch.load(self.best_path, map_location="cpu", weights_only=True)
        save_checkpoint({**best, "history": history, "finished": True}, self.best_path)
        self.state_path.unlink(missing_ok=True)

    def finished(self, crops: int, crop_mode: str) -> list[dict]:
        """The history where the training is finished, and its checkpoint brought to these crops; else empty."""
        if not self.best_path.exists():
            return []
        best = torch.load(self.best_path, map_location="cpu", weights_only=True)
        if best["key"] != self.key or not best["finished"]:
            return []
        if self._has_state():  # killed in the middle of `finish`
            self.state_path.unlink()
        print(f"{self.stage}: {self.best_path.name} is already trained on this data with these parameters; kept.")
        if (best["crops"], best.get("crop_mode")) != (crops, crop_mode):
            update_checkpoint(self.best_path, crops=crops, crop_mode=crop_mode)
        return best["history"]

    def _has_state(self) -> bool:
        """Whether the state is this training's, and not of one with other data or parameters."""
        if not self.state_path.exists():
            return False
        return torch.load(self.state_path, map_location="cpu", weights_only=True, mmap=True)["key"] == self.key

    def state(self) -> dict[str, Any] | None:
        """The state to go on from, if there is one and it fits."""
        if not self.state_path.exists():
            return None
        state = torch.load(self.state_path, map_location="cpu", weights_only=True)
        if state["key"] != self.key:
            print(f"{self.stage}: {self.state_path.name} belongs to other data or parameters; starting afresh.")
            return None
        return state


def key(stage: str, manifest_hash: str, settings: dict[str, Any]) -> str:
    """A hash of all that the weights follow from: data, parameters and code."""
    unlimited = {k: v for k, v in settings.items() if k not in ("workers", "minutes", "crops", "crop_mode")}
    made_of = json.dumps([stage, manifest_hash, unlimited, _sources()])
    return hashlib.sha256(made_of.encode()).hexdigest()[:16]


def _sources() -> list[str]:
    """The code that a training follows from: when it changes, an old state is not gone on from."""
    return [__version__]
