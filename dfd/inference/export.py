"""A detector as ONNX, for programs that have no torch: one graph, what goes around it as JSON, and an example."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfd import __version__
from dfd.config import CLIPS
from dfd.core.io import TEMPLATES, atomic_write, write_json
from dfd.inference.decide import limits
from dfd.inference.detector import Detector

GRAPH, RECORD, EXAMPLE = "detector.onnx", "detector.json", "example.py"
OPSET = 17  # since 2022; onnxruntime 1.12


class Graph(nn.Module):
    """Both stages as one network: (N, 3, S, S) equalised crops in [0, 1] to logits (N,) of fake and (N, K) of names."""

    def __init__(self, detector: Detector):
        super().__init__()
        self.stages = nn.ModuleList(stage.model.cpu() for stage in detector.stages)
        kinds = [stage.settings["backbone"] for stage in detector.stages]
        self.trunk = detector.stages[0].backbone.trunk if set(kinds) <= set(CLIPS) and len(set(kinds)) == 1 else None

    def forward(self, crops: Tensor) -> tuple[Tensor, ...]:
        """Logits of each stage."""
        if self.trunk is None:
            return tuple(stage(crops) for stage in self.stages)
        features = self.trunk.tokens(crops).flatten(1)  # once for both
        backbones: list[Any] = [getattr(stage, "classifier", stage).backbone for stage in self.stages]
        return tuple(backbone.head(features).squeeze(1) for backbone in backbones)


def export(detector: Detector, folder: Path) -> Path:
    """Write detector.onnx, detector.json and example.py, which judges a picture by onnxruntime, Pillow and numpy alone.

    The JSON, which the graph's metadata has too, holds preprocessing, crops, thresholds, temperatures and calibration.
    """
    stage1, stage2 = detector.stage1, detector.stage2
    names = ("crop_size", "crops", "equalise_quality", "temperature", "likelihood", "rates", "smallest")
    record: dict[str, Any] = {"dfd": __version__, "detector": str(detector.run), "threshold": detector.threshold}
    record |= {name: getattr(stage1, name) for name in names} | {"band": limits(stage1, detector.threshold)}
    names = ("classes", "temperature", "conformal_quantile", "ood_threshold")
    record |= {"stage2": {name: getattr(stage2, name) for name in names}} if stage2 else {}
    record = json.loads(json.dumps(record), parse_constant=lambda _: None)  # NaN, of too few groups, is no JSON
    takes = ("crop_size", "equalise_quality", "crops", "crop_mode")
    ways = {tuple(getattr(stage, name) for name in takes) for stage in detector.stages}
    if len(ways) > 1 or stage1.crop_mode != "five":
        text = f"train both with the same {', '.join(takes)}, that of mode five; theirs are {sorted(ways, key=str)}"
        raise ValueError(f"the stages take different crops, or others than the example can cut; {text}")
    folder.mkdir(parents=True, exist_ok=True)
    names, crops = ["real_or_fake", "generator"][: len(detector.stages)], torch.rand(2, 3, *[stage1.crop_size] * 2)
    with atomic_write(folder / GRAPH) as draft, torch.no_grad(), warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            Graph(detector).eval(), (crops,), str(draft), input_names=["crops"], output_names=names, dynamo=False,
            dynamic_axes={name: {0: "N"} for name in ("crops", *names)}, opset_version=OPSET)  # fmt: skip
        import onnx

        graph = onnx.load(str(draft))
        onnx.helper.set_model_props(graph, {"dfd": json.dumps(record)})
        onnx.save(graph, str(draft))
    for stage in detector.stages:  # back to where it was
        stage.model.to(stage.device)
    write_json(folder / RECORD, record)
    shutil.copyfile(TEMPLATES / f"{EXAMPLE}.txt", folder / EXAMPLE)
    return folder / GRAPH
