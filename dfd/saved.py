"""What the probe writes: one page that needs nothing else, and the same as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from dfd import __version__, stress
from dfd.examine import Examination
from dfd.inference import Detector
from dfd.page import page
from dfd.record import write_json, write_text

Pair = tuple[Examination, stress.Trial | None]


def write(folder: Path, detector: Detector, pairs: Sequence[Pair]) -> tuple[Path, Path]:
    """Write `probe-<time>.html` and `.json` into a folder, which is made if missing.

    Args:
        folder: no name of an uploaded file is ever a part of a path.
        detector: the one that judged.
        pairs: examinations with the pictures that are to be shown, and their curves where there are any.

    Returns:
        Where the page is, and the JSON.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    now, model = datetime.now(UTC), None if detector.run is None else str(detector.run)
    path = folder / f"probe-{now:%Y%m%d-%H%M%S}.html"
    found = [
        one | {"under_degradation": trial and trial.asdict()} for one, trial in ((o.asdict(), t) for o, t in pairs)
    ]
    made = {"dfd": __version__, "written": now.isoformat(timespec="seconds"), "model": model}
    write_json(path.with_suffix(".json"), made | {"threshold": detector.threshold, "images": found})
    write_text(path, page([_with_curve(*pair) for pair in pairs], "Probe: real or generated?", model))
    return path, path.with_suffix(".json")


def _with_curve(one: Examination, trial: stress.Trial | None) -> Examination:
    if trial is None or trial.base is None:
        return one
    return dataclasses.replace(one, pictures={"curve": stress.picture(trial), **one.pictures})
