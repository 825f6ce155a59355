"""Inference: the Detector, which gives one Verdict per image from both stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dfd.config import CHECKPOINTS
from dfd.core.images import ImageError, Source, as_rgb, is_batch, load_rgb
from dfd.core.runs import cores
from dfd.data.crops import MAX_CROPS
from dfd.inference.decide import prediction_sets
from dfd.inference.stage import BATCH, Prepared, Scored, Stage, in_groups, prepared

__all__ = [  # what notebooks and users need of the stages stands here too
    "Detector", "Verdict", "Stage", "Scored", "CHECKPOINTS", ]  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What both stages say of one image; all None but path and error where the image cannot be read."""

    path: str | None
    is_fake: bool | None = None  # p_fake reaches the threshold chosen on validation
    p_fake: float | None = None  # calibrated, in [0, 1]
    source: str | None = None  # RealPhotos, the generator that stage 2 names, or unknown
    p_source: dict[str, float] | None = None  # stage 2's view, given for photos too
    candidates: tuple[str, ...] | None = None  # generators that stay possible, a conformal set; given for photos too
    crops: int | None = None
    crop_std: float | None = None  # spread of stage 1's logit over the crops
    error: str | None = None

    def asdict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class Detector:
    """Both stages of a run folder: is it real, and if not, who made it?

    `Detector.load("reports/demo")("photo.jpg")` gives a Verdict.
    """

    def __init__(self, stage1: Stage, stage2: Stage, run: Path | None = None, threshold: float | None = None):
        self.stage1, self.stage2, self.run = stage1, stage2, run
        self.threshold = stage1.threshold if threshold is None else threshold  # on p_fake

    @classmethod
    def load(cls, run: str | Path, device: torch.device | None = None) -> Detector:
        """Open both checkpoints of a run folder; see Stage.load for the errors.

        Raises:
            ValueError: also where the folder's checkpoints stand under each other's names.
        """
        stages = {name: Stage.load(Path(run) / file, device) for name, file in CHECKPOINTS.items()}
        for name, stage in stages.items():
            if stage.stage != name:
                raise ValueError(f"{Path(run) / CHECKPOINTS[name]} holds a {stage.stage}, where {name} belongs")
        return cls(*stages.values(), run=Path(run))

    def at_fpr(self, fpr: float) -> Detector:
        """The same networks with the threshold that calls at most this share of the validation photos generated.

        Raises:
            ValueError: fpr outside [0, 1), or a checkpoint without what is needed; the text says what has it.
        """
        from dfd.inference.decide import threshold_at

        threshold = threshold_at(fpr, self.stage1.validation, self.stage1.operating_points)
        return Detector(self.stage1, self.stage2, self.run, threshold)

    def __call__(self, source: Source | Sequence[Source], crops: int | None = None, mode: str | None = None):
        """Judge an image, or several.

        Args:
            source: a path, the bytes of a file, a PIL image, (H, W, 3) or (H, W) uint8 array, or (3, H, W) tensor in
                [0, 1], RGB; or a list or tuple of those, (B, H, W, 3) array or (B, 3, H, W) tensor.
            crops, mode: as in `Stage.stream`.

        Returns:
            A Verdict, or a list of one for each; path is None for what came as pixels or bytes.

        Raises:
            ImageError: a file that cannot be used, and why. `predict` gives a Verdict with the error instead.
            ValueError: pixels of another shape, type or range.
            TypeError: nothing of the above.
        """
        if is_batch(source):
            return [self(one, crops, mode) for one in source]
        image, name = as_rgb(source), str(source) if isinstance(source, str | Path) else None
        return self.judge(name, *self.scored(image, crops, mode))

    def predict(
        self,
        paths: Iterable[Any],
        crops: int | None = None,
        mode: str | None = None,
        report: Callable[[str], None] = print,
        read: Callable[[Any], Image.Image] = load_rgb,
        batch: int | None = None,
    ) -> Iterator[Verdict]:
        """Judge files one after another.

        Args:
            paths: image files, or whatever `read` takes; its str() is the path of the Verdict.
            crops, mode: as in `Stage.stream`.
            report: gets a line for each image that is too large for all the crops that the mode asks for.
            read: gives an upright RGB image, or raises an ImageError; called ahead, in a thread.
            batch: crops per forward pass; none takes BATCH.

        Yields:
            One Verdict per path, in order; an unreadable file gives a Verdict with its error.
        """
        stages = self.stage1, self.stage2

        def prepare(path: Any) -> list[Prepared] | str:
            try:
                image = read(path)
            except ImageError as error:
                return str(error).removeprefix(f"{path}: ")
            return prepared(stages, image, crops, mode)

        per_image = crops or (MAX_CROPS if mode == "grid" else max(stage.crops for stage in stages))
        meanwhile, size = self.stage1.device.type != "cpu", max(1, 2 * (batch or BATCH) // per_image)
        threads = min(8, cores() if meanwhile else torch.get_num_threads())  # no more than the networks have
        with closing(in_groups(prepare, paths, size, threads, meanwhile=meanwhile)) as groups:
            for group in groups:
                ready = [found for _, found in group if not isinstance(found, str)]
                each = (stage.score([one[i] for one in ready], batch) for i, stage in enumerate(stages))
                scored = zip(*each, strict=True)
                for path, found in group:
                    if isinstance(found, str):
                        yield Verdict(str(path), error=found)
                        continue
                    one, two = next(scored)
                    if short := next((part for part in (one, two) if part.crops < part.needed), None):
                        report(f"{path}: scored on {short.crops} of {short.needed} crops, the limit for one image")
                    yield self.judge(str(path), one, two)

    def scored(self, image: Image.Image | Tensor, crops: int | None, mode: str | None) -> tuple[Scored, Scored]:
        """What each stage says of one image; as in `Stage.stream`."""
        stages = self.stage1, self.stage2
        ready = prepared(stages, image, crops, mode)
        one, two = (next(stage.score([cut])) for stage, cut in zip(stages, ready, strict=True))
        return one, two

    def judge(self, path: str | None, one: Scored, two: Scored) -> Verdict:
        """Put what both stages say of an image into one Verdict."""
        p_fake = float(self.stage1.probabilities(one.logits)[1])
        p_source = self.stage2.probabilities(two.logits).tolist()
        named = dict(zip(self.stage2.classes, p_source, strict=True))
        is_fake = p_fake >= self.threshold
        source = self.stage2.source(two) if is_fake else "RealPhotos"
        possible = prediction_sets(np.array([p_source]), self.stage2.conformal_quantile)[0]
        candidates = tuple(name for name, kept in zip(named, possible, strict=True) if kept)
        return Verdict(path, is_fake, p_fake, source, named, candidates, one.crops, one.spread)


if __name__ == "__main__":  # the seed's spelling: python -m dfd.inference.detector --image photo.jpg
    import sys

    from dfd.__main__ import main

    main(["predict", *(word.removeprefix("--image=") for word in sys.argv[1:] if word != "--image")])
