"""The scan of a data folder against decoding its files; the second scan, which decodes nothing; near-duplicates."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks import pictures
from benchmarks.measure import Row, against, in_turns
from dfd.data import manifest, splits

MANY, HASHES = 10_000, 100_000


def rows(folder: Path, repeats: int) -> Iterator[Row]:
    """First and second scan of a folder that may be small."""
    paths = sorted(folder.glob("*/*.*"))
    what = f"first scan of {len(paths)} files of 256 px, bare: Pillow decodes them on all cores"
    yield against(what, partial(first_scan, folder), partial(decode, paths), repeats, 0.85)
    (seconds,) = in_turns([partial(manifest.scan, folder, progress=False)], repeats)
    yield Row(f"second scan of {len(paths)} files", seconds, 0.5 if len(paths) >= MANY else None, "s")


def long_rows(root: Path) -> Iterator[Row]:
    """The same for 10,000 files, and near-duplicates among 100,000 hashes, of which a tenth has one."""
    yield from rows(pictures.folder(root / "many", MANY), 1)
    hashes = np.random.default_rng(0).integers(0, 256, (HASHES, splits.BITS // 8), dtype=np.uint8)
    hashes[: HASHES // 10] = hashes[-HASHES // 10 :] ^ (np.arange(splits.BITS // 8) < 7).astype(np.uint8)  # 7 bits
    table = pd.DataFrame({"phash": [row.tobytes().hex() for row in hashes]})
    (seconds,) = in_turns([partial(splits.components, table)], 1)
    yield Row(f"near-duplicates among {HASHES} hashes", seconds, 30, "s")


def first_scan(folder: Path) -> None:
    """Scan without a memory of earlier scans."""
    shutil.rmtree(os.environ["DFD_CACHE"], ignore_errors=True)
    manifest.scan(folder, progress=False)


def decode(paths: list[Path]) -> None:
    """Decode files with Pillow and nothing else, on all cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_load, paths))


def _load(path: Path) -> None:
    with Image.open(path) as image:
        image.load()
