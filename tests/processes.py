"""What test_parallel.py runs in a process of its own: the first steps of both stages in one, two and three processes.

python processes.py MANIFEST OUT
"""

import os
import signal
import sys
from unittest import mock

import torch
from torch import nn

from dfd import config, parallel, training

FITS = {"stage1": (training.fit_stage1, config.Stage1), "stage2": (training.fit_stage2, config.Stage2)}
SMALL = {"backbone": "test_efficientnet.r160_in1k", "pretrained": False, "crop_size": 32, "workers": 0, "num_epochs": 1}
OF_STAGE = {
    "stage1": {"launderer_width": 4, "adversarial_every": 2, "r1_weight": 1.0},
    "stage2": {"unet_width": 4, "carried_every": 2, "equalise": False},  # a JPEG makes whole levels of rounding
}


def first_steps(stage, table, out):
    """Loss and gradient of each step of one epoch, three batches of 5: (network, loss, gradient)."""
    steps, step, clip = [], training.Session.step, nn.utils.clip_grad_norm_

    def watched(self, loss, name="model"):
        steps.append([name, loss.item()])
        step(self, loss, name)

    def seen(parameters, norm):
        steps[-1].append(torch.cat([one.grad.flatten() for one in parameters if one.grad is not None]))
        return clip(parameters, norm)

    fit, cls = FITS[stage]
    settings = {**SMALL, **OF_STAGE[stage], "batch_size": 5, "images_per_epoch": 15, "lr_gc": 1e-6, "lr_d": 1e-6}
    cfg = cls(data=table.attrs["root"], out=out, **settings)
    with mock.patch.object(training.Session, "step", watched), mock.patch.object(nn.utils, "clip_grad_norm_", seen):
        history = fit(table, cfg)
    return steps, history.drop(columns="seconds").iloc[0].to_dict()


def stopped(stage, table, out):
    """The same, but for a signal that the second process gets in the middle of the second batch."""
    calls, step = [], training.Session.step

    def signalled(self, loss, name="model"):
        calls.append(name)
        if parallel.rank() == 1 and len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, loss, name)

    with mock.patch.object(training.Session, "step", signalled):
        return first_steps(stage, table, out)


def failing():
    if parallel.rank() == 1:
        raise ValueError("the second process has bad luck")
    parallel.everybody(1)


if __name__ == "__main__":
    import pandas as pd

    import dfd.session

    dfd.session.uses_bfloat16 = lambda device: False
    table = pd.read_parquet(sys.argv[1])
    out = sys.argv[2]
    found = {}
    for stage in FITS:
        found[stage, 1] = first_steps(stage, table, f"{out}/{stage} 1")
    assert "accelerate" not in sys.modules, "a training in one process needs no accelerate"
    for stage in FITS:
        for count in (2, 3):
            found[stage, count] = parallel.launch(first_steps, stage, table, f"{out}/{stage} {count}", processes=count)
    for function, given in ((failing, ()), (stopped, ("stage1", table, f"{out}/stopped"))):
        try:
            parallel.launch(function, *given, processes=2)
        except (ValueError, KeyboardInterrupt) as error:
            found[function.__name__] = error
    found["gone on"] = parallel.launch(first_steps, "stage1", table, f"{out}/stopped", processes=3)
    torch.save(found, f"{out}/found.pt")
