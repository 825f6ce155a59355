"""Several processes on the CPU (gloo): the same training as in one, one writer, and a clean end when one dies.

float32 throughout: bfloat16 rounds each value to three digits, which would hide a wrong mean over a batch.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from processes import FITS

from dfd import config
from dfd.config import CHECKPOINTS
from dfd.core import parallel
from dfd.core.images import ImageError
from dfd.data import manifest
from dfd.inference import stage as stage_module
from dfd.train import loop

HERE = Path(__file__).parent
LAUNCH = "-m accelerate.commands.launch --multi_gpu --num_machines 1 --main_process_port 0 --dynamo_backend no".split()
OPTIONS = {
    "stage1": {"backbone": "test_resnet.r160_in1k", "launderer_width": 4, "adversarial_every": 2},
    "stage2": {"backbone": "test_efficientnet.r160_in1k", "unet_width": 4, "carried_every": 2, "equalise": "false"},
}
SHARED = {
    "pretrained": "false", "crop_size": 32, "batch_size": 8, "images_per_epoch": 32, "num_epochs": 3, "workers": 0,
    "lr_gc": 2e-4, "lr_d": 2e-4,
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


class Launched:
    """`accelerate launch … -m dfd train <stage>` in two processes on a tiny folder."""

    def __init__(self, stage, data, folder):
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(SITE)
        self.stage, self.data, self.folder, self.out = stage, data, folder, folder / "run"
        environment = os.environ | {
            "PYTHONPATH": f"{folder / 'site'}:{HERE.parent}", "WATCHED": str(self.out), "OMP_NUM_THREADS": "1",
            "DFD_CACHE": str(folder / "cache"), "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        options = [word for pair in (SHARED | OPTIONS[stage]).items() for word in ("-p", *map(str, pair))]
        train = ["-m", "dfd", "train", stage, "--data", str(data), "--out", str(self.out), *options]
        self.process = subprocess.Popen(
            [sys.executable, *LAUNCH, "--num_processes", "2", "--mixed_precision", "no", *train],
            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def end(self, seconds=240):
        """Exit code and everything printed."""
        try:
            printed = self.process.communicate(timeout=seconds)[0]
        finally:
            self.process.kill()
        return self.process.returncode, printed

    def alone(self, out):
        """The same training in this process; goes on where the folder has a checkpoint."""
        table = manifest.load(self.out)
        fit, cls = FITS[self.stage]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stage_module, "uses_bfloat16", lambda device: False)
            return fit(table, cls(**self.checkpoint()["config"], data=str(self.data), out=str(out)))

    def checkpoint(self, out=None):
        return torch.load((out or self.out) / CHECKPOINTS[self.stage], weights_only=True)

    def written(self, rank):
        log = Path(f"{self.out}.{rank}")
        return log.read_text().splitlines() if log.exists() else []


def compare(one, other):
    """Two checkpoints of the same training: histories, and the averaged weights.

    AdamW divides a gradient by its own size, so that rounding decides on the sign of a whole step where the gradient
    is nearly zero. Over 12 steps this changed stage 1's losses by 1e-6, stage 2's by 1e-4, the logits of its
    discriminator, which has a gain of 10, by 1e-3, and the weights by 6e-5 of their size. Single gradients are held to
    1e-4 below. Stage 2 runs without the JPEG of all crops, whose quantisation would turn rounding into whole levels.
    """
    assert len(one["history"]) == len(other["history"]) == 3 and one["finished"] and other["finished"]
    for first, second in zip(one["history"], other["history"], strict=True):
        assert list(first) == list(second)
        for name in set(first) - {"seconds"}:
            assert first[name] == pytest.approx(second[name], abs=1e-2 if name == "adversarial_loss" else 1e-3), name
    assert one["weights"].keys() == other["weights"].keys()
    first, second = (flat(part["weights"]) for part in (one, other))
    assert float((first - second).norm()) < 1e-3 * float(first.norm())


def flat(weights):
    """Every number of a state dict but batch norms' counters, as one vector."""
    return torch.cat([value.flatten().float() for name, value in weights.items() if not name.endswith("tracked")])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_two_processes_train_as_one_and_one_of_them_writes(stage, tiny_data, tmp_path):
    launched = Launched(stage, tiny_data, tmp_path)
    code, printed = launched.end()
    assert code == 0, printed
    launched.alone(tmp_path / "alone")
    compare(launched.checkpoint(), launched.checkpoint(tmp_path / "alone"))
    assert not launched.written(1), "a process that is not the main one wrote"
    assert any(CHECKPOINTS[stage] in line for line in launched.written(0))
    assert printed.count(f"{stage} epoch 2/3: train_loss") == 1 == printed.count("36 images in 36 groups")


@pytest.mark.slow
def test_a_killed_process_ends_all_and_one_process_goes_on(tiny_data, tmp_path):
    launched = Launched("stage1", tiny_data, tmp_path)
    state = launched.out / "train_stage1.pt"
    while not state.exists() and launched.process.poll() is None:
        time.sleep(0.02)
    os.kill(int(Path(f"{launched.out}.pid.1").read_text()), signal.SIGKILL)
    began = time.monotonic()
    code, printed = launched.end()
    assert code != 0 and time.monotonic() - began < 60
    assert printed.count("dfd: ") == 1 and "another process of this training was gone" in printed, printed
    kept = launched.checkpoint()
    assert 1 <= len(kept["history"]) < 3 and not kept["finished"]
    assert state.exists()
    assert not any(".part" in path.name for path in launched.out.iterdir())
    launched.alone(tmp_path / "alone")
    launched.alone(launched.out)
    compare(launched.checkpoint(), launched.checkpoint(tmp_path / "alone"))


@pytest.fixture(scope="module")
def steps(tiny_data, tmp_path_factory):
    """What tests/processes.py found, and what it printed."""
    folder = tmp_path_factory.mktemp("steps")
    manifest.scan(tiny_data, folder, progress=False)
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(HERE / "processes.py"), str(folder / "manifest.parquet"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, start_new_session=True)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "found.pt", weights_only=False) | {"folder": folder}, done


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize("processes", [2, 3])
def test_each_loss_and_gradient_is_that_of_the_whole_batch(stage, processes, steps):
    """Batches of 5: parts differ in size, and some have no photo or no fake."""
    (alone, history), (parts, other) = steps[0][stage, 1], steps[0][stage, processes]
    assert [name for name, *_ in alone] == [name for name, *_ in parts] and len(alone) >= 5
    for (name, loss, gradient), (_, same, shared) in zip(alone, parts, strict=True):
        assert same == pytest.approx(loss, rel=1e-5, abs=1e-6), name
        assert float((gradient - shared).norm()) < 1e-4 * float(gradient.norm()), name
    assert other == pytest.approx(history, rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_an_error_in_one_process_is_raised_where_they_were_launched(steps):
    found, done = steps
    assert type(found["failing"]) is ValueError and str(found["failing"]) == "the second process has bad luck"
    assert "in process 1 of 2" in found["failing"].__notes__[0]
    assert done.stdout.count("stage2 epoch 1/1: train_loss") == 3  # of one, two and three processes, one line each


@pytest.mark.slow
def test_a_signal_to_one_stops_all_after_the_same_step_and_others_go_on(steps):
    found, _ = steps
    assert "stopped after step 2 of epoch 1" in str(found["stopped"]) and found["stopped"].code == 128 + signal.SIGTERM
    rest, history = found["gone on"]
    alone, whole = found["stage1", 1]
    assert [name for name, *_ in rest] == [name for name, *_ in alone][-len(rest) :] and 0 < len(rest) < len(alone) - 2
    assert history == pytest.approx(whole, rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_the_stop_button_ends_a_validation_and_the_kernel_keeps_its_own_handlers(steps):
    found, _ = steps
    assert "stopped after step 3 of epoch 1" in str(found["interrupted"]), "the validation did not look for it"
    assert found["interrupted"].code == 128 + signal.SIGINT
    assert found["handlers"]


@pytest.mark.slow
def test_a_file_that_one_process_cannot_read_is_named_and_the_state_kept(steps):
    found, _ = steps
    assert type(found["unreadable"]) is ImageError and str(found["unreadable"]) == "photo.png: damaged"
    assert torch.load(found["folder"] / "unreadable" / "train_stage1.pt", weights_only=True)["steps"] == 2


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_ends_all_with_the_remedy(steps):
    found, done = steps
    assert type(found["not_finite"]) is ValueError
    assert re.fullmatch(r"stage1: the loss of \w+ became nan; lower lr_gc and run again", str(found["not_finite"]))
    assert "Traceback" not in done.stderr


def test_others_wait_as_long_as_a_scan_may_take_and_then_say_so():
    said = r"another process of this training was gone \(.*\) or silent for 12 hours; run the same again"
    with pytest.raises(parallel.LostProcess, match=said), parallel._lost("adding up"):
        raise RuntimeError("timed out")


def test_shares_cover_a_list_in_order_and_are_alike(monkeypatch):
    monkeypatch.setattr(parallel, "count", lambda: 3)
    for length in (0, 2, 3, 7, 9):
        shares = []
        for rank in range(3):
            monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
            shares.append(parallel.share(list(range(length))))
        assert sum(shares, []) == list(range(length))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("length", [1, 2, 3, 7, 12, 13])
def test_all_processes_validate_in_as_many_batches_and_each_image_once(length, monkeypatch):
    monkeypatch.setattr(parallel, "count", lambda: 3)
    monkeypatch.setattr(parallel, "gathered", lambda part: part)
    asked, seen = [], []
    for rank in range(3):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        logits, targets = validated(length, lambda rank=rank: asked.append(rank))
        assert torch.equal(logits, targets)
        seen += targets.tolist()
    assert seen == list(range(length))
    assert asked.count(0) == asked.count(1) == asked.count(2) > 0


def validated(length, stop_if_asked):
    """What `Session.validate` gives for images that are numbers, with a network that gives them back."""
    plain = Mock(cfg=config.Stage1(batch_size=6), device=torch.device("cpu"), _stop_if_asked=stop_if_asked, _read=iter)
    plain.precision.return_value, plain.averaged.side_effect = contextlib.nullcontext(), lambda images: images
    plain._loader = lambda data, plan: [(torch.tensor([index for index, _ in batch]),) * 2 for batch in plan]
    return loop.Session.validate(plain, range(length))
