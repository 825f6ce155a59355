"""The grid of a parameter sweep: which runs a YAML file asks for, each with a name that stays."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dfd import config
from dfd.reports import runner

KEYS = ("data", "profile", "notebooks", "parameters", "seeds", "runs", "sort_by")
DEFAULTS = {"data": "data/sample", "profile": "demo", "notebooks": ["00", "01", "02"]}
SORT_BY = ("stage1.auc", "stage2.accuracy")
METRICS = {  # as in metrics.json
    "stage1": "auc ap accuracy accuracy_at_threshold balanced_accuracy real_accuracy fake_accuracy tpr_at_fpr_1 "
    "tpr_at_fpr_5 ece".split(),
    "stage2": "accuracy balanced_accuracy macro_f1 ece".split(),
}
LIMIT = 100  # runs, unless --limit says otherwise
EXAMPLE = "parameters:\n  01.lr_gc: [0.0003, 0.001]"
SEED = "seed"  # what `seeds` are called beside the parameters


class SweepError(config.ConfigError):
    """A grid cannot be understood, or asks for what there is not; `code` is the exit status for the shell."""

    def __init__(self, text: str, code: int = 2):
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Run:
    """One run of a sweep."""

    name: str  # of its folder
    varying: dict[str, Any] = field(hash=False)  # what tells it from the others
    settings: tuple[tuple[str, str], ...]  # all parameters, as words for `-p`


@dataclass(frozen=True)
class Sweep:
    """What a grid asks for."""

    name: str
    data: str
    profile: str
    notebooks: tuple[str, ...]  # stems
    varying: tuple[str, ...]  # names of the parameters that the runs differ in
    runs: tuple[Run, ...]
    sort_by: tuple[str, ...]  # metrics, on validation


def read(
    path: str | Path,
    limit: int | None = None,
    folder: str | Path = config.ROOT / "notebooks",
    configs: runner.Configs = config.NOTEBOOKS,
) -> Sweep:
    """Read a grid, and check every run of it as `dfd run` would.

    Args:
        path: the YAML file; the sweep is named after it.
        limit: how many runs it may ask for.
        folder, configs: as for `report.run`.

    Raises:
        FileNotFoundError: no such file, or no data folder.
        SweepError: what is wrong in the file, at which key, and the remedy.
    """
    path = Path(path)
    try:
        return _read(_load(path), path.stem, LIMIT if limit is None else limit, Path(folder), configs)
    except config.ConfigError as error:
        raise SweepError(f"{path}: {error}") from None
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: {error}") from None


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no such file; it holds, for instance, {EXAMPLE.replace(chr(10) + '  ', ' {')}}}")
    try:
        found = yaml.load(path.read_text("utf-8"), _Unique)
    except UnicodeDecodeError:
        raise SweepError("not text in UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise SweepError(f"not YAML: {where}{getattr(error, 'problem', None) or str(error).splitlines()[0]}") from None
    if not isinstance(found, dict):
        raise SweepError(f"needs keys with values; the shortest grid is\n{EXAMPLE}")
    for key in found:
        if key not in KEYS:
            raise SweepError(_unknown("key", str(key), KEYS))
    return found


class _Unique(yaml.SafeLoader):
    """Refuses a key that is there twice, of which plain YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read(given: dict[str, Any], name: str, limit: int, folder: Path, configs: runner.Configs) -> Sweep:
    given = DEFAULTS | {key: value for key, value in given.items() if value is not None}
    for key in ("data", "profile"):
        if not isinstance(given[key], str):
            raise SweepError(f"{key} must be a word, got {given[key]!r}")
    config.profile(given["profile"], "")
    if not config.resolve(given["data"]).is_dir():
        raise FileNotFoundError(f"no data folder {given['data']}; `python -m dfd sample` makes one, data: names yours")
    names = [f"{one:02}" if type(one) is int else str(one) for one in _listed("notebooks", given["notebooks"])]
    every = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    stems = [path.stem for path in every if path in runner.choose(every, names)]
    varied = _axes(given.get("parameters", {}), "parameters")
    seeds = [str(seed) for seed in _listed("seeds", given.get("seeds", []))]
    explicit = _explicit(given["runs"], varied) if "runs" in given else [{}]
    count = len(explicit) * math.prod(len(values) for values in varied.values()) * max(len(seeds), 1)
    if count > limit:
        raise SweepError(f"asks for {count} runs; `--limit {count}` runs them all, fewer values make fewer")
    products = [
        dict(zip(varied, values, strict=True)) | one | ({SEED: seed} if seed else {})
        for one in explicit
        for values in itertools.product(*varied.values())
        for seed in seeds or [""]
    ]
    if seeds and any(name == SEED for one in (varied, *explicit) for name in one):
        raise SweepError("seed is under seeds and among the parameters; keep one")
    runs = _runs(products, bool(seeds), given, stems, configs)
    sort_by = tuple(_listed("sort_by", given.get("sort_by", SORT_BY)))
    for metric in sort_by:
        known = [f"{stage}.{one}" for stage, found in METRICS.items() for one in found]
        if metric not in known:
            raise SweepError(f"sort_by: {_unknown('metric', str(metric), known)}")
    varying = tuple(dict.fromkeys(key for run in runs for key in run.varying))
    return Sweep(name, given["data"], given["profile"], tuple(stems), varying, runs, sort_by)


def _runs(
    products: Sequence[Mapping], seeds: bool, given: dict, stems: list[str], configs: runner.Configs
) -> tuple[Run, ...]:
    """Check each run's parameters and name it by those that differ between the runs."""
    trained = [stem for stem in stems if issubclass(configs.get(stem, config.Shared), config.Training)]
    if seeds and not trained:
        raise SweepError("seeds needs a notebook that trains, 01 or 02, under notebooks")
    keys = list(dict.fromkeys(key for one in products for key in one))
    varying = [key for key in keys if len({one.get(key) for one in products}) > 1]
    found, planned, runs = {}, [], []
    for one in products:
        settings = {name: value for name, value in one.items() if not seeds or name != SEED}
        settings |= {f"{stem[:2]}.seed": one[SEED] for stem in trained if seeds}
        planned.append(_checked(settings, given, stems, configs))
        differs = {key: one[key] for key in varying if key in one}
        name = _named(differs) or "run"
        if planned[-1] in planned[:-1] or name in found:
            raise SweepError(f"two runs are the same: {name}; a value or a run is listed twice")
        found[name] = one
        runs.append(Run(name, differs, tuple(settings.items())))
    return tuple(runs)


def _checked(settings: dict[str, str], given: dict, stems: list[str], configs: runner.Configs) -> dict:
    """The parameters of each notebook, as a run plans them."""
    for name in settings:
        if name.rpartition(".")[2] in ("data", "out", "profile"):
            raise SweepError(f"{name} is no parameter of a run; data and profile stand beside parameters, out is --out")
    try:
        return runner.plan(stems, configs, {"data": given["data"], "out": "reports"}, given["profile"], settings)
    except config.ConfigError as error:
        for name in settings:
            number, _, field_name = name.rpartition(".")
            elsewhere = [
                stem
                for stem, cls in configs.items()
                if stem not in stems and field_name in cls.__dataclass_fields__ and number in ("", stem, stem[:2])
            ]
            if elsewhere and repr(name) in str(error):
                raise SweepError(f"{name} is a parameter of {elsewhere[0]} only; add that under notebooks") from None
        raise SweepError(f"parameters: {error}") from None


def _axes(parameters: Any, key: str) -> dict[str, list[str]]:
    """Name -> the values to try, as words; a value that is no list is tried alone."""
    if not isinstance(parameters, dict):
        raise SweepError(f"{key} must be names with values, such as 01.lr_gc: [0.0003, 0.001], got {parameters!r}")
    found = {}
    for name, values in parameters.items():
        words = [_word(f"{key}: {name}", one) for one in (values if isinstance(values, list) else [values])]
        if not words:
            raise SweepError(f"{key}: {name} is an empty list; give it a value, or leave it out")
        twice = next((one for i, one in enumerate(words) if one in words[:i]), None)
        if twice is not None:
            raise SweepError(f"{key}: {name} lists {twice} twice")
        found[str(name)] = words
    return found


def _explicit(runs: Any, varied: dict[str, list[str]]) -> list[dict[str, str]]:
    if not isinstance(runs, list) or not runs:
        raise SweepError("runs must be a list of parameters with a value each, such as - {01.lr_gc: 0.001}")
    many = [name for name, values in varied.items() if len(values) > 1]
    if many:
        raise SweepError(f"{many[0]} has several values beside runs; either a product of lists, or runs one by one")
    found = []
    for number, one in enumerate(runs, 1):
        axes = _axes(one, f"run {number} of runs")
        several = [name for name, values in axes.items() if len(values) > 1]
        if several:
            raise SweepError(f"run {number} of runs: {several[0]} must have one value")
        found.append({name: values[0] for name, values in axes.items()})
    return found


def _word(where: str, value: Any) -> str:
    """A value as a word for the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
        return repr(value)
    raise SweepError(f"{where} must be a number, a word, true or false, or a list of such, got {value!r}")


def _listed(key: str, value: Any) -> list:
    """A list, or one value as a list of it."""
    found = list(value) if isinstance(value, list | tuple) else [value]
    if not found and key != "seeds" or any(not isinstance(one, str | int) for one in found):
        raise SweepError(f"{key} must be a list of {'whole numbers' if key == 'seeds' else 'words'}, got {value!r}")
    if len(set(found)) < len(found):
        raise SweepError(f"{key} names one twice: {value!r}")
    return found


def _unknown(kind: str, name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"unknown {kind} {name!r}{f'; did you mean {close[0]!r}?' if close else '.'} There are: {', '.join(known)}"


def _named(differs: Mapping[str, str]) -> str:
    """A folder's name from what tells a run from the others; what no name can show has a digest of it instead."""
    parts = []
    for name, value in sorted(differs.items()):  # whatever the order in the grid
        shown = re.sub(r"[^\w.+-]+", "-", value).strip("-")
        parts.append(f"{name}-{shown}" + (f"-{_digest(value)}" if shown != value else ""))
    whole = ",".join(parts)
    return whole if len(whole) <= 100 else f"{whole[:90]}-{_digest(whole)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
