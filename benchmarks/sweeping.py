"""The sweep of notebook 03 against its parts alone: decoding, the operators, and the bare networks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.measure import Row, against
from benchmarks.predicting import networks_alone, untrained
from dfd.core.images import load_rgb
from dfd.data import manifest
from dfd.degrade import compose, registry, to_tensor
from dfd.evaluate import robustness

CONDITIONS = ("jpeg 75", "webp 75", "double_jpeg 75", "blur 1", "noise 0.02", "rescale 0.5 bicubic", "gamma 0.7")


def rows(folder: Path, count: int, repeats: int) -> Iterator[Row]:
    """Photos and fakes in equal parts under some conditions; both stages see the fakes, stage 1 the photos too."""
    table = manifest.scan(folder, progress=False)
    attrs = table.attrs
    table = table.groupby("is_fake").head(count // 2)
    table.attrs = attrs
    detector, conditions = untrained(), registry.parse_all(CONDITIONS)
    stages = {"stage1": detector.stage1, "stage2": detector.stage2}
    paths = [folder / path for path in table["path"]]
    fakes = [folder / path for path in table.loc[table["is_fake"], "path"]]
    one, both = networks_alone(detector, paths), networks_alone(detector, fakes)

    def swept() -> None:
        with tempfile.TemporaryDirectory() as out:
            robustness.sweep(stages, table, conditions, out)

    def parts() -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            images = list(pool.map(load_rgb, paths))
            for condition in conditions:
                list(pool.map(lambda image, chain=condition.chain: compose(to_tensor(image), chain), images))
                one(("stage1",))
                both(("stage2",))

    what = f"sweep of {len(table)} images x {len(conditions)} conditions, bare: decoding, operators, networks"
    yield against(what, swept, parts, repeats)
