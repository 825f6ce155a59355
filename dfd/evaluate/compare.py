"""Runs beside one another: paired differences of their metrics, verdicts that changed, and what they were made from.

Two runs are compared on the images that both hold in their test split and scored as they are, and on these alone. The
bootstrap draws the same groups for both, so that what makes an image hard for both cancels out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn import metrics as skm

from dfd.core.io import read_json
from dfd.evaluate import metrics as metrics_module
from dfd.evaluate.metrics import REPLICATES, band
from dfd.inference.decide import true_class

STAGES = {"stage1": "Stage 1, real or fake", "stage2": "Stage 2, which generator"}
Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], float]  # of true class, prediction and stage 1's logit
METRICS: dict[str, dict[str, Metric]] = {  # as in metrics.json; those that need no temperature
    "stage1": {
        "auc": lambda true, called, logit: metrics_module.auc(true == "fake", logit),
        "accuracy_at_threshold": lambda true, called, logit: _share(called == true),
        "real_accuracy": lambda true, called, logit: _share(called[true == "real"] == "real"),
        "fake_accuracy": lambda true, called, logit: _share(called[true == "fake"] == "fake"),
        "tpr_at_fpr_5": lambda true, called, logit: metrics_module.tpr_at_fpr(true == "fake", logit, 0.05),
    },
    "stage2": {
        "accuracy": lambda true, called, logit: _share(called == true),
        "balanced_accuracy": lambda true, called, logit: metrics_module.balanced_accuracy(true, called),
        "macro_f1": lambda true, called, logit: skm.f1_score(true, called, average="macro", zero_division=0.0),
    },
}


def _share(which: np.ndarray) -> float:
    return float(which.mean()) if len(which) else np.nan


UNSAID = ("out", "notebooks", "written", "manifest")  # differ always, or have a row of their own


class CompareError(ValueError):
    """A folder is not a run, or two runs have nothing in common."""


@dataclass(frozen=True)
class Paired:
    """One stage of two runs on the images they share."""

    stage: str
    images: int
    groups: int
    unshared: dict[str, int]  # test images that were left out: why -> how many
    metrics: pd.DataFrame  # by metric: base, other, difference (other minus base), low, high
    changed: pd.DataFrame  # path, label, base, other, change: the images whose verdict differs

    @property
    def changes(self) -> dict[str, int]:
        """How many verdicts changed in which way: mended, broken, or wrong in both."""
        return self.changed["change"].value_counts().to_dict()


@dataclass(frozen=True)
class Comparison:
    """Two runs: their names, the stages that both have, and what differs in their making."""

    base: str
    other: str
    stages: dict[str, Paired]
    missing: dict[str, str]  # stage -> why it could not be compared
    made: pd.DataFrame  # kind, name, base, other: what the runs were made from, where it differs


def compare(folders: Sequence[str | Path], seed: int = 0) -> list[Comparison]:
    """Compare each run with the first one.

    Args:
        folders: two run folders or more.
        seed: of the bootstrap.

    Raises:
        CompareError: fewer than two, a folder that is not a run, or a run that shares no test image with the first.
    """
    if len(folders) < 2:
        raise CompareError("name two run folders or more, the one to compare with first")
    paths = [Path(folder) for folder in folders]
    if len({path.resolve() for path in paths}) < len(paths):
        raise CompareError("the same run folder is named twice")
    last = [path.resolve().name for path in paths]
    names = last if len(set(last)) == len(last) else [str(path) for path in paths]
    base, *others = [tables(path) for path in paths]
    return [
        pair(base, other, (paths[0], path), (names[0], name), seed)
        for other, path, name in zip(others, paths[1:], names[1:], strict=True)
    ]


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    """What each stage of a run said of its test images as they are; of a stage without a score table nothing.

    Returns:
        stage -> rows by path: label, group, true, called, logit (stage 1's; 0 for stage 2), and sha256 (None without
        a manifest).

    Raises:
        CompareError: no folder, no score table in it, or one that cannot be read.
    """
    if not folder.is_dir():
        raise CompareError(f"no folder {folder}")
    files = {stage: folder / f"scores_{stage}.parquet" for stage in STAGES}
    if not any(path.exists() for path in files.values()):
        raise CompareError(
            f"{folder} is no finished run: it holds no score table (scores_stage1.parquet, scores_stage2.parquet); "
            "`python -m dfd run` writes them"
        )
    try:
        hashes = pd.Series(dtype=object)
        if (folder / "manifest.parquet").exists():
            hashes = pd.read_parquet(folder / "manifest.parquet", columns=["path", "sha256"]).set_index("path").sha256
        return {stage: _rows(path, hashes) for stage, path in files.items() if path.exists()}
    except (ValueError, KeyError, OSError) as error:  # pyarrow's own errors are ValueErrors
        raise CompareError(f"the tables of {folder} cannot be read: {str(error).splitlines()[0]}") from error


def _rows(path: Path, hashes: pd.Series) -> pd.DataFrame:
    scores = pd.read_parquet(path, filters=[("split", "==", "test"), ("degradation", "==", "none")])
    if scores["path"].duplicated().any():
        raise ValueError(f"{path.name} names an image twice")
    columns = {
        "label": scores["label"],
        "group": scores["group"],
        "true": true_class(scores),
        "called": scores["prediction"],
        "logit": scores.get("logit_fake", 0.0),
        "sha256": scores["path"].map(hashes).astype(object),
    }
    return pd.DataFrame(columns).set_index(scores["path"])


def pair(
    base: dict[str, pd.DataFrame],
    other: dict[str, pd.DataFrame],
    folders: tuple[Path, Path],
    names: tuple[str, str],
    seed: int = 0,
    replicates: int = REPLICATES,
    only: Sequence[str] | None = None,
) -> Comparison:
    """Compare two runs.

    Args:
        base, other: their tables; see `tables`.
        folders: theirs, for config.json and environment.json.
        names: what to call them.
        seed, replicates: of the bootstrap.
        only: some of the metrics; all of them if none are named.

    Raises:
        CompareError: no stage shares a test image.
    """
    stages, missing = {}, {}
    for stage in STAGES:
        without = [name for name, run in zip(names, (base, other), strict=True) if stage not in run]
        if without:
            missing[stage] = f"no score table in {' and '.join(without)}"
            continue
        rows, unshared = share(base[stage], other[stage], names)
        if len(rows):
            metrics = differences(rows, stage, seed, replicates, only)
            stages[stage] = Paired(stage, len(rows), rows["group"].nunique(), unshared, metrics, changes(rows))
        else:
            missing[stage] = "no test image in common"
    if not stages:
        why = "; ".join(f"{STAGES[stage]}: {text}" for stage, text in missing.items())
        raise CompareError(f"{names[0]} and {names[1]} cannot be compared. {why}")
    return Comparison(*names, stages, missing, made_from(*folders))


def share(base: pd.DataFrame, other: pd.DataFrame, names: tuple[str, str]) -> tuple[pd.DataFrame, dict[str, int]]:
    """The images that two runs tested, with what both said: the same path, the same label, the same bytes.

    Args:
        base, other: of one stage; bytes are compared where both runs have a manifest.
        names: what to call the runs.

    Returns:
        Rows by path: label, true, group (images that either run ties together are one), and called and logit of each
        run with the suffix _base or _other; and how many images were left out, by reason.
    """
    both = base.merge(other, left_index=True, right_index=True, suffixes=("_base", "_other"))
    known = both["sha256_base"].notna() & both["sha256_other"].notna()
    same = (both["label_base"] == both["label_other"]) & (~known | (both["sha256_base"] == both["sha256_other"]))
    unshared = {
        f"only in {names[0]}": len(base) - len(both),
        f"only in {names[1]}": len(other) - len(both),
        "of the same name, but with other content or another label": int((~same).sum()),
    }
    rows = both[same].rename(columns={"label_base": "label", "true_base": "true"})
    group = _tied(rows["group_base"], rows["group_other"])
    kept = ["label", "true", "called_base", "called_other", "logit_base", "logit_other"]
    return rows[kept].assign(group=group), {why: count for why, count in unshared.items() if count}


def _tied(first: pd.Series, second: pd.Series) -> np.ndarray:
    """Number the groups in which images lie together that either of two groupings ties."""
    if first.empty:
        return np.array([], dtype=int)
    left, right = (pd.factorize(one)[0] for one in (first, second))
    count = left.max() + right.max() + 2
    links = coo_array((np.ones(len(left)), (left, right + left.max() + 1)), shape=(count, count))
    return connected_components(links, directed=False)[1][left]


def differences(
    rows: pd.DataFrame, stage: str, seed: int = 0, replicates: int = REPLICATES, only: Sequence[str] | None = None
) -> pd.DataFrame:
    """A stage's metrics in both runs, and the difference with its paired 95 % interval.

    Args:
        rows: what `share` gives.
        stage: stage1 or stage2.
        seed, replicates: of the bootstrap over groups; each draw is scored for both runs.
        only: some of METRICS.

    Returns:
        One row per metric: base, other, difference (other minus base), low, high; NaN where undefined.
    """
    metrics = {name: metric for name, metric in METRICS[stage].items() if only is None or name in only}

    def scored(t: Any, run: str) -> np.ndarray:
        called, logit = getattr(t, f"called_{run}"), getattr(t, f"logit_{run}")
        return np.array([metric(t.true, called, logit) for metric in metrics.values()])

    whole, low, high = band(rows, lambda t: scored(t, "other") - scored(t, "base"), seed, replicates)
    columns = SimpleNamespace(**{name: rows[name].to_numpy() for name in rows})
    values = {run: scored(columns, run) for run in ("base", "other")}
    index = pd.Index(list(metrics), name="metric")
    return pd.DataFrame({**values, "difference": whole, "low": low, "high": high}, index=index)


def changes(rows: pd.DataFrame) -> pd.DataFrame:
    """The images whose verdict differs, the broken ones first: path, label, base, other, change.

    Args:
        rows: what `share` gives; change is mended, broken, or wrong in both (stage 2: two wrong names).
    """
    found = rows[rows["called_base"] != rows["called_other"]]
    right = {run: found[f"called_{run}"] == found["true"] for run in ("base", "other")}
    change = np.select([right["other"], right["base"]], ["mended", "broken"], "wrong in both")
    table = pd.DataFrame(
        {"label": found["label"], "base": found["called_base"], "other": found["called_other"], "change": change}
    )
    return table.reset_index().sort_values(["change", "path"], ignore_index=True)


def made_from(base: Path, other: Path) -> pd.DataFrame:
    """What differs in what two runs were made from and with: kind (setting, data or version), name, base, other.

    Reads config.json and environment.json; what one run does not say is a dash.

    Raises:
        CompareError: one of these files is not JSON.
    """
    found = []
    for kind, told in (("setting", _settings), ("data", _data), ("version", _versions)):
        try:
            one, two = told(base), told(other)
        except ValueError as error:
            raise CompareError(
                f"config.json or environment.json of {base} or {other} cannot be read: {error}"
            ) from error
        for name in dict.fromkeys([*one, *two]):
            first, second = (str(run.get(name, "–")) for run in (one, two))
            if first != second:
                found.append({"kind": kind, "name": name, "base": first, "other": second})
    return pd.DataFrame(found, columns=["kind", "name", "base", "other"])


def _settings(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    found = {name: value for name, value in config.items() if name not in UNSAID}
    for stem, entry in config.get("notebooks", {}).items():
        for name, value in entry.get("parameters", {}).items():
            if name not in config:
                found[f"{stem[:2]}.{name}"] = value
    return found


def _data(folder: Path) -> dict[str, Any]:
    return {"manifest": read_json(folder / "environment.json").get("manifest", "–")}


def _versions(folder: Path) -> dict[str, Any]:
    environment = read_json(folder / "environment.json")
    packages = environment.pop("packages", {})
    code = {
        f"code of {stem}": entry["code"]
        for stem, entry in read_json(folder / "config.json").get("notebooks", {}).items()
        if "code" in entry
    }
    return {name: value for name, value in environment.items() if name not in UNSAID} | packages | code
