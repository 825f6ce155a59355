"""Training against its networks alone: the same passes forward and backward, on random pixels, and nothing else."""

from __future__ import annotations

import contextlib
import io
import itertools
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import torch

from benchmarks.measure import Row, against, in_turns
from dfd import config
from dfd.data import manifest
from dfd.inference.files import build_model
from dfd.inference.stage import uses_bfloat16
from dfd.train import bank, fit, stage1, stage2
from dfd.train.loop import Trainer

WARM, TIMED = 8, 16  # batches: one cycle of the adversaries to warm up, two that count
LOADED = 8  # batches


class _Enough(Exception):
    """As many batches as are timed."""


class Timed(Trainer):
    """A trainer that stops after some batches and knows when each began."""

    def batches(self) -> Iterator:
        began = []
        for step, batch in self.source():
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            began.append(time.perf_counter())
            if len(began) > WARM + TIMED:
                Timed.seconds = began[-1] - began[WARM]
                raise _Enough
            yield step, batch

    def source(self) -> Iterator:
        return super().batches()


class Loaded(Timed):
    """Training as it is, on LOADED batches that are there already."""

    def source(self) -> Iterator:
        self.losses["train"] = [0.0]  # which the bar shows the mean of
        batches = [batch for _, batch in itertools.islice(super().source(), LOADED)]
        yield from enumerate(itertools.cycle(batches))


class Loaders(Timed):
    """The batches alone, with nothing learnt from them."""

    def batches(self) -> Iterator:
        self.losses["train"] = [0.0]
        for _ in super().batches():
            pass
        yield


class Bare(Timed):
    """The same passes of the same networks on random pixels: no files, degradations, optimisers or averages."""

    def source(self) -> Iterator:
        for network in self.networks.values():
            network.module.train()
        size, side = self.cfg.batch_size, self.cfg.crop_size
        pixels = torch.rand(3, size, 3, side, side, device=self.device)
        targets = torch.arange(size, device=self.device) % len(self.classes)
        for step in itertools.count():
            if self.stage == "stage1":
                yield step, (pixels[0], targets.float())
            else:
                yield step, {"view1": pixels[0], "view2": pixels[1], "carrier": pixels[2], "source": targets}

    def step(self, name: str, losses: torch.Tensor | dict[str, torch.Tensor]) -> None:
        if isinstance(losses, dict):
            losses = sum(getattr(self.cfg, f"{part}_weight", 1.0) * loss for part, loss in losses.items())
        losses.backward(inputs=self.networks[name].parameters)
        for parameter in self.networks[name].parameters:
            parameter.grad = None


def seconds(stage: str, table: pd.DataFrame, kind: type[Timed], profile: str = "quick", **settings) -> float:
    """Seconds of TIMED batches of a stage, after WARM others.

    Args:
        stage: stage1 or stage2.
        table: the manifest of a data folder.
        kind: Timed for training as it is, Bare for its networks alone.
        profile: of the parameters.
        settings: parameters other than the profile's.
    """
    module, stem = {"stage1": (stage1, "01_stage1_real_fake"), "stage2": (stage2, "02_stage2_attribution")}[stage]
    with tempfile.TemporaryDirectory() as out, contextlib.ExitStack() as stack:
        given = {**config.profile(profile, stem), "data": table.attrs["root"], "out": out, **settings}
        cfg = config.NOTEBOOKS[stem](**given)
        cfg = cfg.model_copy(update={"images_per_epoch": (WARM + TIMED + 4) * cfg.batch_size})  # 4: not loaded ahead
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(patch.object(module, "Trainer", kind))
        if kind is Bare:  # a codec is no network
            stack.enter_context(patch.object(stage1, "equalise", lambda crops, quality: crops))  # of both stages
        stack.enter_context(contextlib.suppress(_Enough))
        fit(table, cfg)
    return Timed.seconds


def rows(folder: Path, repeats: int) -> Iterator[Row]:
    """Training as profile `quick` does it, a stage each, and its networks alone, in turns; then what takes the rest."""
    table = manifest.scan(folder, progress=False)
    for stage in ("stage1", "stage2"):
        calls = [partial(seconds, stage, table, kind) for kind in (Timed, Bare, Loaded, Loaders)]
        mine, bare, loaded, loaders = in_turns(calls, max(1, repeats - 1))
        what = f"{stage}: {TIMED} steps of training, profile quick, bare: its passes alone"
        yield Row(what, bare / mine, 0.90, seconds=mine, bare_seconds=bare)
        yield Row(f"{stage}: the same on batches that are there already", bare / loaded, None, "of bare", loaded, bare)
        yield Row(f"{stage}: its loaders alone, {TIMED} batches", loaders, unit="s")
    images = table.groupby("label").head(12)
    images.attrs = table.attrs
    yield of_bank(images, repeats)


def of_bank(table: pd.DataFrame, repeats: int, **settings) -> Row:
    """CLIP's feature bank against the backbone alone, on as many random crops in the same batches."""
    cfg = config.Stage1(**{**config.profile("clip", "01_stage1_real_fake"), **settings})
    backbone = build_model("stage1", cfg.model_dump(), 2, cfg.pretrained).backbone
    views = len(bank.CONDITIONS) + cfg.random_views

    def built() -> None:
        backbone.trunk.cached.clear()
        with tempfile.TemporaryDirectory() as out, contextlib.redirect_stderr(io.StringIO()):
            bank.build(table, cfg.model_copy(update={"out": out}), backbone)

    @torch.inference_mode()
    def bare() -> None:
        for start in range(0, len(table), bank.IMAGES):
            count = min(bank.IMAGES, len(table) - start)
            crops = torch.rand(count * views, 3, cfg.crop_size, cfg.crop_size).to(backbone.head.weight.device)
            with torch.autocast(crops.device.type, torch.bfloat16, enabled=uses_bfloat16(crops.device)):
                backbone.forward_features(crops)

    what = f"feature bank of CLIP, {len(table)} images of {views} views, bare: the backbone alone"
    return against(what, built, bare, max(1, repeats - 1), 0.95)
