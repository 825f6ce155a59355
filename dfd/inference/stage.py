"""A trained stage: from a checkpoint on disk to logits of images of any size."""

from __future__ import annotations

import errno
import math
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from dfd.core import runs
from dfd.core.images import ImageError, load_rgb
from dfd.core.io import atomic_write
from dfd.data.crops import MAX_CROPS, Corner, Plan, cut, equalise, plan
from dfd.degrade.operators import jpeg_pixels
from dfd.inference.openset import FeatureBank
from dfd.models.backbones import fold_batch_norms
from dfd.models.classifiers import Attribution, RealFakeClassifier

STAGES = ("stage1", "stage2")
REQUIRED = "stage classes config weights preprocessing crops threshold temperature history manifest_hash key".split()
BATCH = 64  # crops per forward pass


def build_model(stage: str, settings: dict[str, Any], outputs: int, pretrained: bool = False) -> nn.Module:
    """The network of a stage from the plain values that its config, or its checkpoint, holds."""
    if stage == "stage1":
        stem_stride = settings.get("stem_stride", 0)
        return RealFakeClassifier(settings["backbone"], pretrained, settings["representation"], stem_stride)
    extractor, size = settings.get("extractor", "unet"), (settings["unet_width"], settings["residual_bound"])
    return Attribution(settings["backbone"], outputs, *size, pretrained, extractor)


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint whole or not at all.

    Raises:
        OSError: the disk is full or the folder cannot be written; the previous file is untouched.
    """
    with atomic_write(path) as draft, draft.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch reports half a write this way
            full = shutil.disk_usage(path.parent).free < 2**20
            raise OSError(errno.ENOSPC if full else errno.EIO, f"{error}", str(path)) from error


def update_checkpoint(path: Path, **values: Any) -> None:
    """Replace some entries of a checkpoint, its threshold and temperature for instance."""
    save_checkpoint({**torch.load(path, map_location="cpu", weights_only=True), **values}, path)


def _checked(content: Any) -> dict[str, Any]:
    """Refuse, with a ValueError, what is no checkpoint: anybody may have written the file."""
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"it holds a {type(content).__name__}, not the entries of a stage")
    if "networks" in content:
        raise ValueError("it is the state of a training that goes on; the finished stage is the file beside it")
    if missing := [key for key in REQUIRED if key not in content]:
        raise ValueError(f"it lacks {', '.join(missing)}; weights alone, or written by another version of dfd")
    if content["stage"] not in STAGES:
        raise ValueError(f"it is of the stage {str(content['stage'])[:40]!r}, and this version knows stage1 and stage2")
    side, classes = content["preprocessing"]["crop_size"], content["classes"]
    in_range = {
        "crop_size": isinstance(side, int) and 8 <= side <= 2048,
        "classes": 2 <= len(classes) <= 1000 and all(isinstance(name, str) and len(name) <= 200 for name in classes),
        "crops": isinstance(content["crops"], int) and content["crops"] >= 1,
        "temperature": 0 < content["temperature"] < math.inf,
        "threshold": math.isfinite(content["threshold"]),
        "unet_width": 1 <= content["config"].get("unet_width", 1) <= 512,
    }
    if wrong := [name for name, good in in_range.items() if not good]:
        raise ValueError(f"its {' and '.join(wrong)} cannot be right")
    return content


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy weights by name.

    Raises:
        ValueError: a name that only one side has, or another shape; the text names the first.
    """
    own = model.state_dict()
    for name in [*own, *weights]:
        if name not in own or name not in weights:
            which = "which the file lacks" if name in own else "which the network does not have"
            raise ValueError(f"its weights do not fit the network that it names: {name}, {which}")
        if own[name].shape != weights[name].shape:
            shapes = f"{tuple(weights[name].shape)} in the file, {tuple(own[name].shape)} in the network"
            raise ValueError(f"its weights do not fit the network that it names: {name} is {shapes}")
    model.load_state_dict(weights)


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
    crop_std: float  # standard deviation over the crops of the leading logit
    needed: int  # crops that the mode asks for: above crops where the image is too large for them all
    ood_score: float | None = None  # stage 2: mean distance of the crops to the training images; see FeatureBank
    crop_logits: Tensor | None = None  # (crops, classes); the first is the centre in mode five
    corners: tuple[Corner, ...] = ()  # where each crop was cut


@dataclass(frozen=True, eq=False)
class Prepared:
    """The crops of one image, ready for a stage."""

    windows: Tensor  # (N, 3, S, S), equalised: uint8, or float in [0, 1] where a tensor meets no equalising JPEG
    plan: Plan


class Stage:
    """A trained stage with its own preprocessing: takes PIL images or tensors of any size, gives logits.

    Stage 1 gives two logits, (0, z), so that softmax and sigmoid agree; stage 2 one per generator. Its attributes are
    a `dfd.inference.decide.Rule`.
    """

    def __init__(self, content: dict[str, Any], device: torch.device | None = None):
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.stage, self.classes, self.settings = content["stage"], content["classes"], content["config"]
        self.crop_size = content["preprocessing"]["crop_size"]
        self.equalise_quality = content["preprocessing"]["equalise_quality"]
        self.crops, self.crop_mode = content["crops"], content.get("crop_mode", "five")
        self.threshold, self.temperature = content["threshold"], content["temperature"]
        self.operating_points = content.get("operating_points", {})  # stage 1: name -> threshold, fitted on validation
        self.validation = content.get("validation", {})  # stage 1: photos, fakes -> their sorted p_fake
        bank = content.get("feature_bank")  # stage 2: features of training images
        self.feature_bank = None if bank is None else FeatureBank(bank.float().numpy())
        self.ood_threshold = content.get("ood_threshold")  # stage 2: above it a fake's generator is unknown
        self.conformal_quantile = content.get("conformal_quantile", 1.0)  # stage 2: of the sets of possible names
        self.coverage = content.get("coverage")  # stage 2: what these sets promise
        self.history, self.manifest_hash, self.key = content["history"], content["manifest_hash"], content["key"]
        self.model = build_model(self.stage, self.settings, len(self.classes))
        load_weights(self.model, content["weights"])
        self.model.eval().to(self.device)
        runs.keep_freed()

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
            return cls(_checked(torch.load(path, map_location="cpu", weights_only=True)), device)
        except Exception as error:  # a foreign file may raise anything: UnpicklingError, KeyError, RuntimeError …
            reason = (str(error).splitlines() or [type(error).__name__])[0]
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
            mode: five, grid or random, see `dfd.data.crops.plan`; none takes the checkpoint's.

        Yields:
            One Scored per image, in order.

        Raises:
            ValueError: an image without pixels, crops below 1, or an unknown mode.
        """
        return self.score(self.prepare(image, crops, mode) for image in images)

    @property
    def preprocessing(self) -> tuple:
        """What `prepare` depends on beside its arguments."""
        return self.crop_size, self.equalise_quality, self.crops, self.crop_mode

    def prepare(self, image: Image.Image | Tensor, crops: int | None = None, mode: str | None = None) -> Prepared:
        """Do all that comes before the network, which a thread can do ahead; arguments and errors as in `stream`."""
        if crops is None:
            crops = MAX_CROPS if mode == "grid" else self.crops
        height, width = image.shape[-2:] if isinstance(image, Tensor) else (image.height, image.width)
        size, quality = self.crop_size, self.equalise_quality
        chosen = plan(height, width, size, crops, mode or self.crop_mode)
        if isinstance(image, Image.Image) and size <= min(image.size):  # without torch, whose threads get in the way
            boxes = [(left, top, left + size, top + size) for top, left in chosen.corners]
            pixels = np.stack([np.asarray(image.crop(box).convert("RGB")) for box in boxes])  # (N, S, S, 3)
            pixels = pixels if quality is None else jpeg_pixels(pixels, quality)
            return Prepared(torch.from_numpy(pixels).permute(0, 3, 1, 2), chosen)
        windows = equalise(torch.cat([cut(image, corner, size) for corner in chosen.corners]), quality)
        return Prepared(windows if quality is None else (windows * 255).round().byte(), chosen)

    @torch.inference_mode()
    def score(self, prepared: Iterable[Prepared], batch: int | None = None) -> Iterator[Scored]:
        """What the stage says of images whose crops were cut before, in order.

        Args:
            prepared: by `prepare`.
            batch: crops, of any images, that pass the network at a time; none takes BATCH.
        """
        plans: deque[Plan] = deque()  # of the images that wait for logits

        def windows() -> Iterator[Tensor]:
            for image in prepared:
                plans.append(image.plan)
                yield image.windows

        waiting: list[tuple[Tensor, float | None]] = []
        for crops in _batches(windows(), batch or BATCH):
            waiting.extend(self._of_crops(crops))
            while plans and len(waiting) >= len(plans[0].corners):
                first = plans.popleft()
                yield self._average(waiting[: len(first.corners)], first)
                waiting = waiting[len(first.corners) :]

    @cached_property
    def _network(self) -> nn.Module:
        return fold_batch_norms(self.model, self.crop_size) if self.device.type == "cpu" else self.model

    def _of_crops(self, crops: Tensor) -> list[tuple[Tensor, float | None]]:
        """Logits (classes,) and ood_score of each of (B, 3, S, S) equalised crops in [0, 1]."""
        ood_scores: list = [None] * len(crops)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=uses_bfloat16(self.device)):
            if self.feature_bank is None:
                logits = self._network(crops.to(self.device)).float().cpu()
            else:
                logits, features = (part.float().cpu() for part in self._network.describe(crops.to(self.device)))
                ood_scores = self.feature_bank.distance(features.numpy()).tolist()
        if logits.ndim == 1:
            logits = torch.stack([torch.zeros_like(logits), logits], dim=1)
        return list(zip(logits, ood_scores, strict=True))

    def _average(self, of_crops: list[tuple[Tensor, float | None]], chosen: Plan) -> Scored:
        logits = torch.stack([logits for logits, _ in of_crops])
        mean = logits.mean(0)
        leading = logits[:, 1 if self.stage == "stage1" else mean.argmax()]
        ood_score = None if self.feature_bank is None else float(np.mean([score for _, score in of_crops]))
        crop_std = float(leading.std(correction=0))
        return Scored(mean, len(logits), crop_std, chosen.needed, ood_score, logits, tuple(chosen.corners))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities (…, classes): softmax at the temperature fitted on the validation split."""
        return torch.softmax(logits / self.temperature, dim=-1)


def _batches(windows: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Crops of any images as float (size, 3, S, S) in [0, 1], the last ones fewer; twice that is held at the most."""
    held: list[Tensor] = []
    for crops in windows:
        for part in crops.split(size):
            held.append(part / 255 if part.dtype == torch.uint8 else part)
            if sum(map(len, held)) >= size:
                joined = torch.cat(held)
                yield joined[:size]
                held = [joined[size:]]
    if sum(map(len, held)):
        yield torch.cat(held)


def score_files(
    stages: Sequence[Stage],
    items: Iterable[Any],
    read: Callable[[Any], Image.Image | Tensor] = load_rgb,
    crops: int | None = None,
    mode: str | None = None,
    batch: int | None = None,
) -> Iterator[tuple[Any, list[Scored] | ImageError]]:
    """Score images by several stages; threads read them and cut their crops, once for stages that take the same.

    Args:
        stages: whose answers are wanted.
        items: whatever `read` takes, paths for instance.
        read: gives an image as `Stage.stream` takes it, or raises an ImageError.
        crops, mode: as in `Stage.stream`.
        batch: crops per forward pass; none takes BATCH.

    Yields:
        Each item, in order, with one Scored per stage, or with the error.
    """

    def prepare(item: Any) -> list[Prepared] | ImageError:
        try:
            image = read(item)
        except ImageError as error:
            return error
        prepared: dict[tuple, Prepared] = {}
        for stage in stages:
            if stage.preprocessing not in prepared:
                prepared[stage.preprocessing] = stage.prepare(image, crops, mode)
        return [prepared[stage.preprocessing] for stage in stages]

    per_image = crops or (MAX_CROPS if mode == "grid" else max(stage.crops for stage in stages))
    overlap = stages[0].device.type != "cpu"
    threads = min(8, runs.cores() if overlap else torch.get_num_threads())  # on a CPU no more than the networks have
    for group in prefetch(prepare, items, max(1, 2 * (batch or BATCH) // per_image), threads, overlap):
        readable = [prepared for _, prepared in group if not isinstance(prepared, ImageError)]
        columns = [stage.score([image[i] for image in readable], batch) for i, stage in enumerate(stages)]
        scored = zip(*columns, strict=True)
        for item, prepared in group:
            yield item, prepared if isinstance(prepared, ImageError) else list(next(scored))


def prefetch(
    function: Callable[[Any], Any], items: Iterable[Any], size: int, threads: int, overlap: bool = True
) -> Iterator[list[tuple[Any, Any]]]:
    """Call a function on each item in threads, and give lists of (item, result) in order: 1, 2, 4, … up to `size`.

    The first answer comes at once, and later groups fill a network's batches. With `overlap` the next group is worked
    on while the consumer has one; where both want all cores, turns are faster. Errors are raised in their turn.
    """
    items, wanted = iter(items), 1
    with ThreadPoolExecutor(threads) as pool:

        def submit() -> list:
            return [(item, pool.submit(function, item)) for item in islice(items, wanted)]

        try:
            group = submit()
            while group:
                wanted = min(2 * wanted, size)
                following = submit() if overlap else []
                yield [(item, future.result()) for item, future in group]
                group = following if overlap else submit()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def sample_per_label(table: pd.DataFrame, limit: int, seed: int = 0) -> pd.DataFrame:
    """Draw at most `limit` rows of each label; they stay in the table's order."""
    return table.sample(frac=1, random_state=seed).groupby("label").head(limit).sort_index()


def sample_crops(stage: Stage, table: pd.DataFrame, limit: int, seed: int = 0) -> tuple[Tensor, pd.DataFrame]:
    """Centre crops of at most `limit` images a label, as the stage takes them: padded where small, equalised.

    Args:
        stage: gives the side S and the quality.
        table: rows of the manifest, with its root in attrs.
        limit, seed: of the choice; a label with fewer images gives all that it has.

    Returns:
        (N, 3, S, S) in [0, 1], and the N rows of the table that they come from.

    Raises:
        ValueError: the table has no image.
    """
    rows = sample_per_label(table, limit, seed)
    if rows.empty:
        raise ValueError("the table has no image to take a crop from")
    return equalise(center_crops(stage, table.attrs["root"], rows["path"]), stage.equalise_quality), rows


def center_crops(stage: Stage, root: str, paths: Iterable[str]) -> Tensor:
    """Centre crops as the files have them, padded where small: (N, 3, S, S) in [0, 1]."""
    crops = []
    for path in paths:
        image = load_rgb(f"{root}/{path}")
        (corner,) = plan(image.height, image.width, stage.crop_size, 1).corners
        crops.append(cut(image, corner, stage.crop_size))
    return torch.cat(crops)


@torch.inference_mode()
def extract_features(stage: Stage, crops: Tensor) -> np.ndarray:
    """What stage 2's classifier knows before its last layer, (N, D) float32, without mixed precision.

    Args:
        stage: a stage 2; another raises a ValueError.
        crops: (N, 3, S, S) in [0, 1], equalised already.
    """
    if stage.stage != "stage2":
        raise ValueError(f"features are those of stage 2's classifier, got {stage.stage}")
    batches = [stage.model.describe(chunk.to(stage.device))[1].float().cpu() for chunk in crops.split(BATCH)]
    return torch.cat(batches).numpy()


def fit_feature_bank(stage: Stage, table: pd.DataFrame, path: Path, limit: int = 300, seed: int = 0) -> None:
    """Keep features of training images in a stage 2 and its checkpoint, to tell later what is like none of them.

    Args:
        stage: a stage 2; gets `feature_bank`.
        table: rows of the manifest that it was trained on, with their root in attrs.
        path: its checkpoint.
        limit, seed: of the choice of images, for each generator.
    """
    crops, _ = sample_crops(stage, table, limit, seed)
    bank = torch.from_numpy(FeatureBank.fit(extract_features(stage, crops)).features).half()
    stage.feature_bank = FeatureBank(bank.float().numpy())
    update_checkpoint(path, feature_bank=bank)
