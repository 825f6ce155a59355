"""`kill -9` at any moment: a training that goes on each time ends as one that nobody disturbed."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from dfd import manifest
from dfd.atomic import PART
from dfd.inference import CHECKPOINTS

KILLS = {"stage1": 13, "stage2": 12}
TINY = {
    "stage1": {"num_epochs": 3, "images_per_epoch": 48, "perceptual_weight": 0.0, "adversarial_every": 2},
    "stage2": {"num_epochs": 2, "images_per_epoch": 32, "perceptual_weight": 0.0, "carried_every": 2},
}


class Zygote:
    """Starts trainings by forking a process that has imported everything."""

    def __init__(self, log):
        here = Path(__file__).parent
        path = os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])
        self.log, self.process = log, subprocess.Popen(
            [sys.executable, here / "zygote.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip

    def train(self, delay=None, dies=None, **order):
        """Train, and be killed after some seconds where they are given; the exit status, and how long it took."""
        self.process.stdin.write(json.dumps(order | {"log": str(self.log), "delay": delay, "dies": dies}) + "\n")
        self.process.stdin.flush()
        status, seconds = self.process.stdout.readline().split()
        return int(status), float(seconds)


@pytest.fixture
def zygote(tmp_path):
    found = Zygote(tmp_path / "log.txt")
    with found.process:  # closes its stdin, which ends it
        yield found


def end_state(out, stage):
    """Weights, history but for the seconds, and the best epoch."""
    content = torch.load(out / CHECKPOINTS[stage], weights_only=True)
    assert content["finished"] and not list(out.glob("*.part")) and not (out / f"train_{stage}.pt").exists()
    history = pd.DataFrame(content["history"]).drop(columns="seconds")
    return content["weights"], history, content["metrics"]["val"]["epoch"]


def assert_same(one, other):
    assert one[0].keys() == other[0].keys()
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    pd.testing.assert_frame_equal(one[1], other[1], check_exact=True)
    assert one[2] == other[2]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_training_killed_at_any_moment_ends_as_if_undisturbed(stage, zygote, tiny_data, tmp_path):
    scan = tmp_path / "scan"
    manifest.scan(tiny_data, scan, progress=False)
    order = {"scan": str(scan), "stage": stage, "changes": TINY[stage] | {"checkpoint_minutes": 0.05 / 60}}
    status, seconds = zygote.train(out=str(tmp_path / "whole"), **order)
    assert status == 0, zygote.log.read_text()
    whole = end_state(tmp_path / "whole", stage)
    draw, out, kills, in_writing, ended = random.Random(f"{stage} 0"), tmp_path / "killed", 0, 0, 0
    while kills < KILLS[stage] or out.exists():
        how = {}
        if kills < KILLS[stage]:
            how = {"delay": draw.uniform(0, seconds)}
            if draw.random() < 0.3:
                how["dies"] = draw.choice(["half written", "not renamed", "renamed"]), draw.randint(1, 6)
        status, _ = zygote.train(out=str(out), **how, **order)
        if status == -9:
            kills += 1
            in_writing += bool(list(out.glob(f"*{PART}")))
            for path in out.glob("*.pt"):
                torch.load(path, weights_only=True)  # what has its name is whole
        else:
            assert status == 0, zygote.log.read_text()
            assert_same(end_state(out, stage), whole)
            ended += 1
            shutil.rmtree(out)
    said = zygote.log.read_text()
    assert ended and in_writing and "going on after step" in said
