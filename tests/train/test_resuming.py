"""Kills, signals, a full disk, data that vanish: a training that goes on ends as one that nobody disturbed."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from nbformat.v4 import new_code_cell
from trainings import assert_same, configured, end_state

from dfd import cli
from dfd.core import runs
from dfd.core.images import ImageError
from dfd.core.io import PART
from dfd.data import manifest
from dfd.train import fit
from dfd.train.loop import Trainer

KILLS = 5  # of each stage
TINY = {
    "stage1": {"num_epochs": 3, "images_per_epoch": 48, "perceptual_weight": 0.0, "adversarial_every": 2},
    "stage2": {"num_epochs": 2, "images_per_epoch": 32, "perceptual_weight": 0.0, "carried_every": 2},
}


class Zygote:
    """Starts trainings by forking a process that has imported everything."""

    def __init__(self, log):
        here = Path(__file__).resolve().parents[1]
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
    zygote = Zygote(tmp_path / "log.txt")
    with zygote.process:  # closes its stdin, which ends it
        yield zygote


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_training_killed_at_any_moment_ends_as_if_undisturbed(stage, zygote, tiny_data, tmp_path):
    scan = tmp_path / "scan"
    manifest.scan(tiny_data, scan, progress=False)
    order = {"scan": str(scan), "stage": stage, "changes": TINY[stage] | {"checkpoint_minutes": 0.05 / 60}}
    status, seconds = zygote.train(out=str(tmp_path / "whole"), **order)
    assert status == 0, zygote.log.read_text()
    undisturbed = end_state(tmp_path / "whole", stage)
    draw, out, kills, in_writing, ended = random.Random(f"{stage} 0"), tmp_path / "killed", 0, 0, 0
    while kills < KILLS or out.exists():
        how = {}
        if kills < KILLS:
            how = {"delay": draw.uniform(0, seconds)}
            if kills % 2:
                how["dies"] = draw.choice(["half written", "not renamed", "renamed"]), draw.randint(1, 4)
        status, _ = zygote.train(out=str(out), **how, **order)
        if status == -9:
            kills += 1
            in_writing += bool(list(out.glob(f"*{PART}")))
            for path in out.glob("*.pt"):
                torch.load(path, weights_only=True)  # what has its name is whole
        else:
            assert status == 0, zygote.log.read_text()
            assert_same(end_state(out, stage), undisturbed)
            ended += 1
            shutil.rmtree(out)
    assert ended and "going on after" in zygote.log.read_text()


@pytest.fixture(scope="module")
def undisturbed(tiny_data, tmp_path_factory):
    """The manifest, and the end state of each stage's tiny training."""
    folder = tmp_path_factory.mktemp("undisturbed")
    table = manifest.scan(tiny_data, folder, progress=False)
    ends = {}
    for stage, changes in TINY.items():
        fit(table, configured(stage, folder / stage, tiny_data, **changes))
        ends[stage] = end_state(folder / stage, stage)
    return table, ends


def disturb(monkeypatch, name, number, what):
    """Do something once, before the n-th call of a method of Trainer."""
    method, left = getattr(Trainer, name), [number]

    def watched(self, *args, **options):
        left[0] -= 1
        if left[0] == 0:
            what()
        return method(self, *args, **options)

    monkeypatch.setattr(Trainer, name, watched)


@pytest.mark.parametrize(
    ("stage", "number", "moment", "steps"),
    [
        ("stage1", signal.SIGINT, ("step", 19), "step 2 of epoch 2"),  # 15 steps of all networks an epoch
        ("stage2", signal.SIGTERM, ("step", 4), "step 3 of epoch 1"),
        ("stage1", signal.SIGTERM, ("validate", 2), "step 6 of epoch 1"),  # the second of two validation sets
        ("stage2", signal.SIGINT, ("end_epoch", 1), "epoch 1"),
    ],
)
def test_a_signal_ends_after_the_step_and_the_same_again_goes_on(
    stage, number, moment, steps, undisturbed, tiny_data, tmp_path, monkeypatch, capsys
):
    table, ends = undisturbed
    cfg = configured(stage, tmp_path, tiny_data, **TINY[stage])
    before = [signal.getsignal(one) for one in runs.SIGNALS]
    disturb(monkeypatch, *moment, lambda: signal.raise_signal(number))
    with pytest.raises(
        runs.Interrupted, match=rf"stopped after {steps}; kept in .*train_{stage}.pt. The same"
    ) as ended:
        fit(table, cfg)
    assert ended.value.code == 128 + number and "stopping after this step" in capsys.readouterr().out
    assert [signal.getsignal(one) for one in runs.SIGNALS] == before
    fit(table, cfg)
    assert f"going on after {steps}." in capsys.readouterr().out
    assert_same(end_state(tmp_path, stage), ends[stage])


def test_a_state_within_an_epoch_is_resumed_with_workers(undisturbed, tiny_data, tmp_path, monkeypatch, capsys):
    table, ends = undisturbed
    cfg = configured("stage2", tmp_path, tiny_data, **TINY["stage2"], checkpoint_minutes=1e-9, workers=2)

    def killed():
        raise RuntimeError("killed")

    disturb(monkeypatch, "step", 9, killed)
    with pytest.raises(RuntimeError, match="killed"):
        fit(table, cfg)
    fit(table, cfg)
    assert "going on after step 1 of epoch 2." in capsys.readouterr().out
    assert_same(end_state(tmp_path, "stage2"), ends["stage2"])


def test_the_command_ends_with_one_line_and_the_status_of_the_signal(tiny_data, tmp_path, monkeypatch):
    disturb(monkeypatch, "step", 2, lambda: signal.raise_signal(signal.SIGTERM))
    small = {"backbone": "test_resnet.r160_in1k", "crop_size": 32, "batch_size": 8, "workers": 0, "adversarial": False}
    words = [word for pair in small.items() for word in ("-p", *map(str, pair))]
    command = ["train", "stage1", "--data", str(tiny_data), "--out", str(tmp_path / "out"), *words]
    ended = CliRunner().invoke(cli.main, command)
    assert ended.exit_code == 143 and "stage1: stopped after step 2 of epoch 1" in ended.stderr
    with runs.run_lock(tmp_path / "out"):
        pass  # the folder is free again


def test_a_full_disk_at_a_checkpoint_leaves_the_one_before(undisturbed, tiny_data, tmp_path, monkeypatch):
    table, ends = undisturbed
    cfg = configured("stage1", tmp_path, tiny_data, **TINY["stage1"])
    draft = tmp_path / f"train_stage1.pt{PART}"
    monkeypatch.setattr(Path, "is_symlink", lambda path: False)  # a draft that is a link is refused, but this one
    disturb(monkeypatch, "end_epoch", 2, lambda: draft.symlink_to("/dev/full"))
    with pytest.raises(OSError, match="disk full; free some space.*train_stage1.pt"):
        fit(table, cfg)
    assert len(torch.load(tmp_path / "train_stage1.pt", weights_only=True)["history"]) == 1
    fit(table, cfg)
    assert_same(end_state(tmp_path, "stage1"), ends["stage1"])


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_vanish_in_the_middle_are_named_and_the_training_is_kept(
    workers, undisturbed, tiny_data, tmp_path, monkeypatch
):
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    table, ends = undisturbed
    table = table.copy()
    table.attrs = {**table.attrs, "root": str(data)}
    changes = TINY["stage2"] | {"images_per_epoch": 96 if workers else 32}
    cfg = configured("stage2", tmp_path / "out", data, **changes, workers=workers)
    disturb(monkeypatch, "step", 3, lambda: data.rename(tmp_path / "elsewhere"))
    with pytest.raises(ImageError, match=rf"^{data}/\w+/\d\d.png: .*; what is trained is kept in .*train_stage2.pt$"):
        fit(table, cfg)
    assert torch.load(tmp_path / "out" / "train_stage2.pt", weights_only=True)["step_number"] >= 1
    (tmp_path / "elsewhere").rename(data)
    fit(table, cfg)
    if not workers:
        assert_same(end_state(tmp_path / "out", "stage2"), ends["stage2"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_broke_since_the_scan_is_named_in_one_line(workers, tiny_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    table = manifest.scan(data, progress=False)
    for path in table.path[table.split == "train"]:
        (data / path).write_bytes(b"")
    cfg = configured("stage1", tmp_path / "out", data, workers=workers, adversarial=False)
    before = set(multiprocessing.active_children())
    with pytest.raises(ImageError, match=rf"^{data}/\w+/\d\d.png: empty file \(0 bytes\); what is trained is kept"):
        fit(table, cfg)
    assert (tmp_path / "out" / "train_stage1.pt").exists()
    assert set(multiprocessing.active_children()) <= before, "a loader process outlives the training"


@pytest.mark.slow
def test_the_stop_button_ends_a_cell_with_one_line_and_running_it_again_goes_on(case, tiny_data, capfd):
    cells = [
        "from dfd import config, train\nfrom dfd.data import manifest\n"
        f"table = manifest.scan({str(tiny_data)!r}, out, progress=False)",
        f"cfg = config.Stage1(data={str(tiny_data)!r}, out=out, backbone='test_resnet.r160_in1k', crop_size=32,\n"
        "    batch_size=8, workers=1, adversarial=False, images_per_epoch=160, num_epochs=1, checkpoint_minutes=1e-6)\n"
        "train.fit(table, cfg)",
    ]
    case.write("01_train", *map(new_code_cell, cells))
    with case.start() as process:
        state = case.out / "train_stage1.pt"
        while process.poll() is None and not (state.exists() and torch.load(state)["step_number"]):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
    assert process.returncode == 130 and "stage1: stopping after this step" in said
    half = (case.out / "01_train.ipynb").read_text()
    assert "stage1: stopped after step" in half and "site-packages" not in half
    case.run(configs={})
    assert "going on after step" in capfd.readouterr().out
