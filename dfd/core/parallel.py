"""Training in several processes, one a GPU, on one machine or several: what they say to one another.

`accelerate launch` starts them; `dfd.train.launching` does where a notebook has several GPUs. Each loads its own part
of every batch. What a loss is made of, a logit an image for instance, is put together from all parts (`gathered`), so
that each process has the loss of the whole batch and none needs to know how the batch was cut; the gradients, which
then are shares of the whole batch's, are added up. Alone, all of this does nothing and imports nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Thing = TypeVar("Thing")
PATIENCE = timedelta(hours=12)  # how long the others wait while the main one scans; a death is noticed at once
GO_ON = "run the same again to go on from the last checkpoint"


class LostProcess(RuntimeError):
    """Another process of this training is gone, or has not answered for PATIENCE."""

    code = 3


def join() -> None:
    """Meet the other processes, where this one was started as one of several; the process knows its device then."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def leave() -> None:
    """Part from the others when all has ended well: the main process last, which may keep what they are read from."""
    if count() > 1:
        store, until = dist.distributed_c10d._get_default_store(), time.monotonic() + 10
        store.add("dfd/left", 1)
        while is_main() and store.add("dfd/left", 0) < count() and time.monotonic() < until:
            time.sleep(0.01)


def end() -> None:
    """End this process, if it was one of several: gloo's threads abort an interpreter that takes its time to end."""
    if count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def count() -> int:
    """Processes of this training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if count() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def device() -> torch.device:
    """Where this process computes: its own GPU, the GPU, or the CPU."""
    if count() > 1:
        from accelerate import PartialState

        return PartialState().device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def share(items: Sequence[Thing]) -> Sequence[Thing]:
    """This process's part of a list: neighbours, as many as the others have, or one more or less."""
    first, last = (len(items) * number // count() for number in (rank(), rank() + 1))
    return items[first:last]


def gathered(part: Tensor) -> Tensor:
    """The rows of all processes, in the order of `share`; the gradient goes to this process's rows alone.

    Args:
        part: (n, ...); n may differ between processes, and may be 0.
    """
    return part if count() == 1 else _Gathered.apply(part)


def total(part: Tensor) -> Tensor:
    """The sum over all processes, element by element; the gradient goes to all of them."""
    return part if count() == 1 else _Total.apply(part)


def everybody(value: int) -> int:
    """The sum of a number over all processes."""
    return value if count() == 1 else int(total(torch.tensor(value, device=device())))


def most(value: int) -> int:
    """The largest of a number's values in all processes."""
    if count() == 1:
        return value
    largest = torch.tensor(value, device=device())
    with _lost("asking the others"):
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def agreed(value: Thing) -> Thing:
    """What the main process says, in all of them."""
    if count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    with _lost("agreeing"):
        return broadcast_object_list([value])[0]


def first(value: Thing | None) -> Thing | None:
    """What the first process says that says anything, in all of them; itself in that one."""
    if count() == 1:
        return value
    said = [None] * count()
    with _lost("agreeing"):
        dist.all_gather_object(said, value)
    said[rank()] = value
    return next((one for one in said if one is not None), None)


def same(network: nn.Module) -> None:
    """Give all processes the main one's weights and buffers."""
    if count() > 1:
        with _lost("copying weights"):
            for tensor in (*network.parameters(), *network.buffers()):
                copy = tensor.detach().contiguous()
                dist.broadcast(copy, 0)
                tensor.detach().copy_(copy)


def add_up(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all processes, in one message; a gradient that only some have is zero in the others."""
    if count() == 1:
        return
    parameters = list(parameters)
    mine = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
    there = torch.tensor([one.grad is not None for one in parameters], dtype=torch.float32, device=mine[0].device)
    flat = torch.cat([there, *(one.flatten().float() for one in mine)])
    with _lost("adding up gradients"):
        dist.all_reduce(flat)
    there, *sums = flat.split([len(parameters), *(one.numel() for one in mine)])
    for parameter, gradient, found, summed in zip(parameters, mine, there.tolist(), sums, strict=True):
        parameter.grad = gradient.copy_(summed.view_as(gradient)) if found else None


def together(network: nn.Module) -> nn.Module:
    """Let the batch norms of a network take their statistics over all processes; names of weights stay as they are.

    `nn.SyncBatchNorm` on GPUs, timm's where an activation belongs to the norm; it does not run on a CPU, where
    `_BatchNorm` does the same.
    """
    if count() > 1 and device().type == "cuda":
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(network)
    for module in network.modules() if count() > 1 else ():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = _BatchNorm  # keeps weights, buffers, and the activation that timm's have in them
    return network


@contextlib.contextmanager
def chorus() -> Iterator[None]:
    """What all processes do: meet, and let one of them speak, of results as of errors.

    Only the main one prints. The first that fails says why and takes the others with it; they stay silent, as the
    error that they meet is only that one has gone.

    Raises:
        LostProcess: one has gone and left no word.
    """
    join()
    if count() == 1:
        yield
        return
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(sys.stdout if is_main() else nowhere):
            yield
    except (Exception, KeyboardInterrupt) as error:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, as another has gone; this one ends anyway
        if not _first_to_speak():
            raise SystemExit(getattr(error, "code", 2)) from error
        raise
    leave()


def _first_to_speak() -> bool:
    """Whether no other process has reported an error; each asks once. True where nobody answers within a second."""
    answers: list[int] = []

    def ask() -> None:
        with contextlib.suppress(RuntimeError):  # the process that kept the count may be the one that has gone
            answers.append(dist.distributed_c10d._get_default_store().add("dfd/spoken", 1))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(1)
    return answers in ([], [1])


@contextlib.contextmanager
def _lost(doing: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's, and the base of torch.distributed's own
        raise LostProcess(
            f"while {doing}, another process of this training was gone (killed, out of memory, or its machine is "
            f"down) or silent for {PATIENCE.total_seconds() / 3600:g} hours; {GO_ON}"
        ) from error


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, part: Tensor) -> Tensor:
        here = part.detach().to(device()).contiguous()
        lengths = torch.zeros(count(), dtype=torch.long, device=here.device)
        lengths[rank()] = len(here)
        with _lost("computing a loss"):
            dist.all_reduce(lengths)
            lengths = lengths.tolist()
            padded = here.new_zeros(max(lengths), *here.shape[1:])
            padded[: len(here)] = here
            parts = [torch.empty_like(padded) for _ in lengths]
            if padded.numel():
                dist.all_gather(parts, padded)
        ctx.rows = slice(sum(lengths[: rank()]), sum(lengths[: rank() + 1]))
        return torch.cat([one[:length] for one, length in zip(parts, lengths, strict=True)]).to(part.device)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient[ctx.rows]


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx, part: Tensor) -> Tensor:
        summed = part.detach().clone().contiguous()
        with _lost("adding up"):
            dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Total.apply(gradient)


class _BatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, Ioffe and Szegedy 2015, arXiv:1502.03167; on any device."""

    def forward(self, x: Tensor) -> Tensor:
        normed = self._normed(x) if self.training else super().forward(x)
        for name in ("drop", "act"):  # of timm's BatchNormAct2d
            normed = getattr(self, name)(normed) if hasattr(self, name) else normed
        return normed

    def _normed(self, x: Tensor) -> Tensor:
        wide, shape = x.float(), (1, -1, 1, 1)
        pixels = total(wide.new_tensor(wide[:, 0].numel()))
        mean = total(wide.sum((0, 2, 3))) / pixels  # (C,)
        centred = wide - mean.view(shape)
        variance = total(centred.square().sum((0, 2, 3))) / pixels
        if self.track_running_stats:
            self.num_batches_tracked += 1
            weight = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            with torch.no_grad():
                self.running_mean.lerp_(mean, weight)
                self.running_var.lerp_(variance * pixels / (pixels - 1), weight)
        normed = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            normed = normed * self.weight.view(shape) + self.bias.view(shape)
        return normed.to(x.dtype)
