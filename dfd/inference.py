"""Inference: checkpoints, multi-crop without resizing, and the Detector that gives one Verdict per image."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from dfd.datasets import equalise, pad_to
from dfd.degrade import to_tensor
from dfd.images import ImageError, load_rgb
from dfd.models import Attribution, RealFakeClassifier

CHECKPOINTS = {"stage1": "best_real_fake_model.pt", "stage2": "best_gfd2_model.pt"}
BATCH = 64  # crops per forward pass


def build_model(stage: str, settings: dict[str, Any], outputs: int, pretrained: bool = False) -> nn.Module:
    """The network of a stage from the plain values that its config, or its checkpoint, holds."""
    if stage == "stage1":
        return RealFakeClassifier(settings["backbone"], pretrained, settings["representation"])
    return Attribution(settings["backbone"], outputs, settings["unet_width"], settings["residual_bound"], pretrained)


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write under a temporary name and rename, so that a killed run leaves the previous file whole.

    Raises:
        OSError: the disk is full or the folder cannot be written; the previous file is untouched.
    """
    draft = path.with_name(path.name + ".part")
    try:
        torch.save(content, draft)
        os.replace(draft, path)
    except RuntimeError as error:  # torch reports a failed write this way
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        draft.unlink(missing_ok=True)


def update_checkpoint(path: Path, **values: Any) -> None:
    """Replace some entries of a checkpoint, its threshold and temperature for instance."""
    save_checkpoint({**torch.load(path, map_location="cpu", weights_only=True), **values}, path)


def uses_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 by itself; on others mixed precision would be slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported())


def crop_corners(height: int, width: int, size: int, crops: int) -> list[tuple[int, int]]:
    """Where to cut: centre, then the four corners, then a regular grid; no place twice.

    Returns:
        At most `crops` (top, left) pairs; fewer where the image holds fewer different windows.
    """
    down, right = height - size, width - size
    side = 2
    wanted = [(down // 2, right // 2), (0, 0), (0, right), (down, 0), (down, right)]
    while len(dict.fromkeys(wanted)) < crops and side * size < 2 * max(height, width) + size:
        side += 1
        steps = [i / (side - 1) for i in range(side)]
        wanted += [(round(down * y), round(right * x)) for y in steps for x in steps]
    return list(dict.fromkeys(wanted))[:crops]


class Stage:
    """A trained stage with its own preprocessing: takes PIL images or tensors of any size, gives logits.

    Stage 1 gives two logits, (0, z), so that softmax and sigmoid agree; stage 2 one per generator.
    """

    def __init__(self, content: dict[str, Any], device: torch.device | None = None):
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.stage, self.classes, self.settings = content["stage"], content["classes"], content["config"]
        self.crop_size = content["preprocessing"]["crop_size"]
        self.equalise_quality = content["preprocessing"]["equalise_quality"]
        self.crops, self.threshold, self.temperature = content["crops"], content["threshold"], content["temperature"]
        self.history, self.manifest_hash = content["history"], content["manifest_hash"]
        self.model = build_model(self.stage, self.settings, len(self.classes))
        self.model.load_state_dict(content["weights"])
        self.model.eval().to(self.device)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | None = None) -> Stage:
        """Open a checkpoint.

        Raises:
            FileNotFoundError: no such file; the text says how to train one.
            ValueError: the file is no checkpoint of this project.
        """
        path = Path(path)
        if not path.exists():
            remedy = f"`make demo` or `python -m dfd run --data FOLDER --out {path.parent}`"
            raise FileNotFoundError(f"no trained model at {path}; train one with {remedy}")
        try:
            return cls(torch.load(path, map_location="cpu", weights_only=True), device)
        except Exception as error:  # a foreign file may raise anything: UnpicklingError, KeyError, RuntimeError …
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{path} is not a dfd checkpoint: {reason}") from error

    def __call__(self, image: Image.Image, crops: int | None = None) -> Tensor:
        """Logits (classes,) of one RGB image, averaged over its crops."""
        return next(self.stream([to_tensor(image.convert("RGB"))], crops))[0]

    @torch.inference_mode()
    def stream(self, images: Iterable[Tensor], crops: int | None = None) -> Iterator[tuple[Tensor, int, float]]:
        """Score images one after another, their crops batched together.

        Args:
            images: (1, 3, H, W) tensors in [0, 1], of any sizes.
            crops: crops per image at most; none takes the checkpoint's number.

        Yields:
            In order: logits (classes,) averaged over the crops, the number of crops, and the standard deviation over
            the crops of the leading logit.
        """
        waiting: list[Tensor] = []
        for image in images:
            waiting.append(self.cut(image, crops or self.crops))
            if sum(len(cut) for cut in waiting) >= BATCH:
                yield from self._flush(waiting)
                waiting = []
        if waiting:
            yield from self._flush(waiting)

    def cut(self, image: Tensor, crops: int) -> Tensor:
        """Equalised crops (N, 3, S, S) of a (1, 3, H, W) image; small images are reflect-padded."""
        size = self.crop_size
        image = pad_to(image, size)
        corners = crop_corners(*image.shape[-2:], size, crops)
        return equalise(torch.cat([image[..., y : y + size, x : x + size] for y, x in corners]), self.equalise_quality)

    def _flush(self, waiting: list[Tensor]) -> Iterator[tuple[Tensor, int, float]]:
        logits = []
        for chunk in torch.cat(waiting).split(BATCH):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=uses_bfloat16(self.device)):
                out = self.model(chunk.to(self.device)).float().cpu()
            logits.append(torch.stack([torch.zeros_like(out), out], dim=1) if out.ndim == 1 else out)
        for one in torch.cat(logits).split([len(cut) for cut in waiting]):  # (crops, classes)
            mean = one.mean(0)
            lead = one[:, 1] if self.stage == "stage1" else one[:, mean.argmax()]
            yield mean, len(one), float(lead.std(correction=0))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities (…, classes): softmax at the temperature fitted on the validation split."""
        return torch.softmax(logits / self.temperature, dim=-1)


@dataclass(frozen=True)
class Verdict:
    """What both stages say of one image; all None but path and error where the image cannot be read."""

    path: str
    is_fake: bool | None = None  # p_fake reaches the threshold chosen on validation
    p_fake: float | None = None  # calibrated, in [0, 1]
    source: str | None = None  # RealPhotos, or the generator that stage 2 names
    p_source: dict[str, float] | None = None  # stage 2's view, given for photos too
    crops: int | None = None
    crop_std: float | None = None  # spread of stage 1's logit over the crops
    error: str | None = None

    def asdict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class Detector:
    """Both stages of a run folder: is it real, and if not, who made it?"""

    def __init__(self, stage1: Stage, stage2: Stage):
        self.stage1, self.stage2 = stage1, stage2

    @classmethod
    def load(cls, run: str | Path) -> Detector:
        """Open both checkpoints of a run folder; see Stage.load for the errors."""
        return cls(*(Stage.load(Path(run) / name) for name in CHECKPOINTS.values()))

    def predict(self, paths: Iterable[str | Path], crops: int | None = None) -> Iterator[Verdict]:
        """One Verdict per path, in order; an unreadable file gives a Verdict with its error."""
        for path in paths:
            try:
                image = to_tensor(load_rgb(path))
            except ImageError as error:
                yield Verdict(str(path), error=str(error).removeprefix(f"{path}: "))
                continue
            yield self._verdict(str(path), image, crops)

    def _verdict(self, path: str, image: Tensor, crops: int | None) -> Verdict:
        logits, count, spread = next(self.stage1.stream([image], crops))
        p_fake = float(self.stage1.probabilities(logits)[1])
        p_source = self.stage2.probabilities(next(self.stage2.stream([image], crops))[0]).tolist()
        named = dict(zip(self.stage2.classes, p_source, strict=True))
        is_fake = p_fake >= self.stage1.threshold
        source = max(named, key=named.get) if is_fake else "RealPhotos"
        return Verdict(path, is_fake, p_fake, source, named, count, spread)
