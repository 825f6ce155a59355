"""Checkpoints on disk: plain tensors and values, written whole or not at all, and the network that one describes."""

from __future__ import annotations

import errno
import math
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from dfd.core import runs
from dfd.core.images import load_rgb
from dfd.core.io import atomic_write
from dfd.data.crops import MAX_CROPS, Corner, Plan, cut, equalise, plan
from dfd.degrade.operators import jpeg_pixels
from dfd.inference import openset
from dfd.inference.openset import FeatureBank
from dfd.models.backbones import fold_batch_norms
from dfd.models.classifiers import Attribution, RealFakeClassifier

STAGES = ("stage1", "stage2")
NEEDED = "stage classes config weights preprocessing crops threshold temperature history manifest_hash key".split()


def build_model(stage: str, settings: dict[str, Any], outputs: int, pretrained: bool = False) -> nn.Module:
    """The network of a stage from the plain values that its config, or its checkpoint, holds."""
    if stage == "stage1":
        stem_stride = settings.get("stem_stride", 0)
        return RealFakeClassifier(settings["backbone"], pretrained, settings["representation"], stem_stride)
    extractor = settings.get("extractor", "unet")
    size = settings["unet_width"], settings["residual_bound"]
    return Attribution(settings["backbone"], outputs, *size, pretrained, extractor)


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint whole or not at all, so that a killed run leaves the previous file; see atomic_write.

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


def described(content: Any) -> dict[str, Any]:
    """Check what was read from a file that anybody may have written, before a network is built from it.

    Raises:
        ValueError: it is something else, a checkpoint of another version, or its values make no sense.
    """
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"it holds a {type(content).__name__}, not the entries of a stage")
    if "networks" in content:
        raise ValueError("it is the state of a training that goes on; the finished stage is the file beside it")
    if missing := [key for key in NEEDED if key not in content]:
        raise ValueError(f"it lacks {', '.join(missing)}; weights alone, or written by another version of dfd")
    if content["stage"] not in STAGES:
        raise ValueError(f"it is of the stage {str(content['stage'])[:40]!r}, and this version knows stage1 and stage2")
    side, classes = content["preprocessing"]["crop_size"], content["classes"]
    sane = {
        "crop_size": isinstance(side, int) and 8 <= side <= 2048,
        "classes": 2 <= len(classes) <= 1000 and all(isinstance(name, str) and len(name) <= 200 for name in classes),
        "crops": isinstance(content["crops"], int) and content["crops"] >= 1,
        "temperature": 0 < content["temperature"] < math.inf,
        "threshold": math.isfinite(content["threshold"]),
        "unet_width": 1 <= content["config"].get("unet_width", 1) <= 512,
    }
    if wrong := [name for name, good in sane.items() if not good]:
        raise ValueError(f"its {' and '.join(wrong)} cannot be right")
    return content


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
    ood_score: float | None = None  # stage 2: mean distance of the crops to the training images; see FeatureBank
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
        bank = content.get("feature_bank")  # stage 2: features of training images
        self.feature_bank = None if bank is None else FeatureBank(bank.float().numpy())
        self.ood_threshold = content.get("ood_threshold")  # stage 2: from there on a fake's generator is unknown
        self.conformal_quantile = content.get("conformal_quantile", 1.0)  # stage 2: of the sets of possible names
        self.coverage = content.get("coverage")  # stage 2: what these sets promise
        self.history, self.manifest_hash, self.key = content["history"], content["manifest_hash"], content["key"]
        self.model = build_model(self.stage, self.settings, len(self.classes))
        self.model.load_state_dict(content["weights"])
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
            mode: five, grid or random, see `dfd.data.crops.plan`; none takes the checkpoint's.

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
        return fold_batch_norms(self.model, self.crop_size) if self.device.type == "cpu" else self.model

    def _answers(self, batch: Tensor) -> list[tuple[Tensor, float | None]]:
        """Logits (classes,) and ood_score of each of (B, 3, S, S) equalised crops in [0, 1]."""
        batch, strange = batch.to(self.device), [None] * len(batch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=uses_bfloat16(self.device)):
            if self.feature_bank is None:
                out = self._quick(batch).float().cpu()
            else:
                out, features = (part.float().cpu() for part in self._quick.describe(batch))
                strange = self.feature_bank.distance(features.numpy()).tolist()
        logits = torch.stack([torch.zeros_like(out), out], dim=1) if out.ndim == 1 else out
        return list(zip(logits, strange, strict=True))

    def _average(self, answers: list[tuple[Tensor, float | None]], plan: Plan) -> Scored:
        """Average what was said of one image's crops."""
        logits, strange = torch.stack([one for one, _ in answers]), [one for _, one in answers]
        mean = logits.mean(0)
        lead = logits[:, 1 if self.stage == "stage1" else mean.argmax()]
        ood_score = None if self.feature_bank is None else float(np.mean(strange))
        spread = float(lead.std(correction=0))
        return Scored(mean, len(logits), spread, plan.needed, ood_score, logits, tuple(plan.corners))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities (…, classes): softmax at the temperature fitted on the validation split."""
        return torch.softmax(logits / self.temperature, dim=-1)

    def source(self, scored: Scored) -> str:
        """Stage 2's answer: a generator's name, or unknown where no training image is near."""
        if self.ood_threshold is not None and scored.ood_score > self.ood_threshold:
            return UNKNOWN
        return self.classes[int(scored.logits.argmax())]


Item, Result = TypeVar("Item"), TypeVar("Result")
PATIENCE = 0.5  # seconds that a group is waited for; what is ready then is given


def in_groups(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    size: int,
    threads: int = 1,
    patience: float = PATIENCE,
    meanwhile: bool = True,
) -> Iterator[list[tuple[Item, Result]]]:
    """Call a function on each item in threads, and give the results in order, in groups that a network likes.

    The first group holds one item, so that the first answer comes at once; each later one up to twice as many as the
    one before, so that small groups, which waste the network's time, are few.

    Args:
        function: anything that lets go of the interpreter now and then, as Pillow does while it decodes.
        items: taken when their turn comes; two groups are taken at the utmost.
        size: of the largest groups.
        threads: that call the function.
        patience: seconds that a group is waited for; what is ready then is given, or else the next result alone.
        meanwhile: work on later groups while the consumer has one. Where both want all cores, turns are faster: torch
            divides its work evenly, and a thread that takes a core for a while holds the others up.

    Yields:
        Lists of (item, result), none of them empty.

    Raises:
        Whatever the function raises, when its item's turn comes.
    """
    items, waiting, wanted = iter(items), deque[tuple[Item, Future]](), 1
    with ThreadPoolExecutor(threads) as pool:
        try:
            while True:
                room = max((2 * size if meanwhile else wanted) - len(waiting), 0)
                waiting.extend((item, pool.submit(function, item)) for item in islice(items, room))
                if not waiting:
                    return
                wait([future for _, future in islice(waiting, wanted)], patience)
                group = [(waiting[0][0], waiting.popleft()[1].result())]
                while waiting and len(group) < wanted and waiting[0][1].done():
                    item, future = waiting.popleft()
                    group.append((item, future.result()))
                yield group
                wanted = min(2 * wanted, size)
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
        raise ValueError("the table has no image to take a fingerprint from")
    return equalise(center_crops(stage, table.attrs["root"], rows["path"]), stage.equalise_quality), rows


@torch.inference_mode()
def extract_features(stage: Stage, crops: Tensor) -> np.ndarray:
    """What the classifier knows before its last layer, in float32 and without mixed precision.

    Args:
        stage: a stage 2.
        crops: (N, 3, S, S) in [0, 1], equalised already.

    Returns:
        (N, D); the last layer of the classifier makes the logits from it.

    Raises:
        ValueError: the stage is a stage 1.
    """
    if stage.stage != "stage2":
        raise ValueError(f"features are those of stage 2's classifier, got {stage.stage}")
    found = [stage.model.describe(chunk.to(stage.device))[1].float().cpu() for chunk in crops.split(BATCH)]
    return torch.cat(found).numpy()


def fit_feature_bank(stage: Stage, table: pd.DataFrame, path: Path, limit: int = 300, seed: int = 0) -> None:
    """Keep features of training images in a stage 2 and its checkpoint, to tell later what is like none of them.

    Args:
        stage: a stage 2; gets `feature_bank`.
        table: rows of the manifest that it was trained on, with their root in attrs.
        path: its checkpoint.
        limit, seed: of the choice of images, for each generator.
    """
    crops, _ = sample_crops(stage, table, limit, seed)
    bank = torch.from_numpy(openset.FeatureBank.fit(extract_features(stage, crops)).bank).half()
    stage.feature_bank = openset.FeatureBank(bank.float().numpy())
    update_checkpoint(path, feature_bank=bank)


def center_crops(stage: Stage, root: str, paths: Iterable[str]) -> Tensor:
    """Centre crops as the files have them: (N, 3, S, S) in [0, 1]."""
    found = []
    for path in paths:
        image = load_rgb(f"{root}/{path}")
        (corner,) = plan(image.height, image.width, stage.crop_size, 1).corners
        found.append(cut(image, corner, stage.crop_size))
    return torch.cat(found)
