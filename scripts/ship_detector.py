"""Make the detector that ships, in data/detector: `ship_detector.py RUN`.

Stage 1 is of what scripts/tune_clip.py left in RUN, stage 2 is that of `python -m dfd train stage2 --profile clip`.
data/detector/README.md, which this writes, has the commands that fill the folder.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from tune_clip import SAME

from dfd import config
from dfd.analysis import fingerprint
from dfd.config import REAL
from dfd.core.io import atomic_write, template, write_text
from dfd.core.runs import bar
from dfd.data import manifest
from dfd.data.crops import RealFakeDataset, Seeded, seeds
from dfd.degrade import RandomDegrade, registry
from dfd.evaluate import holdouts
from dfd.evaluate.scores import with_predictions
from dfd.inference import Stage, build_model, decide, update_checkpoint
from dfd.inference.detector import Detector
from dfd.inference.files import ENTRY
from dfd.inference.likelihood import costs
from dfd.inference.openset import PER_SOURCE, fit_subspace
from dfd.inference.stage import uses_bfloat16
from dfd.models.clip import BLOCKS, SIDE, WHEEL
from dfd.models.networks import describe
from dfd.train.bank import FILE
from dfd.train.checkpoint import Checkpoint
from dfd.train.heads import history_of, judgements, sources_of

SPECTRA_OF = 200  # images of each generator, whose mean spectrum pages show
STEM = "01_stage1_real_fake"  # the notebook that the profile is for


def judged(run: Path, table: pd.DataFrame, classes: list[str], answers: str) -> pd.DataFrame:
    """The score table of all draws, of what the tuned heads, or the `frozen` ones, said of what they never saw."""
    by_path, tables = table.set_index("path", drop=False), []
    for number, path in enumerate(sorted((run / "draws").glob("*.npz"))):
        with np.load(path) as file:
            draw = dict(file)
        rows, logits = by_path.loc[draw["path"]].assign(draw=number), draw[answers].mean(axis=2)
        if answers == "frozen1":  # one logit: that of fake above that of real
            logits = logits[..., 1:] - logits[..., :1]
        kept = rows["is_fake"].to_numpy() | ("real" in classes)  # of stage 2 the fakes
        tables.append(judgements(logits[kept], rows[kept], nn.Identity(), classes))
    return pd.concat(tables, ignore_index=True)


def features_of(run: Path, rows: pd.DataFrame, stage: Stage, data: str) -> np.ndarray:
    """Features (N, 2, D) float16 of two crops of each image, as it is and degraded; kept, for they take ten minutes."""
    path, tuned = run / "subspace.npy", run / "tuned.safetensors"
    if not path.exists() or path.stat().st_mtime < tuned.stat().st_mtime:  # of another trunk
        size, quality = stage.crop_size, stage.equalise_quality
        clean, degraded = (RealFakeDataset(rows, data, size, x, quality) for x in (None, RandomDegrade(smallest=size)))
        parts, draws = [], list(enumerate(seeds(len(rows), 7)))
        for start in bar(range(0, len(draws), 8), desc="features", unit="batch"):
            crops = [Seeded(view)[draw][0] for draw in draws[start : start + 8] for view in (clean, degraded)]
            kind, has_bfloat16 = stage.device.type, uses_bfloat16(stage.device)
            with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=has_bfloat16):
                parts.append(describe(stage.model, torch.stack(crops).to(stage.device))[1].half().cpu().numpy())
        with atomic_write(path) as draft, draft.open("wb") as file:
            np.save(file, np.concatenate(parts).reshape(len(rows), 2, -1))
    return np.load(path)


def make_stage1(run: Path, table: pd.DataFrame, tuned: dict) -> None:
    """Write the checkpoint of stage 1, calibrated on the judgements, and the judgements beside it."""
    cfg = config.Stage1(**config.profile("clip", STEM) | {"backbone": config.CLIPS[1], "out": str(run)})
    checkpoint = Checkpoint("stage1", table, cfg, ["real", "fake"])
    network: Any = build_model("stage1", checkpoint.settings, 2, cfg.pretrained)
    network.backbone.head.load_state_dict({part: tuned[f"stage1.{part}"] for part in ("weight", "bias")})
    rows = judged(run, table, ["real", "fake"], "stage1")
    checkpoint.save_best(network, [history_of(rows, rows, "stage1")])
    rows.to_parquet(run / "hold_outs_stage1.parquet", index=False)
    update_checkpoint(checkpoint.path, finished=True, is_held_out=True)
    update_checkpoint(checkpoint.path, **decide.fit(Stage.load(checkpoint.path), rows, table))
    kept = table.sample(frac=1, random_state=0).groupby(["label", "source"]).head(PER_SOURCE).sort_index()
    features = features_of(run, kept, Stage.load(checkpoint.path), table.attrs["root"])
    update_checkpoint(checkpoint.path, smallest=cfg.crop_size, **fit_subspace(features, kept))


def named(run: Path, table: pd.DataFrame, stage: Stage) -> pd.DataFrame:
    """The share of the photos of each condition, sources alike, that stage 2, which saw none, would give a name."""
    photos = np.flatnonzero(~table["is_fake"])
    features, rows = np.load(run / FILE, mmap_mode="r")[photos], table.iloc[photos].assign(draw=0)
    judged = judgements(features, rows, stage.backbone.head.cpu(), stage.classes)
    decisions = decide.decide(judged[decide.logit_columns(judged)], stage, judged["ood_score"])
    judged["named"] = decisions.prediction != decide.UNKNOWN
    judged["condition"] = [registry.name(*pair) for pair in zip(judged["degradation"], judged["level"], strict=True)]
    of_sources = judged.groupby(["condition", "source"], sort=False)["named"].mean()
    return of_sources.groupby("condition", sort=False).mean().reset_index()


def card(run: Path, table: pd.DataFrame) -> str:
    """The model card: what it is, its numbers by joint hold-outs, and its rates by source."""
    detector = Detector.load(config.DETECTOR)
    rows = {stage: holdouts.load(run, getattr(detector, stage)) for stage in config.SHIPPED}
    other1 = judged(run, table, ["real", "fake"], "frozen1")
    other2 = judged(run, table, list(detector.stage2.classes), "stage2")
    tables = {f"summary{stage[-1]}": holdouts.summary(rows[stage]).reset_index() for stage in rows}
    tables |= {"frozen1": holdouts.summary(other1).reset_index(), "tuned2": holdouts.summary(other2).reset_index()}
    tables |= {f"sources{stage[-1]}": holdouts.by_source(rows[stage], getattr(detector, stage)) for stage in rows}
    own = with_predictions(detector.stage1, rows["stage1"])
    tables["costs"] = pd.DataFrame([
        {"condition": registry.name(name, level), "cllr": cost, "at best": best}
        for (name, level), part in own.groupby(["degradation", "level"], sort=False)
        for cost, best in [costs(part["log10_lr"].to_numpy(), part["label"].ne(REAL).to_numpy())]
    ])  # fmt: skip
    tables["named"] = named(run, table, detector.stage2)
    return template("detector_card.md.j2").render(
        blocks=BLOCKS,
        side=SIDE,
        wheel=WHEEL,
        stage1=detector.stage1,
        stage2=detector.stage2,
        images=table["label"].value_counts().to_dict(),
        sources=table["source"].nunique(),
        **tables,
    )


def ship(run: Path, folder: Path) -> None:
    """Write the stages of a run folder as a detector that ships, with SHA256SUMS of all files there."""
    folder.mkdir(parents=True, exist_ok=True)
    for stage, name in config.SHIPPED.items():
        content = torch.load(run / config.CHECKPOINTS[stage], map_location="cpu", weights_only=True)
        weights = {key: tensor.contiguous() for key, tensor in content.pop("weights").items()}
        tensors = [key for key, value in content.items() if isinstance(value, torch.Tensor)]
        weights |= {ENTRY + key: content.pop(key).contiguous() for key in tensors}
        with atomic_write(folder / name) as draft:
            save_file(weights, draft, {"stage": json.dumps(content)})
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".npz"))
    sums = (f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    write_text(folder / config.SUMS, "".join(sums))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if not (folder / config.CHECKPOINTS["stage2"]).exists():
        sys.exit(f"{folder} lacks {config.CHECKPOINTS['stage2']}; `python -m dfd train stage2 --profile clip` makes it")
    images = manifest.load(folder)
    images = images.assign(source=pd.Series(sources_of(images), images.index).replace(SAME))
    weights = load_file(folder / "tuned.safetensors")
    adapter = {name.removeprefix("vit."): values for name, values in weights.items() if name.startswith("vit.")}
    with atomic_write(config.ADAPTER) as draft:
        save_file({name.replace(".parametrizations.weight.0", ""): part for name, part in adapter.items()}, draft)
    make_stage1(folder, images, weights)
    second = Stage.load(folder / config.CHECKPOINTS["stage2"])
    prints = fingerprint.fingerprints(second, images[images["is_fake"]], SPECTRA_OF)
    fingerprint.save_spectra(prints, config.DETECTOR)
    ship(folder, config.DETECTOR)
    print(f"Wrote {write_text(config.DETECTOR / 'README.md', card(folder, images))}")
