"""Two processes on the CPU (gloo): the loss curve of one, one writer, a signal to one ends both, one goes on alone.

In float32: bfloat16 rounds each value to three digits, which would hide a wrong mean. The networks have no batch norm,
which sees its own process's part alone.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from click.testing import CliRunner
from torch.utils.data import DataLoader, Dataset

from dfd import cli, config
from dfd.train import processes

HERE = Path(__file__).resolve().parents[1]
LAUNCH = "-m accelerate.commands.launch --multi_gpu --num_machines 1 --main_process_port 0 --dynamo_backend no".split()
OPTIONS = {
    "stage1": {"launderer_width": 4, "adversarial_every": 2},
    "stage2": {"unet_width": 4, "carried_every": 2, "equalise": "false"},  # a JPEG makes whole levels of rounding
}
SHARED = {
    "backbone": "test_efficientnet_gn", "pretrained": "false", "crop_size": 32, "batch_size": 8, "workers": 0,
    "images_per_epoch": 32, "num_epochs": 3, "lr_gc": 2e-4, "perceptual_weight": 0, "track": "none",
    "lr_d": 2e-6,  # under a hinge loss a critic's bias has a gradient of rounding alone; Adam makes steps of it
}  # fmt: skip

# Loaded by every interpreter that starts with its folder on PYTHONPATH: float32, and a list of what each process of
# a training writes below the folder WATCHED.
SITE = """
import os, sys, torch
torch.cpu._is_avx512_bf16_supported = lambda: False
rank, watched = os.environ.get("RANK"), os.environ["WATCHED"]

def note(event, given):
    writes = event in ("os.rename", "os.remove", "os.mkdir") or event == "open" and given[2] & (os.O_WRONLY | os.O_RDWR)
    if writes and str(given[0]).startswith(watched + "/"):
        with open(f"{watched}.{rank}", "a") as log:
            log.write(f"{event} {given[0]}\\n")

if rank:
    open(f"{watched}.pid.{rank}", "w").write(str(os.getpid()))
    sys.addaudithook(note)
"""


def test_loaders_are_as_many_as_shared_memory_has_room_for(monkeypatch, capsys):
    cfg = config.Stage1(batch_size=32, crop_size=128)  # 25 MB a batch of four views, three of them alive
    for free, count in ((0, 0), (80 << 20, 1), (200 << 20, 2)):
        monkeypatch.setattr(processes.shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        assert processes._that_fit(cfg) == count
        assert f"has {free >> 20} MB free: at most {count} loader processes" in capsys.readouterr().out
    monkeypatch.setattr(processes.shutil, "disk_usage", lambda path: SimpleNamespace(free=8 << 30))
    assert processes._that_fit(cfg) >= processes.MAX_WORKERS and not capsys.readouterr().out


@pytest.mark.parametrize(("asked", "beside", "count"), [(0, 1, 0), (3, 2, 3), (-1, 1, 6), (-1, 2, 3)])
def test_loaders_share_the_cores_with_other_processes_unless_their_number_is_asked_for(
    asked, beside, count, monkeypatch
):
    monkeypatch.setattr(processes.runs, "cores", lambda: 6)
    monkeypatch.setattr(processes, "_that_fit", lambda cfg: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(beside))
    monkeypatch.setattr(processes, "DataLoader", lambda *given, num_workers, **options: num_workers)
    assert processes.build_loader([0], [(0, 0)], config.Stage1(workers=asked), torch.device("cpu")) == count


class Dying(Dataset):
    """A data set whose loader process is killed, as for want of memory."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_loader_is_one_line():
    with pytest.raises(OSError, match="a loader process was killed, most often .*; -p workers 0"), processes.loading():
        list(DataLoader(Dying(), num_workers=1))
    with pytest.raises(RuntimeError, match="another"), processes.loading():
        raise RuntimeError("another")


@pytest.mark.slow
def test_a_signal_ends_a_wait_for_processes_that_never_come(tiny_data, tmp_path):
    others = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    call = [sys.executable, "-m", "dfd", "train", "stage1", "--data", str(tiny_data), "--out", str(tmp_path / "out")]
    with subprocess.Popen(call, cwd=HERE.parent, env=os.environ | others, stderr=subprocess.PIPE, text=True) as process:
        line = process.stderr.readline()
        while line and not line.startswith("waiting for the 2 processes of this training at 127.0.0.1"):
            line = process.stderr.readline()
        assert "unset RANK and WORLD_SIZE" in line
        process.terminate()
        assert process.wait(10) == -signal.SIGTERM


def words(stage, data, out, changes):
    options = (SHARED | OPTIONS[stage] | changes).items()
    pairs = [word for pair in options for word in ("-p", *map(str, pair))]
    return ["train", stage, "--data", str(data), "--out", str(out), *pairs]


class Launched:
    """`python -m dfd train <stage>` on a tiny folder, in two processes."""

    def __init__(self, stage, data, folder, **changes):
        (folder / "site").mkdir(exist_ok=True)
        (folder / "site" / "sitecustomize.py").write_text(SITE)
        self.stage, self.out = stage, folder / "run"
        environment = os.environ | {
            "PYTHONPATH": f"{folder / 'site'}:{HERE.parent}", "WATCHED": str(self.out), "OMP_NUM_THREADS": "1",
            "DFD_CACHE": str(folder / "cache"), "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        launch = [*LAUNCH, "--num_processes", "2", "--mixed_precision", "no"]
        train = ["-m", "dfd", *words(stage, data, self.out, changes)]
        self.process = subprocess.Popen(
            [sys.executable, *launch, *train], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def end(self):
        """Exit code and everything printed."""
        try:
            printed = self.process.communicate(timeout=240)[0]
        finally:
            self.process.kill()
        return self.process.returncode, printed

    def content(self):
        return torch.load(self.out / config.CHECKPOINTS[self.stage], weights_only=True)

    def written(self, rank):
        log = Path(f"{self.out}.{rank}")
        return log.read_text().splitlines() if log.exists() else []


def alone(stage, data, out, monkeypatch, **changes):
    """The same command in this process: what it printed, and its checkpoint."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    AcceleratorState._reset_state(True)  # its precision is a process's, and other tests train in bfloat16
    ended = CliRunner().invoke(cli.main, words(stage, data, out, changes))
    AcceleratorState._reset_state(True)
    assert ended.exit_code == 0, ended.output
    return ended.output, torch.load(out / config.CHECKPOINTS[stage], weights_only=True)


def compare(first, second, tolerance):
    """The histories of two checkpoints of the same training, finished."""
    assert first["finished"] and second["finished"] and len(first["history"]) == len(second["history"])
    for row, other in zip(first["history"], second["history"], strict=True):
        assert list(row) == list(other)
        for name in set(row) - {"seconds"}:
            assert row[name] == pytest.approx(other[name], abs=tolerance), name


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_two_processes_give_the_loss_curve_of_one_and_one_of_them_writes(stage, tiny_data, tmp_path, monkeypatch):
    two = Launched(stage, tiny_data, tmp_path)
    _, one = alone(stage, tiny_data, tmp_path / "alone", monkeypatch)
    code, printed = two.end()
    assert code == 0, printed
    compare(two.content(), one, 1e-3)
    assert not two.written(1), "a process that is not the main one wrote"
    assert any(config.CHECKPOINTS[stage] in line for line in two.written(0))
    assert printed.count(f"{stage} epoch 2/3: train_loss") == 1 == printed.count("36 images in 36 groups")


@pytest.mark.slow
def test_a_signal_to_one_process_ends_both_with_a_state_and_one_process_goes_on(tiny_data, tmp_path, monkeypatch):
    changes = {"checkpoint_minutes": 1e-9, "images_per_epoch": 96}
    two = Launched("stage1", tiny_data, tmp_path, **changes)
    state = two.out / "train_stage1.pt"
    while two.process.poll() is None and not (state.exists() and torch.load(state, weights_only=True)["step_number"]):
        time.sleep(0.02)
    os.kill(int(Path(f"{two.out}.pid.1").read_text()), signal.SIGTERM)
    code, printed = two.end()
    assert code != 0 and printed.count("stage1: stopped after step") == 1, printed
    assert torch.load(state, weights_only=True)["step_number"] > 0
    printed, one = alone("stage1", tiny_data, two.out, monkeypatch, **changes)
    assert "going on after step" in printed and len(one["history"]) == 3
