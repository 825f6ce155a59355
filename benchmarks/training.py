"""Training against its networks alone: the same passes forward and backward, on random pixels, and nothing else."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import torch
from dfd.train.learners import MODEL

from benchmarks.measure import Row, in_turns
from dfd import config
from dfd.data import manifest
from dfd.train import loop, stage2
from dfd.train import stage2 as disentangling
from dfd.train import stage2 as training
from dfd.train.loop import Session

WARM, TIMED = 8, 16  # batches: one cycle of the adversaries to warm up, two that count


class _Enough(Exception):
    """As many batches as are timed."""


class Timed(Session):
    """A session that stops after some batches and knows when each began."""

    def batches(self, data, table, binary, *rest, **options) -> Iterator:
        self.began = []
        for batch in self.source(data, table, binary, *rest, **options):
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            self.began.append(time.perf_counter())
            if len(self.began) > WARM + TIMED:
                Timed.seconds = self.began[-1] - self.began[WARM]
                raise _Enough
            yield batch

    def source(self, *given, **options) -> Iterator:
        return super().batches(*given, **options)


class Bare(Timed):
    """The same passes of the same networks on random pixels: no files, degradations, optimisers or averages."""

    def source(self, data, table, binary, **_) -> Iterator:
        for network in self.networks.values():
            network.train()
        size, side = self.cfg.batch_size, self.cfg.crop_size
        pixels = torch.rand(3, size, 3, side, side, device=self.device)
        targets = torch.arange(size, device=self.device) % (2 if binary else len(self.classes))
        while True:
            self.turn = len(self.began)
            if binary:
                yield pixels[0], targets.float()
            else:
                yield {"view1": pixels[0], "view2": pixels[1], "carrier": pixels[2], "source": targets}

    def step(self, loss, name=MODEL) -> None:
        loss.backward(inputs=list(self.networks[name].parameters()))
        for parameter in self.networks[name].parameters():
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
    cls, stem = {
        "stage1": (config.Stage1, "01_stage1_real_fake"),
        "stage2": (config.Stage2, "02_stage2_attribution"),
    }[stage]
    fit = {"stage1": stage2.fit_stage1, "stage2": stage2.fit_stage2}[stage]
    with tempfile.TemporaryDirectory() as out, contextlib.ExitStack() as stack:
        given = {**config.profile(profile, stem), "data": table.attrs["root"], "out": out, **settings}
        size = given.get("batch_size", cls.batch_size)
        cfg = cls(**{**given, "images_per_epoch": (WARM + TIMED + 4) * size})  # 4: the last ones are not loaded ahead
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(patch.object(loop, "Session", kind))
        if kind is Bare:  # a codec is no network
            for module in (training, disentangling):
                stack.enter_context(patch.object(module, "equalise", lambda crops, quality: crops))
        stack.enter_context(contextlib.suppress(_Enough))
        fit(table, cfg)
    return Timed.seconds


def rows(folder: Path, repeats: int) -> Iterator[Row]:
    """One row a stage: training as profile `quick` does it, and its networks alone, in turns."""
    table = manifest.scan(folder, progress=False)
    for stage in ("stage1", "stage2"):
        calls = [partial(seconds, stage, table, kind) for kind in (Timed, Bare)]
        mine, bare = in_turns(calls, max(1, repeats - 1))
        what = f"{stage}: {TIMED} steps of training, profile quick, bare: its passes alone"
        yield Row(what, bare / mine, 0.90, seconds=mine, bare_seconds=bare)
