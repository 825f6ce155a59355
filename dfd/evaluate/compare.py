"""Runs beside one another: paired differences of their metrics, and verdicts that changed.

Two runs are compared on the images that both hold in their test split and scored as they are, and on these alone. The
bootstrap draws the same sources, or groups, for both, so that what makes an image hard for both cancels out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dfd.core.io import read_json, read_table
from dfd.evaluate.metrics import METRICS, bootstrap, judged, too_few, units
from dfd.inference.decide import true_class

STAGES = {"stage1": "Stage 1, real or fake", "stage2": "Stage 2, which generator"}
COMPARED = {  # those of METRICS that need no temperature
    "stage1": ("auc", "accuracy_at_threshold", "real_accuracy", "fake_accuracy", "tpr_at_fpr_5", "unsure",
               "photos_accused", "fakes_passed"),
    "stage2": ("accuracy", "balanced_accuracy", "macro_f1", "unknown")}  # fmt: skip
Tables = dict[str, pd.DataFrame]  # stage -> scores


class Paired(NamedTuple):
    """One stage of two runs on the images they share."""

    images: int
    groups: int
    unit: str  # what these are: group, of near-duplicates, or source
    unshared: dict[str, int]  # test images that were left out: why -> how many
    metrics: pd.DataFrame  # by metric: base, other, difference (other minus base), low, high; NaN where undefined
    changed: pd.DataFrame  # path, label, base, other, change: the images whose verdict differs


class Comparison(NamedTuple):
    """Two runs, by the stages that both have."""

    base: str
    other: str
    stages: dict[str, Paired]
    missing: dict[str, str]  # stage -> why it could not be compared


def compare(folders: Sequence[str | Path], seed: int = 0) -> list[Comparison]:
    """Compare each run folder with the first one; a ValueError says what cannot be compared."""
    if len(folders) < 2:
        raise ValueError("name two run folders or more, the one to compare with first")
    paths = [Path(folder) for folder in folders]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError("the same run folder is named twice")
    last = [path.resolve().name for path in paths]
    names = last if len(set(last)) == len(last) else [str(path) for path in paths]
    base, *others = [read_tables(path) for path in paths]
    return [_compare(base, other, (names[0], name), seed) for other, name in zip(others, names[1:], strict=True)]


def read_tables(folder: Path) -> Tables:
    """The score tables of a run, of its test images as they are: stage -> rows by path, with sha256 (or None)."""
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}")
    files = {stage: path for stage in STAGES if (path := folder / f"scores_{stage}.parquet").exists()}
    if not files:
        raise ValueError(f"{folder} is no finished run: it has no scores_stage1.parquet, which `dfd run` writes")
    for stem, entry in read_json(folder / "config.json").get("notebooks", {}).items():
        if f"stage{stem[1]}" in files and entry.get("status") != "finished":
            raise ValueError(f"{folder}: its scores may be of an earlier run; run notebook {stem[:2]} to its end")
    tables, hashes = {}, pd.Series(dtype=object)
    if (folder / "manifest.parquet").exists():
        hashes = read_table(folder / "manifest.parquet", columns=["path", "sha256"]).set_index("path").sha256
    for stage, path in files.items():
        scores = read_table(path, filters=[("split", "==", "test"), ("degradation", "==", "none")])
        tables[stage] = scores.set_index("path").assign(sha256=scores["path"].map(hashes).to_numpy(object))
    return tables


def _compare(base: Tables, other: Tables, names: tuple[str, str], seed: int) -> Comparison:
    stages, missing = {}, {}
    for stage in STAGES:
        if without := [name for name, run in zip(names, (base, other), strict=True) if stage not in run]:
            missing[stage] = f"no score table in {' and '.join(without)}"
            continue
        first, second, unshared = share(base[stage], other[stage], names)
        if first.empty:
            missing[stage] = "no test image in common"
            continue
        metrics, changed = differences(first, second, stage, seed), changed_verdicts(first, second)
        stages[stage] = Paired(len(first), first["group"].nunique(), first["unit"].iloc[0], unshared, metrics, changed)
    if not stages:
        why = "; ".join(f"{STAGES[stage]}: {text}" for stage, text in missing.items())
        raise ValueError(f"{names[0]} and {names[1]} cannot be compared. {why}")
    return Comparison(*names, stages, missing)


def share(base: pd.DataFrame, other: pd.DataFrame, names: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """The images that two runs tested: the same path, the same label, the same bytes (where both have a manifest).

    Gives both tables on these, in one order and in the groups of the run that has fewer; and why how many are left out.
    """
    both = base.index.intersection(other.index, sort=False)
    first, second = base.loc[both], other.loc[both]
    unknown = first["sha256"].isna() | second["sha256"].isna()
    same = (first["label"] == second["label"]) & (unknown | (first["sha256"] == second["sha256"]))
    unshared = {f"only in {name}": len(run) - len(both) for name, run in zip(names, (base, other), strict=True)}
    unshared["of the same name, but with other content or another label"] = int((~same).sum())
    group = min(units(first[same]), units(second[same]), key=pd.Series.nunique)
    first, second = (table[same].assign(group=group, unit=group.name) for table in (first, second))
    return first, second, {why: count for why, count in unshared.items() if count}


def differences(base: pd.DataFrame, other: pd.DataFrame, stage: str, seed: int = 0) -> pd.DataFrame:
    """The COMPARED of a stage in both runs of `share`, and the difference with its paired 95 % interval; see Paired."""
    runs = [[METRICS[name].of(judged(table)) for name in COMPARED[stage]] for table in (base, other)]

    def values(weights: np.ndarray) -> np.ndarray:  # (3 K, R)
        first, second = (np.array([statistic(weights) for statistic in run], dtype=float) for run in runs)
        return np.concatenate([first, second, second - first])

    value, low, high = (numbers.reshape(3, -1) for numbers in bootstrap(base["group"], values, seed))
    few = [too_few(statistic, base["group"].to_numpy()) for statistic in runs[0]]
    alike = few | (low[2] == high[2])  # of draws that are all alike: they say nothing
    low[2][alike] = high[2][alike] = np.nan
    columns = dict(zip(("base", "other", "difference"), value, strict=True)) | {"low": low[2], "high": high[2]}
    return pd.DataFrame(columns, index=pd.Index(COMPARED[stage], name="metric"))


def changed_verdicts(base: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Images whose answer differs: path, label, base, other, change; first broken, then mended, right in neither."""
    name = "answer" if "answer" in base and "answer" in other else "prediction"  # stage 1's may be unsure
    true, columns = true_class(base), {"base": base[name], "other": other[name]}
    change = np.select([columns["other"] == true, columns["base"] == true], ["mended", "broken"], "right in neither")
    rows = pd.DataFrame({"label": base["label"], **columns, "change": change}).rename_axis("path").reset_index()
    return rows[rows["base"] != rows["other"]].sort_values(["change", "path"], ignore_index=True)
