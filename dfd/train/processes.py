"""Processes of a training: those that load, and what those that train give one another."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce
from torch.utils.data import DataLoader

from dfd import config
from dfd.core import ImageError, runs
from dfd.data.crops import Seeded

TIMEOUT = timedelta(hours=12)  # that processes wait for one another, as long as a scan may take
SHARED_MEMORY = "/dev/shm"  # what loader processes hand batches over in
MAX_WORKERS = 8  # loader processes, where none are asked for


def main_process_first() -> AbstractContextManager[None]:
    """Let the first process of a training go through a block before the others do."""
    others = f"the {os.environ.get('WORLD_SIZE')} processes of this training at {os.environ.get('MASTER_ADDR')}"
    what = f"{others}, for {TIMEOUT} at most; unset RANK and WORLD_SIZE to train alone"
    with nullcontext() if runs.is_alone() else runs.waiting(what):
        return PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT).main_process_first()


def average_over_processes(accelerator: Accelerator, tensors: list[Tensor]) -> None:
    """Replace tensors by their means over the processes, in one message."""
    if accelerator.num_processes > 1:
        flat: Any = accelerator.reduce(torch.cat([tensor.flatten().float() for tensor in tensors]), "mean")
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of a tensor over the processes, with its gradient."""
    return all_reduce(tensor) if distributed.is_initialized() and distributed.get_world_size() > 1 else tensor


def broadcast_module(module: nn.Module) -> None:
    """Give all processes the main one's weights and buffers."""
    for tensor in module.state_dict().values():
        tensor.copy_(broadcast(tensor.contiguous()))


def build_loader(data: Any, draws: Any, cfg: config.Training, device: torch.device) -> DataLoader:
    """Batches of a data set's draws, (index, seed) each, by loader processes that stay from epoch to epoch."""
    share = runs.cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of the machine's cores, for this process
    workers = cfg.workers if cfg.workers >= 0 else min(MAX_WORKERS, max(1, share), _that_fit(cfg))
    options: Any = {"num_workers": workers, "persistent_workers": workers > 0, "worker_init_fn": _ignore_signals}
    options |= {"pin_memory": device.type == "cuda", "generator": torch.Generator()}  # else it would draw from torch's
    return DataLoader(Seeded(data), cfg.batch_size, sampler=draws, **options)


def _that_fit(cfg: config.Training) -> int:
    """How many loader processes the shared memory has room for; a line where that is none or few."""
    batch = 4 * 4 * 3 * cfg.batch_size * cfg.crop_size**2  # bytes of four views, float32; two wait, one is in use
    with suppress(OSError):  # a system without it
        free = shutil.disk_usage(SHARED_MEMORY).free
        if (fit := free // (3 * batch)) < MAX_WORKERS:
            tell = f"{SHARED_MEMORY} has {free >> 20} MB free: at most {fit} loader processes"
            print(f"{tell} (`docker run --shm-size 2g` gives it more).")
        return fit
    return MAX_WORKERS


@contextmanager
def loading() -> Iterator[None]:
    """Say in a line why a loader process ended by itself, as an OSError, or what it could not read, an ImageError."""
    try:
        yield
    except ImageError as error:  # a loader process adds its traceback
        error.args = (str(error).rpartition("ImageError: ")[2].strip(),)
        raise
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        text = f"a loader process was killed, most often because memory or {SHARED_MEMORY} was full"
        raise OSError(f"{text}, or a script lacks its main guard; -p workers 0 needs the least") from None


def _ignore_signals(worker: int) -> None:
    """Leave signals to the training."""
    for number in runs.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
