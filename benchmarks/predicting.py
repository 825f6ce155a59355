"""`predict` on a folder against the bare networks, and the untrained detector that other rows use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.measure import Row, against
from dfd.core.images import load_rgb
from dfd.inference.detector import Detector
from dfd.inference.files import build_model
from dfd.inference.stage import BATCH, Stage, uses_bfloat16

SMALL = {"backbone": "tf_efficientnet_lite0", "representation": "highpass", "unet_width": 8, "residual_bound": 0.1}
SIDES = {"stage1": 96, "stage2": 96}  # crop sizes of profile quick


def rows(folder: Path, count: int, repeats: int) -> Iterator[Row]:
    """Decoding, cutting and the equalising JPEG come on top of the networks."""
    detector, paths = untrained(), sorted(folder.glob("*/*.*"))[:count]
    bare = networks_alone(detector, paths)
    what = f"predict on {len(paths)} files of 256 px, bare: both networks on the same crops in full batches"
    yield against(what, lambda: list(detector.predict(paths)), bare, repeats, 0.90)


def networks_alone(detector: Detector, paths: list[Path]):
    """A call of the named networks, of both where none is named, on every crop of some files, cut beforehand."""
    images = [load_rgb(path) for path in paths]
    stages = (detector.stage1, detector.stage2)
    ready = [(stage, torch.cat([as_float(stage.prepare(image).windows) for image in images])) for stage in stages]

    @torch.inference_mode()
    def bare(names: Sequence[str] = ("stage1", "stage2")) -> None:
        for stage, windows in (one for one in ready if one[0].stage in names):
            for chunk in windows.split(BATCH):
                with torch.autocast(stage.device.type, torch.bfloat16, enabled=uses_bfloat16(stage.device)):
                    stage.model(chunk.to(stage.device))

    return bare


def as_float(windows: torch.Tensor) -> torch.Tensor:
    """Crops as the network takes them."""
    return windows / 255 if windows.dtype == torch.uint8 else windows


def untrained(**changes) -> Detector:
    """Both stages with random weights, as profile quick configures them; five crops an image."""
    return Detector(*(Stage(content) for content in contents(**changes)))


def contents(**changes) -> Iterator[dict]:
    """Checkpoints of both stages with random weights.

    Args:
        changes: settings of both networks other than SMALL.
    """
    settings = {**SMALL, **changes}
    for name, classes in (("stage1", ["real", "fake"]), ("stage2", ["BigGAN", "ProGAN", "StyleGAN2"])):
        content = {"stage": name, "classes": classes, "config": settings, "crops": 5, "threshold": 0.5}
        content |= {"weights": build_model(name, settings, len(classes)).state_dict(), "temperature": 1.0}
        content |= {"preprocessing": {"crop_size": SIDES[name], "equalise_quality": 90, "mean": None, "std": None}}
        yield content | {"manifest_hash": "", "key": "", "history": [], "metrics": {}}
