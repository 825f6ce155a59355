"""A trained stage: its checkpoint, its preprocessing, crops of many images in full batches, and its answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dfd import machine
from dfd.checkpoints import build_model, described
from dfd.crops import MAX_CROPS, Corner, Plan, cut, plan
from dfd.datasets import equalise
from dfd.models import folded
from dfd.neighbours import Neighbours
from dfd.operators import jpeg_pixels

CHECKPOINTS = {"stage1": "best_real_fake_model.pt", "stage2": "best_gfd2_model.pt"}
BATCH = 64  # crops per forward pass
UNKNOWN = "unknown"  # the source of a fake that is like none of the generators


def uses_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 by itself; on others mixed precision would be slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported())


@dataclass(frozen=True)
class Scored:
    """What a stage says of one image."""

    logits: Tensor  # (classes,), averaged over the crops
    crops: int
    spread: float  # standard deviation over the crops of the leading logit
    needed: int  # crops that the mode asks for: above crops where the image is too large for them all
    strangeness: float | None = None  # stage 2: mean distance of the crops to the training images; see Neighbours
    each: Tensor | None = None  # (crops, classes), the logits of every crop
    corners: tuple[Corner, ...] = ()  # where each was cut

    @property
    def first(self) -> Tensor:
        """Logits (classes,) of the first crop alone: the centre in mode five."""
        return self.each[0]


@dataclass(frozen=True, eq=False)
class Prepared:
    """The crops of one image, ready for a stage."""

    windows: Tensor  # (N, 3, S, S), equalised: uint8, or float in [0, 1] where a tensor meets no equalising JPEG
    plan: Plan


def prepared(
    stages: Sequence[Stage], image: Image.Image | Tensor, crops: int | None = None, mode: str | None = None
) -> list[Prepared]:
    """One image as each stage takes it, cut once for those that take the same; arguments as in `Stage.stream`."""
    found: dict[tuple, Prepared] = {}
    for stage in stages:
        if stage.cutting not in found:
            found[stage.cutting] = stage.prepare(image, crops, mode)
    return [found[stage.cutting] for stage in stages]


def _equal_pixels(image: Image.Image, plan: Plan, size: int, quality: int | None) -> Tensor:
    """The windows of an image that is large enough for them, (N, 3, S, S) uint8: as `cut` and `equalise` would have
    them, but without torch, whose threads would get in the way of the network's.
    """
    boxes = [(left, top, left + size, top + size) for top, left in plan.corners]
    pixels = np.stack([np.asarray(image.crop(box).convert("RGB")) for box in boxes])  # (N, S, S, 3)
    if quality is not None:
        pixels = jpeg_pixels(pixels, quality)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _batches(windows: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Crops of any images as float (size, 3, S, S) in [0, 1], the last ones fewer; twice that is held at the most."""
    held: list[Tensor] = []
    for many in windows:
        for part in many.split(size):
            held.append(part / 255 if part.dtype == torch.uint8 else part)
            if sum(map(len, held)) >= size:
                joined = torch.cat(held)
                yield joined[:size]
                held = [joined[size:]]
    if sum(map(len, held)):
        yield torch.cat(held)


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
        self.crop_mode = content.get("crop_mode", "five")
        self.operating_points = content.get("operating_points", {})  # stage 1: name -> threshold, fitted on validation
        self.validation = content.get("validation", {})  # stage 1: photos, fakes -> their sorted p_fake
        bank = content.get("bank")  # stage 2: features of training images
        self.neighbours = None if bank is None else Neighbours(bank.float().numpy())
        self.strange_above = content.get("strange_above")  # stage 2: from there on a fake's generator is unknown
        self.conformal_quantile = content.get("conformal_quantile", 1.0)  # stage 2: of the sets of possible names
        self.coverage = content.get("coverage")  # stage 2: what these sets promise
        self.history, self.manifest_hash, self.key = content["history"], content["manifest_hash"], content["key"]
        self.model = build_model(self.stage, self.settings, len(self.classes))
        self.model.load_state_dict(content["weights"])
        self.model.eval().to(self.device)
        machine.keep_freed()

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
            return cls(described(torch.load(path, map_location="cpu", weights_only=True)), device)
        except Exception as error:  # a foreign file may raise anything: UnpicklingError, KeyError, RuntimeError …
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            if reason.startswith("Error(s) in loading state_dict"):
                reason = "its weights do not fit the network that it names; another version of dfd may have written it"
            raise ValueError(f"{path} is not a dfd checkpoint: {reason}") from error

    def __call__(self, image: Image.Image, crops: int | None = None, mode: str | None = None) -> Tensor:
        """Logits (classes,) of one PIL image, averaged over its crops."""
        return next(self.stream([image], crops, mode)).logits

    def stream(
        self, images: Iterable[Image.Image | Tensor], crops: int | None = None, mode: str | None = None
    ) -> Iterator[Scored]:
        """Score images one after another, their crops batched together.

        Args:
            images: PIL images, or (1, 3, H, W) tensors in [0, 1]; of any sizes.
            crops: crops per image at most, MAX_CROPS at the utmost; none takes the checkpoint's number or, for a grid
                that this call asks for, as many as cover the image.
            mode: five, grid or random, see `dfd.crops.plan`; none takes the checkpoint's.

        Yields:
            One Scored per image, in order.

        Raises:
            ValueError: an image without pixels, crops below 1, or an unknown mode.
        """
        return self.score(self.prepare(image, crops, mode) for image in images)

    @property
    def cutting(self) -> tuple:
        """What `prepare` depends on beside its arguments."""
        return self.crop_size, self.equalise_quality, self.crops, self.crop_mode

    def prepare(self, image: Image.Image | Tensor, crops: int | None = None, mode: str | None = None) -> Prepared:
        """Do all that comes before the network, which a thread can do ahead; arguments and errors as in `stream`."""
        if crops is None:
            crops = MAX_CROPS if mode == "grid" else self.crops
        height, width = image.shape[-2:] if isinstance(image, Tensor) else (image.height, image.width)
        size, quality = self.crop_size, self.equalise_quality
        chosen = plan(height, width, size, crops, mode or self.crop_mode)
        if isinstance(image, Image.Image) and size <= min(image.size):
            return Prepared(_equal_pixels(image, chosen, size, quality), chosen)
        windows = []
        for corner in chosen.corners:
            window = equalise(cut(image, corner, size), quality)
            windows.append(window if quality is None else (window * 255).round().byte())
        return Prepared(torch.cat(windows), chosen)

    @torch.inference_mode()
    def score(self, prepared: Iterable[Prepared], batch: int | None = None) -> Iterator[Scored]:
        """What the stage says of images whose crops were cut before, in order.

        Args:
            prepared: by `prepare`.
            batch: crops, of any images, that pass the network at a time; none takes BATCH.
        """
        plans: deque[Plan] = deque()  # of the images that wait for logits
        answers: list[tuple[Tensor, float | None]] = []
        windows = (plans.append(one.plan) or one.windows for one in prepared)
        for some in _batches(windows, batch or BATCH):
            answers.extend(self._answers(some))
            while plans and len(answers) >= len(plans[0].corners):
                first = plans.popleft()
                count = len(first.corners)
                yield self._average(answers[:count], first)
                answers = answers[count:]

    @cached_property
    def _quick(self) -> nn.Module:
        """The network as it scores."""
        return folded(self.model, self.crop_size) if self.device.type == "cpu" else self.model

    def _answers(self, batch: Tensor) -> list[tuple[Tensor, float | None]]:
        """Logits (classes,) and strangeness of each of (B, 3, S, S) equalised crops in [0, 1]."""
        batch, strange = batch.to(self.device), [None] * len(batch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=uses_bfloat16(self.device)):
            if self.neighbours is None:
                out = self._quick(batch).float().cpu()
            else:
                out, features = (part.float().cpu() for part in self._quick.describe(batch))
                strange = self.neighbours.distance(features.numpy()).tolist()
        logits = torch.stack([torch.zeros_like(out), out], dim=1) if out.ndim == 1 else out
        return list(zip(logits, strange, strict=True))

    def _average(self, answers: list[tuple[Tensor, float | None]], plan: Plan) -> Scored:
        """Average what was said of one image's crops."""
        logits, strange = torch.stack([one for one, _ in answers]), [one for _, one in answers]
        mean = logits.mean(0)
        lead = logits[:, 1 if self.stage == "stage1" else mean.argmax()]
        strangeness = None if self.neighbours is None else float(np.mean(strange))
        spread = float(lead.std(correction=0))
        return Scored(mean, len(logits), spread, plan.needed, strangeness, logits, tuple(plan.corners))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities (…, classes): softmax at the temperature fitted on the validation split."""
        return torch.softmax(logits / self.temperature, dim=-1)

    def source(self, scored: Scored) -> str:
        """Stage 2's answer: a generator's name, or unknown where no training image is near."""
        if self.strange_above is not None and scored.strangeness > self.strange_above:
            return UNKNOWN
        return self.classes[int(scored.logits.argmax())]
