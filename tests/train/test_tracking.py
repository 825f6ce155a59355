"""Tracking: what TensorBoard and MLflow read back is the history, once, whatever happened to the training."""

import importlib.util
import os
import subprocess
import sys

import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainings import configured, fit_one_epoch

from dfd import config
from dfd.data import manifest
from dfd.train import fit, loop


@pytest.fixture
def table(tiny_data, tmp_path):
    return manifest.scan(tiny_data, tmp_path / "scan", progress=False)


def curves(out, stage="stage1"):
    """What TensorBoard shows of a stage: name -> (epoch, value) of each point."""
    board = EventAccumulator(str(out / "tensorboard" / stage)).Reload()
    names = board.Tags()["scalars"]
    return {name: [(e.step, pytest.approx(e.value, rel=1e-6)) for e in board.Scalars(name)] for name in names}


def test_the_event_files_of_a_training_hold_its_history_and_a_resumed_one_doubles_no_epoch(table, tiny_data, tmp_path):
    out = tmp_path / "run"
    fit_one_epoch(table, configured("stage1", out, tiny_data))
    history = fit(table, configured("stage1", out, tiny_data))
    assert len(history) == 3
    logged, expected = curves(out), {name: list(enumerate(history[name], 1)) for name in history}
    shares = {name: dict(logged.pop(f"right/{name}")) for name in ("RealPhotos", "ProGAN", "BigGAN")}
    assert logged == expected and all(shares[name].keys() == {2, 3} for name in shares)  # of this process
    shown = EventAccumulator(str(out / "tensorboard" / "stage1")).Reload().Images("training views")
    assert [image.step for image in shown] == [2, 3] and all(image.width >= 32 for image in shown)  # of this process
    before = sorted((out / "tensorboard").rglob("*"))
    assert any(b"test_resnet.r160_in1k" in path.read_bytes() for path in before if path.is_file())
    fit(table, configured("stage1", out, tiny_data))  # already trained: nothing is logged
    assert sorted((out / "tensorboard").rglob("*")) == before


def test_mlflow_holds_the_history_of_a_training_and_sources_of_any_name(table, tiny_data, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs MLflow: pip install -e '.[mlflow]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = tmp_path / "run"
    table["source"] = table["label"].map({"ProGAN": "http://a/../b?c", "BigGAN": "生成 1"})
    history = fit(table, configured("stage2", out, tiny_data, num_epochs=2, track="mlflow"))
    assert "MLFLOW_TRACKING_URI" not in os.environ
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient((out / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("dfd")
    (run,) = client.search_runs([experiment.experiment_id])
    assert set(run.data.metrics) == {*history, "right/ProGAN/http_a_b_c", "right/BigGAN/生成 1"}
    for name in history:
        logged = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        assert logged == list(enumerate(history[name], 1))
    names = [artifact.path for artifact in client.list_artifacts(run.info.run_id)]
    assert [name for name in names if name.endswith(".png")] == [f"training views {n:03}.png" for n in (1, 2)]
    assert run.data.params["unet_width"] == "4" and "track" not in run.data.params
    assert run.info.status == "FINISHED" and not (out / "tensorboard").exists()


def test_shares_are_those_of_the_images_that_are_judged_right(table, tiny_data, tmp_path, monkeypatch):
    said, validate = [], loop.Trainer.validate
    monkeypatch.setattr(loop.Trainer, "validate", lambda *given: said.append(validate(*given)) or said[-1])
    history = fit(table, configured("stage1", tmp_path, tiny_data, num_epochs=1))
    (logits, is_fake), images = said[0], table[table["split"] == "val"]
    assert (is_fake == images["is_fake"]).all()
    right, logged = (logits > 0) == images["is_fake"], curves(tmp_path)
    for label, share in right.groupby(images["label"]).mean().items():
        assert logged[f"right/{label}"] == [(1, pytest.approx(share))]
    clean, degraded = (roc_auc_score(truth, scores) for scores, truth in said[:2])
    given = [history[name].item() for name in ("val_auc", "val_auc_degraded", "score")]
    assert given == pytest.approx([clean, degraded, (clean + degraded) / 2])


def test_generators_weigh_alike_in_the_score_of_stage_2(table, tiny_data, tmp_path, monkeypatch):
    said, validate = [], loop.Trainer.validate
    monkeypatch.setattr(loop.Trainer, "validate", lambda *given: said.append(validate(*given)) or said[-1])
    table.loc[table.index[table["label"].eq("ProGAN") & table["split"].eq("train")][:4], "split"] = "val"
    history = fit(table, configured("stage2", tmp_path, tiny_data, num_epochs=1, carried_every=2))
    logits, source = said[0]
    assert history["score"].tolist() == [balanced_accuracy_score(source, logits.argmax(1))]


ALONE = """
import socket, sys
asked = []
socket.socket.connect = lambda self, address: asked.append(address)
socket.getaddrinfo = lambda *words, **options: asked.append(words) or []
from trainings import configured
from dfd.data import manifest
from dfd.train import fit
data, out, *tracks = sys.argv[1:]
for track in tracks:
    told = {"num_epochs": 1, "track": track, "adversarial": False}
    fit(manifest.scan(data, progress=False), configured("stage1", f"{out}/{track}", data, **told))
print(asked)
"""


@pytest.mark.slow
def test_nothing_asks_the_network(tiny_data, tmp_path):
    tracks = ["tensorboard", *["mlflow"] * (importlib.util.find_spec("mlflow") is not None)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", ALONE, str(tiny_data), str(tmp_path), *tracks]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]" and {path.name for path in tmp_path.iterdir()} >= set(tracks)
    if "mlflow" not in tracks:
        pytest.skip("TensorBoard asked nothing; MLflow needs pip install -e '.[mlflow]'")


def test_a_missing_package_stops_who_asked_for_it_by_name(table, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(config.ConfigError, match="track is mlflow, but the package mlflow is not installed"):
        fit(table, configured("stage1", tmp_path / "run", tiny_data, track="mlflow"))


def test_a_log_that_fails_is_told_once_and_the_training_goes_on(table, tiny_data, tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    (out / "tensorboard").write_text("in the way")
    assert len(fit(table, configured("stage1", out, tiny_data, num_epochs=2))) == 2
    said = [line for line in capsys.readouterr().out.splitlines() if "going on without" in line]
    assert len(said) == 1 and said[0].startswith("stage1: tensorboard failed (")
