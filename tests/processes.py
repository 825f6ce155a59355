"""What test_parallel.py runs in a process of its own: the first steps of both stages in one, two and three processes.

python processes.py MANIFEST OUT
"""

import math
import os
import signal
import sys
import time
from unittest import mock

import torch
from torch import nn

from dfd import config
from dfd.core import parallel
from dfd.core.images import ImageError
from dfd.train import launching, loop, stage2

FITS = {"stage1": (stage2.fit_stage1, config.Stage1), "stage2": (stage2.fit_stage2, config.Stage2)}
RATE = 1e-9  # Adam's first step is as long where a gradient is rounding alone, as that of a last bias under a hinge
SMALL = {"backbone": "test_efficientnet.r160_in1k", "pretrained": False, "crop_size": 32, "workers": 0, "num_epochs": 1}
OF_STAGE = {
    "stage1": {"launderer_width": 4, "adversarial_every": 2, "r1_weight": 1.0},
    "stage2": {"unet_width": 4, "carried_every": 2, "equalise": False},  # a JPEG makes whole levels of rounding
}


def first_steps(stage, table, out):
    """Loss and gradient of each step of one epoch, three batches of 5: (network, loss, gradient)."""
    steps, step, clip = [], loop.Session.step, nn.utils.clip_grad_norm_

    def watched(self, loss, name="model"):
        steps.append([name, loss.item()])
        step(self, loss, name)

    def seen(parameters, norm):
        steps[-1].append(torch.cat([one.grad.flatten() for one in parameters if one.grad is not None]))
        return clip(parameters, norm)

    fit, cls = FITS[stage]
    settings = {**SMALL, **OF_STAGE[stage], "batch_size": 5, "images_per_epoch": 15, "lr_gc": RATE, "lr_d": RATE}
    cfg = cls(data=table.attrs["root"], out=out, **settings)
    with mock.patch.object(loop.Session, "step", watched), mock.patch.object(nn.utils, "clip_grad_norm_", seen):
        history = fit(table, cfg)
    return steps, history.drop(columns="seconds").iloc[0].to_dict()


def stopped(stage, table, out):
    """The same, but for a signal that the second process gets in the middle of the second batch."""
    calls, step = [], loop.Session.step

    def signalled(self, loss, name="model"):
        calls.append(name)
        if parallel.rank() == 1 and len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, loss, name)

    with mock.patch.object(loop.Session, "step", signalled):
        return first_steps(stage, table, out)


def interrupted(stage, table, out):
    """The same, but for a Stop of Jupyter's, a SIGINT to the whole kernel, that comes during the validation."""
    validate = loop.Session.validate

    def stop_button(self, data):
        if parallel.rank() == 1:
            os.killpg(os.getpgid(os.getppid()), signal.SIGINT)
            until = time.monotonic() + 10
            while not self.stop.number and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(0.5)  # for a second one
        return validate(self, data)

    with mock.patch.object(loop.Session, "validate", stop_button):
        return first_steps(stage, table, out)


def unreadable(stage, table, out):
    """The same, but for a file that the second process alone cannot read, in its third batch."""

    def spoil(images):
        raise ImageError("photo.png: damaged")

    return spoilt(2, spoil, stage, table, out)


def not_finite(stage, table, out):
    """The same, but for a second batch that is not a number in the second process alone."""
    return spoilt(1, lambda images: images * math.nan, stage, table, out)


def spoilt(number, spoil, stage, table, out):
    loader = loop.Session._loader

    def spoiling(self, *given):
        for place, (images, is_fake) in enumerate(loader(self, *given)):
            yield spoil(images) if parallel.rank() == 1 and place == number else images, is_fake

    with mock.patch.object(loop.Session, "_loader", spoiling):
        return first_steps(stage, table, out)


def failing():
    if parallel.rank() == 1:
        raise ValueError("the second process has bad luck")
    parallel.everybody(1)


DISTURBED = (stopped, interrupted, unreadable, not_finite)

if __name__ == "__main__":
    import dfd.learners
    import pandas as pd

    dfd.train.learners.uses_bfloat16 = lambda device: False
    table = pd.read_parquet(sys.argv[1])
    out = sys.argv[2]
    found = {}
    before = [signal.getsignal(number) for number in launching.LAUNCHER_HANDLES]
    for stage in FITS:
        found[stage, 1] = first_steps(stage, table, f"{out}/{stage} 1")
    assert "accelerate" not in sys.modules, "a training in one process needs no accelerate"
    for stage in FITS:
        for count in (2, 3):
            found[stage, count] = launching.launch(first_steps, stage, table, f"{out}/{stage} {count}", processes=count)
    calls = [(failing, ()), *((function, ("stage1", table, f"{out}/{function.__name__}")) for function in DISTURBED)]
    for function, given in calls:
        try:
            launching.launch(function, *given, processes=2)
        except (ValueError, KeyboardInterrupt) as error:
            found[function.__name__] = error
    found["handlers"] = before == [signal.getsignal(number) for number in launching.LAUNCHER_HANDLES]
    found["gone on"] = launching.launch(first_steps, "stage1", table, f"{out}/stopped", processes=3)
    torch.save(found, f"{out}/found.pt")
