"""The Detector, which gives one Verdict per image from both stages."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import compress, islice
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from dfd.config import CHECKPOINTS, CLIPS, DETECTOR, REAL, SHIPPED, SUMS
from dfd.core import ImageError, as_rgb, load_rgb, runs, sha256_of
from dfd.data.crops import MAX_CROPS
from dfd.inference.decide import answer, decide, fit_threshold
from dfd.inference.likelihood import log10_lr
from dfd.inference.stage import BATCH, Prepared, Scored, Stage
from dfd.models.clip import weights_file


@dataclass(frozen=True)
class Verdict:
    """What both stages say of one image; all None but path and error where the image cannot be read."""

    path: str | None
    is_fake: bool | None = None  # p_fake reaches the threshold, of validation or of sources left out
    verdict: str | None = None  # fake, real, or unsure where either would be wrong too often
    p_fake: float | None = None  # calibrated where half of the images are fake, in [0, 1]
    source: str | None = None  # RealPhotos, a generator's name, or unknown; none of a fake where no stage names one
    p_source: dict[str, float] | None = None  # stage 2's view, given for photos too
    candidates: tuple[str, ...] | None = None  # generators that stay possible, a conformal set; given for photos too
    crops: int | None = None
    crop_std: float | None = None  # spread of stage 1's logit over the crops
    error: str | None = None
    sha256: str | None = None  # of the file, in hexadecimal
    log10_lr: float | None = None  # evidence: how much likelier the score is from a fake than from a photo
    outside: str | None = None  # why an image like this was not measured, and the verdict is unsure


class Detector:
    """The stages of a run folder: is it real, and if not, who made it?

    Stage 1 works alone: a fake's source is the one generator that it learnt from, or none where there were several.
    `Detector.load()("photo.jpg")` gives a Verdict of the detector that ships, `Detector.load("reports/demo")` of a run.
    """

    def __init__(self, stage1: Stage, stage2: Stage | None = None, run: Path | None = None,
            threshold: float | None = None):  # fmt: skip
        self.stage1, self.stage2, self.run = stage1, stage2, run
        self.stages = (stage1, stage2) if stage2 else (stage1,)
        self.threshold = stage1.threshold if threshold is None else threshold  # on p_fake

    @classmethod
    def load(cls, run: str | Path = DETECTOR, device: str | torch.device | None = None) -> Self:
        """Open the stages of a run folder, or those that ship, held against SHA256SUMS; errors are Stage.load's."""
        files = files_of(run := Path(run).expanduser())
        if SUMS in files:
            rows = map(str.split, (run / SUMS).read_text("utf-8", "replace").splitlines())
            sums = [(Path(row[-1].lstrip("*")).name, row[0].lower()) for row in rows if row]  # all of a name count
            for file in (run / name for name in files if name != SUMS):
                if not file.is_file() or {sha256_of(file)} != {own for name, own in sums if name == file.name}:
                    raise ValueError(f"{file} is not the file that {SUMS} names, or gone; restore it, or ship it anew")
        stages = [Stage.load(run / file, device) for file in files[:2]]
        for name, file, stage in zip(CHECKPOINTS, files, stages, strict=False):
            if stage.stage != name:
                raise ValueError(f"{run / file} holds a {stage.stage}, where {name} belongs")
        return cls(*stages, run=run)

    @property
    def files(self) -> dict[str, str]:
        """The SHA-256 of the files that it answers from, by name, CLIP's weights too; none of one without a run."""
        paths = [self.run / name for name in files_of(self.run)] if self.run else []
        is_clip = any(s.settings["backbone"] in CLIPS and s.settings["pretrained"] for s in self.stages)
        return {path.name: sha256_of(path) for path in [*paths, *([weights_file()] if is_clip else [])]}

    def at_fpr(self, fpr: float) -> Self:
        """The same networks, calling at most this share, in [0, 1), of the photos fake that fitted its thresholds."""
        threshold = fit_threshold(*(self.stage1.validation.get(kind, []) for kind in ("photos", "fakes")), fpr=fpr)
        threshold += 1e-9 * (threshold == self.stage1.threshold)  # its own does not count as asked for
        return type(self)(self.stage1, self.stage2, self.run, threshold)

    def __call__(self, source: Any, crops: int | None = None, mode: str | None = None):
        """Judge an image, or several: a Verdict, or a list of them; its path is None for what came as pixels or bytes.

        `source`, and its errors, are as in `as_rgb`; or a list or tuple of those, (B, H, W, 3) array or (B, 3, H, W)
        tensor; `crops` and `mode` are as in `Stage.stream`. Of an ImageError `predict` makes a Verdict with that error.
        """
        if isinstance(source, list | tuple) or getattr(source, "ndim", 0) == 4:
            return [self(image, crops, mode) for image in source]
        name = str(source) if isinstance(source, str | Path) else None
        return self.judge(name, *self.scored(as_rgb(source), crops, mode))

    def predict(self, paths: Iterable[Any], crops: int | None = None, mode: str | None = None,
                report: Callable[[str], None] = print, read: Callable[[Any], Image.Image] = load_rgb,
                batch: int | None = None) -> Iterator[Verdict]:  # fmt: skip
        """Judge files one after another; an unreadable one gives a Verdict with its error.

        `paths` are whatever `read` takes, and their str() the path of the Verdict; `read` gives an upright RGB image or
        raises an ImageError, ahead and in a thread; `crops` and `mode` are as in `Stage.stream`; `report` gets a line
        for each image that is too large for all the crops that the mode asks for; `batch` crops pass a network at once.
        """
        paths = [paths] if isinstance(paths, str | Path) else paths
        with closing(score_files(self.stages, paths, read, crops, mode, batch)) as answers:
            for path, scored in answers:
                if isinstance(scored, ImageError):
                    yield Verdict(str(path), error=str(scored).removeprefix(f"{path}: "))
                    continue
                if limited := next((answer for answer in scored if answer.crops < answer.needed), None):
                    report(f"{path}: scored on {limited.crops} of {limited.needed} crops, the limit for one image")
                yield self.judge(str(path), *scored)

    def scored(self, image: Image.Image | Tensor, crops: int | None, mode: str | None) -> list[Scored]:
        """What each stage says of one image; as in `Stage.stream`."""
        return [*score_files(self.stages, [image], lambda image: image, crops, mode)][0][1]

    def judge(self, path: str | None, first: Scored, second: Scored | None = None) -> Verdict:
        """Put what the stages say of an image into one Verdict."""
        real_or_fake = decide(first.logits[None].numpy(), self.stage1, threshold=self.threshold)
        is_fake, p_fake = bool(real_or_fake.prediction[0] == "fake"), float(real_or_fake.probabilities[0, 1])
        outside, fitted = self.stage1.outside(first), self.stage1.likelihood
        evidence = float(log10_lr(first.logits[1] - first.logits[0], fitted)) if fitted and not outside else None
        verdict = "unsure" if outside else answer(p_fake, self.stage1, self.threshold)
        name = self.stage1.generators[0] if len(self.stage1.generators) == 1 else None
        p_source = candidates = None
        if self.stage2 and second:
            ood_score = None if second.ood_score is None else [second.ood_score]
            generator = decide(second.logits[None].numpy(), self.stage2, ood_score)
            name = str(generator.prediction[0])
            p_source = dict(zip(self.stage2.classes, generator.probabilities[0].tolist(), strict=True))
            candidates = tuple(compress(p_source, generator.candidates[0]))
        return Verdict(path, is_fake, verdict, p_fake, name if is_fake else REAL, p_source, candidates, first.crops,
                       first.crop_std, sha256=first.sha256, log10_lr=evidence, outside=outside)  # fmt: skip


def files_of(run: Path) -> list[str]:
    """The files of a detector, stage 1 first: the checkpoints of a run folder, or what ships, with its sums."""
    if (run / SUMS).exists():
        lines = (run / SUMS).read_text("utf-8", "replace").splitlines()
        names = {Path(name.lstrip("*")).name for line in lines for name in line.split()[1:]}
        return [*SHIPPED.values(), SUMS, *sorted(names - {*SHIPPED.values()})]
    first, second = CHECKPOINTS.values()
    return [first, second] if (run / second).exists() else [first]


def score_files(stages: Sequence[Stage], items: Iterable[Any], read: Callable[[Any], Image.Image | Tensor] = load_rgb,
                crops: int | None = None, mode: str | None = None,
                batch: int | None = None) -> Generator[tuple[Any, Any], None, None]:  # fmt: skip
    """Score images by several stages: each item, in order, with a list of one Scored per stage, or with its ImageError.

    Threads `read` the items, with arguments and errors as in `Detector.predict`, and cut crops, once for like stages.
    """
    takes = [(stage.crop_size, stage.equalise_quality, stage.crops, stage.crop_mode) for stage in stages]
    takers = dict(zip(takes, stages, strict=True))

    def prepare(item: Any) -> list[Prepared] | ImageError:
        try:
            image = read(item)
        except ImageError as error:
            return ImageError(str(error).removeprefix("the given bytes: "))  # without frames, which hold the pixels
        prepared = {key: stage.prepare(image, crops, mode) for key, stage in takers.items()}
        return [prepared[key] for key in takes]

    per_image = crops or (MAX_CROPS if mode == "grid" else max(stage.crops for stage in stages))
    overlap = stages[0].device.type != "cpu"
    threads = min(8, runs.cores() if overlap else torch.get_num_threads())  # on a CPU no more than the networks have
    for group in prefetch(prepare, items, max(1, 2 * (batch or BATCH) // per_image), threads, overlap):
        good = [prepared for _, prepared in group if not isinstance(prepared, ImageError)]
        scored = zip(*(stage.score([image[i] for image in good], batch) for i, stage in enumerate(stages)), strict=True)
        for item, prepared in group:
            yield item, prepared if isinstance(prepared, ImageError) else list(next(scored))


def prefetch(function: Callable, items: Iterable, size: int, threads: int, overlap: bool = True) -> Iterator[list]:
    """Call a function on each item in threads, and give lists of (item, result) in order: 1, 2, 4, … up to `size`.

    The first answer comes at once, and later groups fill a network's batches. With `overlap` the next group is worked
    on while the consumer has one; where both want all cores, turns are faster. Errors are raised in their turn.
    """
    items, wanted, following = iter(items), 1, []

    def submit() -> list:
        return [(item, pool.submit(function, item)) for item in islice(items, wanted)]

    with ThreadPoolExecutor(threads) as pool:
        try:
            while group := following or submit():
                wanted = min(2 * wanted, size)
                following = submit() if overlap else []
                yield [(item, future.result()) for item, future in group]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
