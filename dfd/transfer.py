"""Can a fingerprint be carried? Residuals of fakes on photos: what stage 2 names then, and how the photo changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from dfd.bootstrap import intervals
from dfd.datasets import equalise
from dfd.evaluation import balanced_accuracy
from dfd.fingerprint import centres, choose, residuals
from dfd.stage import BATCH, Stage

CARRIER_ALONE = "carrier alone"  # the control's row in a confusion


@dataclass(frozen=True, eq=False)
class Carried:
    """Fingerprints on photos, (N, 3, S, S) each: c and its sum with r in [0, 1], r as the UNet gives it."""

    carriers: Tensor
    residuals: Tensor
    sums: Tensor


def carry(stage: Stage, table: pd.DataFrame, limit: int, split: str = "test", seed: int = 0) -> pd.DataFrame:
    """Put residuals of fakes on photos of the same split: which generator does stage 2 name then?

    c is the photo's centre crop, r = G(x) the residual of a fake's; c + r is clipped to [0, 1]. c and c + r then pass
    the same codec on their way into the network. PSNR and SSIM compare them before that, so the codec's loss is not
    counted.

    Args:
        stage: a stage 2.
        table: the whole manifest, with its root in attrs.
        limit, seed: of the choice of fakes, for each generator that the stage knows, and of carriers.
        split: whose fakes and photos are used.

    Returns:
        One row per pair: path, label and group of the fake; carrier and carrier_group; alone and named, what stage 2
        says of c and of c + r; psnr in dB, infinite where c + r is c; ssim.

    Raises:
        ValueError: the split has no such fake, or no photo outside a fake's group.
    """
    pairs = pairs_of(table[~table["is_fake"] | table["label"].isin(stage.classes)], limit, split, seed)
    parts = []
    for start in range(0, len(pairs), BATCH):
        carried = put_on(stage, table.attrs["root"], pairs.iloc[start : start + BATCH])
        both = zip(carried.carriers.numpy(), carried.sums.numpy(), strict=True)
        psnr, ssim = zip(*[_likeness(*two) for two in both], strict=True)
        alone, named = _named(stage, carried.carriers), _named(stage, carried.sums)
        parts.append(pd.DataFrame({"alone": alone, "named": named, "psnr": psnr, "ssim": ssim}))
    return pd.concat([pairs, pd.concat(parts, ignore_index=True)], axis=1)


def pairs_of(table: pd.DataFrame, limit: int, split: str = "test", seed: int = 0) -> pd.DataFrame:
    """A photo of another group for each fake: path, label, group, carrier, carrier_group; see `carry`."""
    rows = table[table["split"] == split]
    fakes, photos = choose(rows[rows["is_fake"]], limit, seed), rows[~rows["is_fake"]]
    if fakes.empty:
        raise ValueError(f"split {split!r} has no fake of a known generator")
    random, groups, drawn = np.random.default_rng(seed), photos["group"].to_numpy(), []
    for group in fakes["group"]:
        others = np.flatnonzero(groups != group)
        if not len(others):
            raise ValueError(f"split {split!r} has no photo outside group {group} to carry its fingerprint")
        drawn.append(random.choice(others))
    carriers = photos.iloc[drawn]
    pairs = fakes[["path", "label", "group"]].reset_index(drop=True)
    return pairs.assign(carrier=carriers["path"].to_numpy(), carrier_group=carriers["group"].to_numpy())


def put_on(stage: Stage, root: str, pairs: pd.DataFrame) -> Carried:
    """Carriers, residuals and their clipped sums of some pairs, before the last codec."""
    carriers = centres(stage, root, pairs["carrier"])
    fakes = equalise(centres(stage, root, pairs["path"]), stage.equalise_quality)
    own = residuals(stage, fakes)
    return Carried(carriers, own, (carriers + own).clamp(0, 1))


def confusion(pairs: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """Shares of the named generator, one row per source of the fingerprint; the last row is the carriers alone."""
    rows = pd.crosstab(pairs["label"], pairs["named"], normalize="index")
    rows.loc[CARRIER_ALONE] = pairs["alone"].value_counts(normalize=True)
    return rows.reindex(columns=classes).fillna(0.0).rename_axis(index="fingerprint of", columns="named")


def summary(pairs: pd.DataFrame, seed: int = 0) -> dict[str, dict[str, float | None]]:
    """What a transfer shows, each with its 95 % interval over the fakes' groups.

    Args:
        pairs: what `carry` gave.
        seed: of the bootstrap.

    Returns:
        name -> value, low, high. Means over generators: `carried`, share named as the fingerprint's source;
        `carrier_alone`, the same without the fingerprint; `carried_anew`, as `carried`, of the carriers that are named
        otherwise alone. Means over pairs: `psnr` in dB, without infinite ones, and `ssim`.
    """
    metrics = {
        "carried": lambda t: balanced_accuracy(t.label, t.named),
        "carrier_alone": lambda t: balanced_accuracy(t.label, t.alone),
        "carried_anew": lambda t: _anew(t.label, t.alone, t.named),
        "psnr": lambda t: _finite_mean(t.psnr),
        "ssim": lambda t: _finite_mean(t.ssim),
    }
    return intervals(pairs, metrics, seed)


def _anew(label: np.ndarray, alone: np.ndarray, named: np.ndarray) -> float:
    other = alone != label
    return balanced_accuracy(label[other], named[other]) if other.any() else float("nan")


def _finite_mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def _named(stage: Stage, images: Tensor) -> list[str]:
    return [stage.classes[int(one.logits.argmax())] for one in stage.stream(images.split(1), 1, "five")]


def _likeness(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """PSNR in dB and SSIM, Wang et al. 2004, of (3, S, S) images in [0, 1]."""
    with np.errstate(divide="ignore"):  # equal images: infinite
        psnr = peak_signal_noise_ratio(one, other, data_range=1)
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(psnr), float(structural_similarity(one, other, data_range=1, channel_axis=0, **window))
