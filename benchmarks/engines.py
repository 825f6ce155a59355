"""Ways to run the detector that ships on a CPU, each beside torch in float32: speed, and whether verdicts stay."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.ao.quantization as quantization

from benchmarks.measure import Row, in_turns
from dfd.core.images import load_rgb
from dfd.core.runs import cores
from dfd.inference.decide import answer
from dfd.inference.detector import Detector
from dfd.inference.export import GRAPH, Graph, export
from dfd.models.clip import Trunk

IMAGES, BATCH = 64, 32
Engine = Callable[[torch.Tensor], np.ndarray]


def rows(folder: Path, pictures: Path, repeats: int) -> Iterator[Row]:
    """One row an engine: how many times as fast as torch in float32; the share of equal verdicts is in its name."""
    detector = Detector.load()
    paths = sorted(pictures.glob("*/*.*"))[:IMAGES]
    windows = torch.cat([detector.stage1.prepare(load_rgb(path)).windows[:1] for path in paths])
    crops = windows.float() / (255 if windows.dtype == torch.uint8 else 1)
    found = engines(detector, folder)
    bare = found.pop("torch float32")
    expected = verdicts(detector, bare, crops)
    for name, engine in found.items():
        same = np.mean([a == b for a, b in zip(verdicts(detector, engine, crops), expected, strict=True)])
        slow, fast = in_turns([partial(run, bare, crops), partial(run, engine, crops)], repeats)
        yield Row(
            f"{name}, against torch float32; {same:.1%} of {len(paths)} verdicts equal", slow / fast, unit="times"
        )


def engines(detector: Detector, folder: Path) -> dict[str, Engine]:
    """Each gives stage 1's logits (N,) of crops (N, 3, S, S) in [0, 1]."""
    import onnxruntime

    graph = Graph(detector).eval()
    per_channel, small = {torch.nn.Linear: quantization.per_channel_dynamic_qconfig}, copy.deepcopy(graph)
    for trunk in [module for module in small.modules() if isinstance(module, Trunk)]:
        with warnings.catch_warnings(action="ignore"):  # of the last block the class token alone is made, by hand
            quantization.quantize_dynamic(trunk.vit.blocks[:-1], per_channel, inplace=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    path = str(export(detector, folder / "onnx").with_name(GRAPH))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def rounded(crops: torch.Tensor) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16):
            return graph(crops)[0].float().numpy()

    return {
        "torch float32": lambda crops: graph(crops)[0].numpy(),
        "torch bfloat16": rounded,
        "torch dynamic int8": lambda crops: small(crops)[0].numpy(),
        "onnxruntime float32": lambda crops: session.run(None, {"crops": crops.numpy()})[0],
    }


@torch.inference_mode()
def run(engine: Engine, crops: torch.Tensor) -> np.ndarray:
    """Logits of all crops, a batch at a time."""
    return np.concatenate([engine(chunk) for chunk in crops.split(BATCH)])


def verdicts(detector: Detector, engine: Engine, crops: torch.Tensor) -> list[str]:
    """What stage 1 answers to each crop."""
    p = 1 / (1 + np.exp(-run(engine, crops) / detector.stage1.temperature))
    return [answer(float(value), detector.stage1) for value in p]
