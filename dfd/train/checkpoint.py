"""What a training leaves in the run folder: its best epoch, the state to resume from, and the log of its epochs."""

import importlib.util
import os
import shutil
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import Accelerator
from accelerate.utils import patch_environment
from torch import Tensor, nn
from torchvision.utils import save_image

from dfd import config
from dfd.core.io import code, damaged, digest, read_json, sha256_of, write_json
from dfd.data import manifest, provenance, splits
from dfd.inference.files import read_content, save_checkpoint, update_checkpoint

# parameters that leave the weights as they are; the checkpoint does not hold them
NOT_LEARNT_FROM = {*"data out resume track checkpoint_minutes workers ablate leave_out coverage accept".split()}
NOT_IN_KEY = {"crops", "crop_mode"}  # a training may go on with others
MLFLOW = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_ALLOW_FILE_STORE": "true"}


class Checkpoint:
    """The best epoch of a training, and the state to resume from: whole files, not used if of another `key`."""

    def __init__(self, stage: str, table: pd.DataFrame, cfg: config.Training, classes: list[str]):
        if len(classes) < 2:
            raise ValueError(f"attribution needs at least two generators, the data has {classes or 'none'}")
        truth = table["is_fake"].map({True: "fake", False: "real"}) if stage == "stage1" else table["label"]
        for split in splits.SPLITS:
            if missing := ", ".join(sorted(set(classes).difference(truth[table["split"] == split]))):
                raise ValueError(f"split {split!r} has no image of {missing}; add images or change the fractions")
        self.stage, self.cfg, self.classes, self.manifest_hash = stage, cfg, classes, manifest.digest(table)
        self.generators = sorted(table.loc[table["is_fake"], "label"].unique().tolist())
        self.settings = cfg.model_dump(exclude=NOT_LEARNT_FROM)
        self.crops = {"crop_size": cfg.crop_size, "equalise_quality": cfg.equalise_quality if cfg.equalise else None}
        made_from = cfg.model_dump(exclude=NOT_LEARNT_FROM | NOT_IN_KEY), provenance.of(table).fillna("").tolist()
        backbone = self.settings.get("backbone")  # a head's limits leave out near-duplicates in other sources
        self.adapter = sha256_of(config.ADAPTER) if backbone == config.CLIPS[1] else None
        of_head = [*table["group"], cfg.model_dump(include={"coverage", "accept"})] if backbone in config.CLIPS else []
        self.key = digest(code(), stage, self.manifest_hash, *made_from, self.adapter, *of_head)
        self.path, self.state_path = Path(cfg.out) / config.CHECKPOINTS[stage], Path(cfg.out) / f"train_{stage}.pt"

    def finished_history(self) -> list[dict[str, float]]:
        """The history where the training is finished, or an empty one."""
        read_json(self.path.with_name("metrics.json"))  # a damaged one ends this now, not at the first best epoch
        best = self._load(self.path)
        is_whole = not best.get("is_held_out") or (self.path.parent / f"hold_outs_{self.stage}.parquet").exists()
        if best.get("key") != self.key or not best["finished"] or not is_whole:
            return []
        print(f"{self.stage}: {self.path.name} is already trained on this data with these parameters.")
        asked = {"crops": self.cfg.crops, "crop_mode": self.cfg.crop_mode}
        if not asked.items() <= best.items():  # else its bytes stay, by which `run` knows it
            unmeasured = {} if best.get("is_held_out") else {"operating_points": {}, "coverage": None}
            update_checkpoint(self.path, **asked, **unmeasured)
        if self._load(self.state_path).get("key") == self.key:  # left by a kill between the mark and its removal
            self.state_path.unlink()
        return best["history"]

    def load_state(self) -> dict[str, Any]:
        """The state to resume from, empty without one that fits."""
        state = self._load(self.state_path)
        if state and (state["key"] != self.key or state["history"] and self._load(self.path).get("key") != self.key):
            print(f"{self.stage}: {self.state_path.name} belongs to other data or parameters; starting afresh.")
            return {}
        return state

    def save_best(self, model: nn.Module, history: list[dict[str, float]]) -> None:
        """Write the best epoch, the history's last."""
        buffers, cfg = dict(model.named_buffers()), self.cfg  # stage 2 normalises by the image: it has no mean, no std
        statistics = {name: buffers[name].flatten().tolist() if name in buffers else None for name in ("mean", "std")}
        content = {"stage": self.stage, "classes": self.classes, "weights": model.state_dict(),
                   "preprocessing": self.crops | statistics, "crops": cfg.crops, "crop_mode": cfg.crop_mode,
                   "threshold": 0.5, "temperature": 1.0, "adapter": self.adapter,
                   "config": self.settings, "manifest_hash": self.manifest_hash, "key": self.key, "finished": False,
                   "metrics": {"val": history[-1]}, "history": history, "generators": self.generators}  # fmt: skip
        save_checkpoint(content, self.path)
        known = read_json(measured := self.path.with_name("metrics.json"))
        if self.stage in known:  # of other weights
            write_json(measured, {name: part for name, part in known.items() if name != self.stage})

    def _load(self, path: Path) -> dict[str, Any]:
        try:
            return read_content(path) if self.cfg.resume and path.exists() else {}
        except Exception as error:  # a damaged file may raise anything
            raise ValueError(damaged(path, error)) from error


class Tracking:
    """The epochs of a training in TensorBoard or MLflow, by accelerate; a log that fails is given up with one line."""

    def __init__(self, stage: str, table: pd.DataFrame, cfg: config.Training):
        self.name = None if cfg.track == "none" else cfg.track
        self.stage, self.out = stage, Path(cfg.out).resolve()
        self.settings = cfg.model_dump(mode="json", exclude=NOT_LEARNT_FROM)
        names = table["label"], provenance.of(table).astype("string")
        label, source = ("/" + part.str.replace(r"[^\w -]+", "_", regex=True) for part in names)
        self.names = "right" + label + source.fillna("")
        if self.name and importlib.util.find_spec(self.name) is None:
            raise config.ConfigError(f"track is {self.name}, but the package {self.name} is not installed")

    def environment(self) -> AbstractContextManager[None]:
        """MLflow writes below the run folder, and asks nobody, unless its variables say otherwise."""
        variables = MLFLOW | {"MLFLOW_TRACKING_URI": (self.out / "mlruns").as_uri()}
        return patch_environment(**{name: value for name, value in variables.items() if name not in os.environ})

    def log(self, accelerator: Accelerator, history: list[dict[str, Any]], right: pd.Series, views: Tensor) -> None:
        """Log the last epoch, or all where none was; of the last, shares judged `right` and crops (N, 3, S, S) too."""
        try:
            if is_first := self.name and not accelerator.trackers:
                shutil.rmtree(self.out / "tensorboard" / self.stage, ignore_errors=True)
                name, run_name = "dfd" if self.name == "mlflow" else self.stage, f"{self.out.name} {self.stage}"
                accelerator.init_trackers(name, self.settings, {"mlflow": {"run_name": run_name}})
            for row in history if is_first else history[-1:]:
                accelerator.log(row, step=row["epoch"])
            accelerator.log(right.groupby(self.names[right.index]).mean().to_dict(), step=history[-1]["epoch"])
            for tracker in accelerator.trackers if len(views) else ():
                if self.name == "tensorboard":
                    tracker.log_images({"training views": views}, history[-1]["epoch"])
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    save_image(views, path := Path(folder, f"training views {history[-1]['epoch']:03}.png"))
                    tracker.log_artifact(path)
        except Exception as error:  # whatever a log or its server does, the training goes on
            reason = (str(error).splitlines() or [""])[0]
            print(f"{self.stage}: {self.name} failed ({type(error).__name__}: {reason}); going on without it.")
            self.name, accelerator.trackers = None, []
