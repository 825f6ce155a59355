"""Experiment tracking: the epochs of a training, where TensorBoard or MLflow show them.

A Session begins one Tracker, tells it each row of the history, and ends it. A log that fails later, on a full disk or
with its server gone, is given up with one line; the training goes on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dfd.config import CHECKPOINTS, ConfigError

EXPERIMENT = "dfd"  # MLflow's, unless $MLFLOW_EXPERIMENT_NAME says otherwise
MLFLOW = {  # what is set unless the user has: no usage reports, and a server that is gone is given up soon
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ALLOW_FILE_STORE": "true",
}
STATUS = {"finished": "FINISHED", "stopped": "KILLED"}  # MLflow's words


class Tracker:
    """What a training tells of itself while it runs; the main process alone does.

    Args:
        track: auto, tensorboard, mlflow or none. auto is TensorBoard, in JupyterLab and headless alike: a training pays
            0.3 s for it, once.
        out: run folder.
    """

    def __init__(self, track: str, out: str | Path):
        self.track, self.out, self.log = track, Path(out), None

    def begin(self, stage: str, settings: dict[str, Any], key: str) -> Tracker:
        """Name the training; nothing is written before its first epoch.

        Args:
            stage: stage1 or stage2.
            settings: the parameters.
            key: of what the training follows from; one that goes on has the same.

        Raises:
            ConfigError: the package is not installed; for auto a line says so instead.
        """
        kind = {"auto": "tensorboard"}.get(self.track, self.track)
        if kind == "none":
            return self
        if importlib.util.find_spec(kind) is None:
            text = f"the package {kind} is not installed: pip install {'-e .[mlflow]' if kind == 'mlflow' else kind}"
            if self.track != "auto":
                raise ConfigError(f"track is {kind}, but {text}; or set track to none")
            print(f"{stage}: no log for TensorBoard, {text}")
        elif os.environ.get("RANK", "0") == "0":  # accelerate and torchrun number their processes
            self.log = LOGS[kind](self.out, stage, settings, key)
        return self

    def epoch(self, row: dict[str, float]) -> None:
        """Log a row of the history."""
        self._safely(lambda log: log.epoch(row))

    def end(self, status: str) -> None:
        """Close the log: finished, or stopped by a limit and able to go on."""
        self._safely(lambda log: log.end(status))

    def _safely(self, action: Callable[[Any], None]) -> None:
        if self.log is None:
            return
        try:
            action(self.log)
        except Exception as error:  # whatever a log or its server does, the training goes on
            said = (str(error).splitlines() or [""])[0]
            print(f"{self.log.stage}: {self.log.name} failed ({type(error).__name__}: {said}); going on without it.")
            self.log = None


class TensorBoard:
    """Event files in `<out>/tensorboard/<stage>`; `tensorboard --logdir reports` shows all runs.

    Records are written whole, in this thread: no writer thread is there when the loaders fork, and a full disk is
    noticed where it happens.
    """

    name = "the log for TensorBoard"

    def __init__(self, out: Path, stage: str, settings: dict[str, Any], key: str):
        self.folder, self.stage = out / "tensorboard" / stage, stage
        self.settings, self.path = settings | {"key": key}, None

    def epoch(self, row: dict[str, float]) -> None:
        """Add the values of an epoch at its number; those of a longer log that a training goes on from are purged."""
        from torch.utils.tensorboard import summary

        step, events = row["epoch"], []
        if self.path is None:
            events = self._open(row)
        events += [{"summary": summary.scalar(tag(name), row[name]), "step": step} for name in values(row)]
        self._write(events)

    def end(self, status: str) -> None:
        """Nothing is left open."""

    def _open(self, row: dict[str, float]) -> list[dict]:
        """Name the file of this process, remove those of an earlier training, and give the events at the top."""
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from torch.utils.tensorboard import summary

        self.folder.mkdir(parents=True, exist_ok=True)
        begun = [{"file_version": "brain.Event:2"}, {"session_log": SessionLog(status=SessionLog.START)}]
        begun[1]["step"] = row["epoch"]  # this step and later ones of earlier files are void
        if row["epoch"] == 1:
            for path in self.folder.glob("events.out.tfevents.*"):
                path.unlink()
            given = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in self.settings.items()}
            begun += [{"summary": one} for one in summary.hparams(given, {tag("score"): None})]
        self.path = self.folder / f"events.out.tfevents.{time.time_ns() / 1e9:020.9f}.{os.getpid()}"
        return begun

    def _write(self, events: list[dict]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        with self.path.open("ab") as file:
            for event in events:
                RecordWriter(file).write(Event(wall_time=time.time(), **event).SerializeToString())


class MLflow:
    """A run in the store that $MLFLOW_TRACKING_URI names, in files below `<out>/mlruns` where it names none."""

    name = "MLflow"

    def __init__(self, out: Path, stage: str, settings: dict[str, Any], key: str):
        for name, value in MLFLOW.items():  # before the package is imported
            os.environ.setdefault(name, value)
        self.out, self.stage, self.settings = out.resolve(), stage, settings
        self.client = self.run = None
        self.training = hashlib.sha256(repr((str(self.out), stage, key)).encode()).hexdigest()[:16]
        self.tags = {
            "mlflow.runName": f"{self.out.name} {stage}",
            "dfd.train.stage2": self.training,
            "dfd.key": key,
            "dfd.checkpoint": str(self.out / CHECKPOINTS[stage]),
        }

    def epoch(self, row: dict[str, float]) -> None:
        """Add the values of an epoch; those that an interrupted training has logged already are left as they are."""
        from mlflow.entities import Metric

        if self.run is None:
            self._open(row)
        step, now = row["epoch"], int(time.time() * 1000)
        new = [name for name in values(row) if step not in self.logged.get(name, ())]
        self.client.log_batch(self.run, [Metric(name, float(row[name]), now, step) for name in new])

    def end(self, status: str) -> None:
        """Give the run its status."""
        if self.run is None:  # killed between its last epoch and its end, or stopped before its first row
            found = self._find()
            if found and (status == "finished" or found.info.status == "RUNNING"):  # not one that had ended before
                self.run = found.info.run_id
        if self.run:
            self.client.set_terminated(self.run, STATUS[status])

    def _connect(self) -> str:
        """The experiment's number."""
        from mlflow import MlflowClient

        self.client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or (self.out / "mlruns").as_uri())
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        experiment = self.client.get_experiment_by_name(name)
        return experiment.experiment_id if experiment else self.client.create_experiment(name)

    def _find(self):
        """The newest run of this training, or None."""
        query, order = f"tags.`dfd.train.stage2` = '{self.training}'", ["attributes.start_time DESC"]
        self.experiment = self._connect()
        return next(iter(self.client.search_runs([self.experiment], query, order_by=order, max_results=1)), None)

    def _open(self, row: dict[str, float]) -> None:
        """Go on with the run that this training was killed in, or begin one."""
        from mlflow.entities import Param

        found = self._find()
        if found and (row["epoch"] > 1 or found.info.status == "RUNNING"):
            self.run = found.info.run_id
            steps = {name: self.client.get_metric_history(self.run, name) for name in found.data.metrics}
            self.logged = {name: {metric.step for metric in history} for name, history in steps.items()}
            self.client.update_run(self.run, status="RUNNING")
            return
        self.logged = {}
        self.run = self.client.create_run(self.experiment, tags=self.tags).info.run_id
        self.client.log_batch(self.run, params=[Param(name, str(value)) for name, value in self.settings.items()])


LOGS = {"tensorboard": TensorBoard, "mlflow": MLflow}


def values(row: dict[str, float]) -> list[str]:
    """The names in a row of the history that are logged: all but the epoch."""
    return [name for name in row if name != "epoch"]


def tag(name: str) -> str:
    """A value's name for TensorBoard, which draws those with the same first part together."""
    kind = "loss" if name.endswith("_loss") else "training" if name in ("lr", "seconds") else "metric"
    return f"{kind}/{name}"
