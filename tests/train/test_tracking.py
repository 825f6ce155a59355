"""Tracking: what TensorBoard and MLflow read back is the history, once, whatever happened to the training."""

import errno
import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_training import configured

from dfd import config
from dfd.config import CHECKPOINTS
from dfd.data import manifest
from dfd.train import stage2, tracking

ROWS = [
    {"epoch": n, "seconds": 1.0, "lr": 0.1 / n, "train_loss": 1.0 / n, "val_auc": 0.5, "score": 0.5 + n / 10}
    for n in (1, 2, 3, 4)
]


@pytest.fixture
def mlflow(monkeypatch):
    """MLflow with none of the user's settings; those that a tracker makes are taken back."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", *tracking.MLFLOW):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    return pytest.importorskip("mlflow", reason="needs MLflow: pip install -e '.[mlflow]'")


def begun(track, out, stage="stage1", key="k", **settings):
    return tracking.Tracker(track, out).begin(stage, {"lr_gc": 0.1, "loss": "bce", "levels": (1, 2)} | settings, key)


def log(track, out, rows, status=None, **options):
    tracker = begun(track, out, **options)
    for row in rows:
        tracker.epoch(row)
    if status:
        tracker.end(status)


def board(out, stage="stage1"):
    """What TensorBoard shows of a stage."""
    return EventAccumulator(str(Path(out) / "tensorboard" / stage)).Reload()


def curve(found, name):
    return [(event.step, pytest.approx(event.value, rel=1e-6)) for event in found.Scalars(name)]


def runs(mlflow, out, stage="stage1"):
    """MLflow's runs of a run folder, the newest first."""
    client = mlflow.MlflowClient((Path(out).resolve() / "mlruns").as_uri())
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    return client, client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])


def steps(client, run, name):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]


def test_the_event_files_of_a_training_hold_its_history(tiny_data, tmp_path):
    table = manifest.scan(tiny_data, tmp_path / "scan", progress=False)
    cfg = configured("stage1", tmp_path, tiny_data, num_epochs=2)
    history = stage2.fit_stage1(table, cfg)
    found = board(tmp_path)
    assert set(found.Tags()["scalars"]) == {tracking.tag(name) for name in history if name != "epoch"}
    for name in history.columns.drop("epoch"):
        assert curve(found, tracking.tag(name)) == list(enumerate(history[name], 1))
    chosen = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"lr_gc" in chosen and b"test_resnet.r160_in1k" in chosen
    before = sorted((tmp_path / "tensorboard" / "stage1").iterdir())
    stage2.fit_stage1(table, cfg)  # already trained: nothing is logged
    assert sorted((tmp_path / "tensorboard" / "stage1").iterdir()) == before


def test_a_resumed_training_doubles_no_epoch_in_tensorboard(tmp_path):
    log("tensorboard", tmp_path, ROWS[:3])  # killed in epoch 3, before its state was written
    log("tensorboard", tmp_path, [row | {"score": 9.0} for row in ROWS[2:]], "finished")
    assert curve(board(tmp_path), "metric/score") == [(1, 0.6), (2, 0.7), (3, 9.0), (4, 9.0)]


def test_another_training_in_the_folder_replaces_the_curves(tmp_path):
    log("auto", tmp_path, ROWS, loss="bce")
    log("auto", tmp_path, ROWS[:2], loss="focal")
    found = board(tmp_path)
    assert curve(found, "loss/train_loss") == [(1, 1.0), (2, 0.5)]
    assert b"focal" in found.summary_metadata["_hparams_/session_start_info"].plugin_data.content


def test_mlflow_holds_the_history_of_a_training_and_where_its_checkpoint_is(mlflow, tiny_data, tmp_path):
    table = manifest.scan(tiny_data, tmp_path / "scan", progress=False)
    cfg = configured("stage2", tmp_path, tiny_data, num_epochs=2, track="mlflow")
    history = stage2.fit_stage2(table, cfg)
    client, (run,) = runs(mlflow, tmp_path)
    assert set(run.data.metrics) == set(history) - {"epoch"}
    for name in run.data.metrics:
        assert steps(client, run, name) == list(enumerate(history[name], 1))
    assert run.data.params["unet_width"] == "4" and "track" not in run.data.params
    assert run.data.tags["dfd.checkpoint"] == str(tmp_path / CHECKPOINTS["stage2"])
    assert run.info.status == "FINISHED" and not (tmp_path / "tensorboard").exists()


def test_a_resumed_training_goes_on_in_its_mlflow_run(mlflow, tmp_path):
    log("mlflow", tmp_path, ROWS[:1])  # killed in epoch 1, before its state was written
    log("mlflow", tmp_path, ROWS[:2])  # and in epoch 2
    log("mlflow", tmp_path, ROWS[1:3], "stopped")
    client, (run,) = runs(mlflow, tmp_path)
    assert run.info.status == "KILLED"
    log("mlflow", tmp_path, ROWS[3:])
    assert client.get_run(run.info.run_id).info.status == "RUNNING"
    begun("mlflow", tmp_path).end("finished")  # killed again, after the last epoch
    client, (run,) = runs(mlflow, tmp_path)
    assert steps(client, run, "train_loss") == [(row["epoch"], row["train_loss"]) for row in ROWS]
    assert run.info.status == "FINISHED"


def test_a_training_anew_that_is_stopped_before_its_first_row_leaves_the_finished_run_as_it_is(mlflow, tmp_path):
    log("mlflow", tmp_path, ROWS, "finished")
    begun("mlflow", tmp_path).end("stopped")
    _, (run,) = runs(mlflow, tmp_path)
    assert run.info.status == "FINISHED"


def test_a_training_that_is_stopped_before_another_row_says_so_of_its_run(mlflow, tmp_path):
    log("mlflow", tmp_path, ROWS[:1])  # killed
    begun("mlflow", tmp_path).end("stopped")
    _, (run,) = runs(mlflow, tmp_path)
    assert run.info.status == "KILLED"


@pytest.mark.parametrize("change", [{"key": "other"}, {"stage": "stage2"}, {}])
def test_a_training_anew_is_another_mlflow_run(mlflow, tmp_path, change):
    log("mlflow", tmp_path, ROWS[:1], None if change else "finished")
    log("mlflow", tmp_path, ROWS[:2], "finished", **change)
    client, found = runs(mlflow, tmp_path)
    assert [len(steps(client, run, "score")) for run in found] == [2, 1]


def test_the_users_own_mlflow_is_taken_where_it_is_named(mlflow, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "shared").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "faces")
    log("mlflow", tmp_path / "run", ROWS[:1])
    client = mlflow.MlflowClient((tmp_path / "shared").as_uri())
    assert client.get_experiment_by_name("faces") and not (tmp_path / "run").exists()


ALONE = """
import socket, sys
asked = []
socket.socket.connect = lambda self, address: asked.append(address)
socket.getaddrinfo = lambda *words, **options: asked.append(words) or []
from dfd import tracking
tracker = tracking.Tracker(sys.argv[1], sys.argv[2]).begin("stage1", {}, "k")
tracker.epoch({"epoch": 1, "train_loss": 1.0})
tracker.end("finished")
if sys.argv[1] == "mlflow":
    from mlflow import telemetry
    asked += [telemetry.get_telemetry_client()]
print(tracker.log is not None, asked)
"""


@pytest.mark.parametrize(("track", "expected"), [("tensorboard", "True []"), ("mlflow", "True [None]")])
def test_nothing_asks_the_network(track, expected, mlflow, tmp_path):
    """In a process of its own, as MLflow reports its use neither from tests nor from CI."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    command = [sys.executable, "-c", ALONE, track, str(tmp_path)]
    result = subprocess.run(command, env=kept, cwd=config.ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == expected


@pytest.mark.parametrize(("track", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow")])
def test_a_missing_package_stops_who_asked_for_it_by_name(track, package, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(config.ConfigError, match=f"track is {track}, but the package {package} is not installed: pip"):
        begun(track, tmp_path)
    log("auto", tmp_path, ROWS, "finished")
    log("none", tmp_path, ROWS, "finished")
    assert capsys.readouterr().out.count("no log for TensorBoard") == 1
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_of_several_processes_logs(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    log("tensorboard", tmp_path, ROWS, "finished")
    assert not (tmp_path / "tensorboard").exists()
    monkeypatch.setenv("RANK", "0")
    log("tensorboard", tmp_path, ROWS, "finished")
    assert len(curve(board(tmp_path), "training/lr")) == 4


def test_a_full_disk_is_told_once_and_the_training_goes_on(tiny_data, monkeypatch, tmp_path, capsys):
    table = manifest.scan(tiny_data, tmp_path / "scan", progress=False)
    write = tracking.TensorBoard._write

    def full(self, events):
        if any(event.get("step") == 2 for event in events):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, events)

    monkeypatch.setattr(tracking.TensorBoard, "_write", full)
    history = stage2.fit_stage1(table, configured("stage1", tmp_path, tiny_data, num_epochs=3))
    said = [line for line in capsys.readouterr().out.splitlines() if "going on without" in line]
    assert len(history) == 3 and len(curve(board(tmp_path), "metric/score")) == 1
    assert said == [
        "stage1: the log for TensorBoard failed (OSError: [Errno 28] No space left on device); going on without it."
    ]


@pytest.mark.slow
def test_a_server_that_is_gone_is_told_once_and_soon(mlflow, monkeypatch, tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{taken.getsockname()[1]}")  # nobody listens
        log("mlflow", tmp_path, ROWS, "finished")
    said = capsys.readouterr().out
    assert said.startswith("stage1: MLflow failed (MlflowException: ") and said.count("\n") == 1


def test_a_word_that_is_no_tracker_is_named():
    with pytest.raises(config.ConfigError, match="track must be auto or tensorboard or mlflow or none, got wandb"):
        config.Stage1(track="wandb")
