"""Tiny trainings for the tests, and how their ends are compared."""

import signal

import pandas as pd
import pytest
import torch

from dfd import config
from dfd.train import fit, fit_stage1, fit_stage2

FITS = {"stage1": (fit_stage1, config.Stage1), "stage2": (fit_stage2, config.Stage2)}
BACKBONES = {"stage1": "test_resnet.r160_in1k", "stage2": "test_efficientnet.r160_in1k"}


def configured(stage, out, data, **changes):
    """The config of a training of a few seconds."""
    small = {"backbone": BACKBONES[stage], "pretrained": False, "crop_size": 32, "num_epochs": 3, "batch_size": 8}
    wide = {"unet_width": 4} if stage == "stage2" else {"launderer_width": 4, "adversarial_every": 2}
    options = {**small, **wide, "workers": 0, "images_per_epoch": 16, "lr_gc": 1e-3, **changes}
    return FITS[stage][1](data=str(data), out=str(out), **options)


def fit_one_epoch(table, cfg):
    """Train until Ctrl-C after the first epoch, which leaves a state to go on from."""
    with pytest.raises(KeyboardInterrupt, match="stopped after epoch 1"):
        fit(table, cfg, lambda history: signal.raise_signal(signal.SIGINT))


def end_state(out, stage):
    """Weights, history but for the seconds, and the best epoch of a finished training."""
    content = torch.load(out / config.CHECKPOINTS[stage], weights_only=True)
    assert content["finished"] and not list(out.glob("*.part")) and not (out / f"train_{stage}.pt").exists()
    history = pd.DataFrame(content["history"]).drop(columns="seconds")
    return content["weights"], history, content["metrics"]["val"]["epoch"]


def assert_same(first, second, tolerance=1e-6):
    """Two end states are the same but for rounding."""
    assert first[0].keys() == second[0].keys() and first[2] == second[2]
    for name, weight in first[0].items():
        torch.testing.assert_close(weight, second[0][name], rtol=tolerance, atol=tolerance)
    pd.testing.assert_frame_equal(first[1], second[1], rtol=tolerance, atol=tolerance)
