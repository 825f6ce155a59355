"""A trained stage: from a checkpoint on disk to logits of images of any size."""

import pickle
from collections.abc import Iterable, Iterator
from itertools import chain, islice, tee
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dfd.config import ADAPTER, CLIPS
from dfd.core.images import FLAT, as_rgb, load_rgb
from dfd.core.io import sha256_of
from dfd.data.crops import MAX_CROPS, Corner, Plan, cut, equalise, pixels_of, plan, windows_of
from dfd.degrade.operators import as_float, check_images, recode
from dfd.inference.files import build_model, checked, read_content, update_checkpoint
from dfd.inference.openset import FeatureBank, Subspace
from dfd.models.clip import WeightsError
from dfd.models.networks import describe

BATCH = 64  # crops per forward pass
TOLERANCE = 5  # of JPEG quality, below the lowest that was measured


def uses_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 by itself; on others mixed precision would be slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported())


class Scored(NamedTuple):
    """What a stage says of one image."""

    logits: Tensor  # (classes,), averaged over the crops
    crops: int
    crop_std: float  # standard deviation over the crops of the leading logit
    needed: int  # crops that the mode asks for: above crops where the image is too large for them all
    crop_logits: Tensor  # (crops, classes); the first is the centre in mode five
    corners: tuple[Corner, ...]  # where each crop was cut
    ood_score: float | None = None  # how unlike the training images, by its feature bank or its classes
    quality: int | None = None  # the file's JPEG quality, libjpeg's; none for others
    sha256: str | None = None  # of the file, in hexadecimal
    side: int | None = None  # the image's shorter one, pixels
    is_flat: bool = False  # whether the crops show one colour


class Prepared(NamedTuple):
    """The crops of one image, ready for a stage."""

    windows: Tensor  # (N, 3, S, S), equalised: uint8, or float in [0, 1] where a tensor meets no equalising JPEG
    plan: Plan
    quality: int | None = None
    sha256: str | None = None
    side: int | None = None


class Stage:
    """A trained stage with its own preprocessing: takes images of any size, gives logits.

    Stage 1 gives two logits, (0, z), so that softmax and sigmoid agree; stage 2 one per generator.
    """

    def __init__(self, content: dict[str, Any], device: str | torch.device | None = None):
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.stage, self.classes, self.settings = content["stage"], content["classes"], content["config"]
        self.crop_size, self.equalise_quality = map(content["preprocessing"].get, ("crop_size", "equalise_quality"))
        self.crops, self.crop_mode = content["crops"], content.get("crop_mode", "five")
        self.threshold, self.temperature = content["threshold"], content["temperature"]
        self.operating_points = content.get("operating_points", {})  # stage 1: name -> threshold, fitted on validation
        self.band = content.get("band")  # stage 1: of p_fake, within which the answer is unsure
        self.is_held_out = content.get("is_held_out", False)  # decisions were fitted on sources that no head saw
        self.validation = content.get("validation", {})  # stage 1: photos, fakes -> their sorted p_fake
        self.likelihood = content.get("likelihood")  # stage 1: its logit as evidence, see dfd.inference.likelihood
        self.rates = content.get("rates", [])  # stage 1: how often wrong, by size and quality, see there
        self.feature_bank: Subspace | FeatureBank | None = None
        if (bank := content.get("feature_bank")) is not None:
            rows = bank.float().numpy()  # of training images; in stage 1 their mean and basis
            self.feature_bank = Subspace(rows[0], rows[1:]) if self.stage == "stage1" else FeatureBank(rows)
        self.smallest = content.get("smallest", 0)  # stage 1: pixels a side, below which it learnt from hardly a photo
        self.ood_threshold = content.get("ood_threshold")  # above it a fake's generator is unknown, or an image unlike
        self.neighbours = content.get("neighbours")  # stage 1: where training images lie in the Subspace, (M, K)
        self.neighbour_names = content.get("neighbour_names", [])  # of these images: label, source, path
        self.conformal_quantile = content.get("conformal_quantile", 1.0)  # stage 2: of the sets of possible names
        self.coverage = content.get("coverage")  # stage 2: what these sets promise
        self.generators = content.get("generators", [])  # that it learnt from
        self.key, self.manifest_hash = content["key"], content["manifest_hash"]  # of what it was trained from
        if (adapter := content.get("adapter")) and adapter != sha256_of(ADAPTER):
            raise ValueError(f"its head learnt on another adapter of CLIP than {ADAPTER.name} is now; train it again")
        self.model: Any = build_model(self.stage, self.settings, len(self.classes))
        try:
            self.model.load_state_dict(content["weights"])
        except RuntimeError as error:  # its first line names the class alone
            reason = str(error).splitlines()[1].strip()[:200]
            raise ValueError(f"its weights do not fit the network that it names (train again): {reason}") from error
        self.model.eval().to(self.device)
        self.backbone: Any = getattr(self.model, "classifier", self.model).backbone  # the timm network inside

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device | None = None) -> Self:
        """Open a checkpoint; a FileNotFoundError says how to train one, a ValueError why the file is none."""
        path, _ = Path(path), torch.empty(0, device=device)  # which raises where there is no such device
        if not path.exists():
            remedy = f"`make demo` or `python -m dfd run --data FOLDER --out {path.parent.resolve()}`"
            raise FileNotFoundError(f"no trained model at {path}; train one with {remedy}")
        try:
            return cls(checked(read_content(path)), device)
        except Exception as error:  # a foreign file may raise anything: UnpicklingError, KeyError, RuntimeError …
            is_of_another = getattr(error, "filename", None) not in (None, str(path))
            if is_of_another or isinstance(error, WeightsError | torch.OutOfMemoryError):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            if isinstance(error, pickle.UnpicklingError | EOFError) or "weights_only" in reason:  # torch's is unsafe
                reason = "it is cut, a Git LFS pointer (`git lfs pull`), or holds more than tensors and plain values"
            elif isinstance(error, OSError):
                reason = f"it is cut short, or cannot be read ({reason}); copy it again, or train again"
            raise ValueError(f"{path} is not a dfd checkpoint: {reason}") from error

    def stream(self, images: Iterable[Image.Image | Tensor], crops: int | None = None,
            mode: str | None = None) -> Iterator[Scored]:  # fmt: skip
        """Score PIL images, or (1, 3, H, W) tensors, uint8 or in [0, 1], one after another, crops batched together.

        `crops` is their number per image at most, MAX_CROPS at the utmost; none takes the checkpoint's or, for a grid
        that this call asks for, as many as cover the image. `mode` is five, grid or random, see `dfd.data.crops.plan`;
        none takes the checkpoint's. An image without pixels, crops below 1 and an unknown mode are a ValueError.
        """
        return self.score(self.prepare(image, crops, mode) for image in images)

    def prepare(self, image: Image.Image | Tensor, crops: int | None = None, mode: str | None = None) -> Prepared:
        """Do all that comes before the network, which a thread can do ahead; arguments and errors as in `stream`."""
        count = crops if crops is not None else MAX_CROPS if mode == "grid" else self.crops
        if isinstance(image, Tensor):
            check_images(image := as_float(image))
            if len(image) > 1:
                raise ValueError(f"one image at a time, of shape (1, 3, H, W); got {(*image.shape,)}")
        elif image.mode != "RGB":
            image = as_rgb(image)
        return self.cut_out(image, windows_of(image, self.crop_size, count, mode or self.crop_mode))

    def cut_out(self, image: Image.Image | Tensor, chosen: Plan) -> Prepared:
        """The windows of a plan, ready for the network."""
        size, quality = self.crop_size, self.equalise_quality
        side = min(image.shape[-2:] if isinstance(image, Tensor) else image.size)
        known: Any = *map(getattr(image, "info", {}).get, ("jpeg_quality", "sha256")), side  # None of mere pixels
        if isinstance(image, Image.Image) and size <= side:
            pixels = np.stack([pixels_of(image, corner, size) for corner in chosen.corners])  # (N, S, S, 3)
            pixels = pixels if quality is None else recode(pixels, "JPEG", quality)
            return Prepared(torch.from_numpy(pixels).permute(0, 3, 1, 2), chosen, *known)
        windows = equalise(torch.cat([cut(image, corner, size) for corner in chosen.corners]), quality)
        return Prepared(windows if quality is None else (windows * 255).round().byte(), chosen, *known)

    @torch.inference_mode()
    def score(self, prepared: Iterable[Prepared], batch: int | None = None) -> Iterator[Scored]:
        """What the stage says of prepared images, in order; `batch` crops, or BATCH, pass the network at a time."""
        images, sources = tee(prepared)
        crops = (crop for image in sources for crop in image.windows)  # uint8: floats that wait fragment the heap
        batches = iter(lambda: list(islice(crops, batch or BATCH)), [])
        of_crops = chain.from_iterable(self._of_crops(torch.stack([*map(as_float, some)])) for some in batches)
        for image in images:
            answers = list(islice(of_crops, len(image.windows)))
            logits = torch.stack([logits for logits, _ in answers])
            mean = logits.mean(0)
            crop_std = float(logits[:, 1 if self.stage == "stage1" else mean.argmax()].std(correction=0))
            ood_score = None if self.feature_bank is None else float(np.mean([distance for _, distance in answers]))
            if self.stage == "stage2" and self.settings["backbone"] in CLIPS:
                ood_score = -float(mean.max())  # a linear discriminant's: how little speaks for any class
            flat, (corners, needed) = bool(as_float(image.windows).std((0, 2, 3)).max() < FLAT / 255), image.plan
            yield Scored(mean, len(logits), crop_std, needed, logits, tuple(corners), ood_score, *image[2:], flat)

    def outside(self, scored: Scored) -> str | None:
        """Why no number holds for an image that stage 1 scored, in words; None where images like it were measured."""
        if self.ood_threshold is not None and (scored.ood_score or 0) > self.ood_threshold:
            return "it is unlike all images that the detector learnt from"
        if scored.side is not None and scored.side < self.smallest:
            return f"its shorter side has {scored.side} px, and hardly a photo below {self.smallest} was learnt from"
        if scored.is_flat:
            return "its crops show nothing, for their brightness hardly varies"
        lowest = min((bin["quality"][0] for bin in self.rates[:-1]), default=0) if self.is_held_out else 0
        if scored.quality is not None and scored.quality < lowest - TOLERANCE:
            return f"its JPEG quality is about {scored.quality}, and nothing below {lowest} was measured"
        return None

    def _of_crops(self, crops: Tensor) -> list[tuple[Tensor, Any]]:
        """Logits (classes,) and ood_score of each of (B, 3, S, S) equalised crops in [0, 1]."""
        ood_scores: list = [None] * len(crops)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=uses_bfloat16(self.device)):
            if self.feature_bank is None:
                logits = self.model(crops.to(self.device)).float().cpu()
            else:
                logits, features = (part.float().cpu() for part in describe(self.model, crops.to(self.device)))
                ood_scores = self.feature_bank.distance(features.numpy()).tolist()
        if logits.ndim == 1:
            logits = torch.stack([torch.zeros_like(logits), logits], dim=1)
        return list(zip(logits, ood_scores, strict=True))


def sample_per_label(table: pd.DataFrame, limit: int, seed: int = 0) -> pd.DataFrame:
    """Draw at most `limit` rows of each label; they stay in the table's order."""
    return table.sample(frac=1, random_state=seed).groupby("label").head(limit).sort_index()


def sample_crops(stage: Stage, table: pd.DataFrame, limit: int, seed: int = 0) -> tuple[Tensor, pd.DataFrame]:
    """Equalised centre crops (N, 3, S, S) in [0, 1] of at most `limit` images a label, and their rows of the table."""
    rows = sample_per_label(table, limit, seed)
    return equalise(center_crops(table, rows["path"], stage.crop_size), stage.equalise_quality), rows


def center_crops(table: pd.DataFrame, paths: Iterable[str], size: int) -> Tensor:
    """Centre crops of images of a manifest, padded where small: (N, 3, S, S) in [0, 1]."""
    images = (load_rgb(f"{table.attrs['root']}/{path}") for path in paths)
    return torch.cat([cut(image, plan(image.height, image.width, size, 1).corners[0], size) for image in images])


@torch.inference_mode()
def extract_features(stage: Stage, crops: Tensor) -> np.ndarray:
    """The input of either stage's last layer, (N, D) float32, of equalised (N, 3, S, S) in [0, 1]."""
    parts = [describe(stage.model, chunk.to(stage.device))[1].float().cpu() for chunk in as_float(crops).split(BATCH)]
    return torch.cat(parts).numpy()


def fit_feature_bank(stage: Stage, table: pd.DataFrame, path: Path, limit: int = 300, seed: int = 0) -> None:
    """Keep features of at most `limit` training images a generator, of length 1, in a checkpoint, for `ood_score`."""
    crops, _ = sample_crops(stage, table, limit, seed)
    update_checkpoint(path, feature_bank=F.normalize(torch.from_numpy(extract_features(stage, crops))).half())
