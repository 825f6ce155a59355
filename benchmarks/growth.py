"""How time and memory grow with the number of images; networks are tiny, so that the rest counts."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from benchmarks import memory, pictures, predicting
from benchmarks.measure import Row
from dfd import config

SIZES = (100, 1_000, 10_000)
SIDE = 64  # pixels
BAR = 1.05  # exponent from the second size to the third
MODEL = {"backbone": "test_efficientnet.r160_in1k", "unet_width": 4}
PICTURE = config.ROOT / "reports" / "growth.png"


def rows(root: Path, sizes: tuple[int, ...] = SIZES) -> Iterator[Row]:
    """Two rows a kind of work: the exponent of its time between the larger sizes, and how much its memory grew."""
    images, measured = pictures.folder(root / "growth", max(sizes), SIDE), []
    for what, work in WORK.items():
        for size in sizes:
            with tempfile.TemporaryDirectory() as out:
                peak, seconds = memory.alone(partial(work, images, size, Path(out)))
            measured.append({"what": what, "images": size, "seconds": seconds, "GiB": peak})
        (less, more), (n, m) = measured[-2:], sizes[-2:]
        exponent = float(np.log(more["seconds"] / less["seconds"]) / np.log(m / n))
        yield Row(f"{what}, {n} to {m} images: exponent", exponent, BAR, "", more["seconds"])
        yield Row(f"{what}, {m} images: peak memory, of that for {n}", more["GiB"] / less["GiB"], unit="times")
    draw(pd.DataFrame(measured))


def draw(measured: pd.DataFrame) -> None:
    """Seconds and peak memory over the number of images, a line a kind of work."""
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    for ax, column, label in zip(axes, ("seconds", "GiB"), ("seconds", "peak memory, GiB"), strict=True):
        for marker, (what, part) in zip(cycle("os^DvP"), measured.groupby("what", sort=False), strict=False):
            ax.plot(part["images"], part[column], marker=marker, label=what)
        ax.set(xscale="log", xlabel="images", ylabel=label)
    axes[0].set_yscale("log")
    axes[1].set_ylim(0, None)
    axes[1].legend(loc="lower center", ncols=3, fontsize=9)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110)
    plt.close(figure)


def scan(images: Path, count: int, out: Path) -> None:
    """First scan of a folder with that many of the files, as links."""
    from dfd.data import manifest

    os.environ["DFD_CACHE"] = str(out / "cache")
    for path in _paths(images, count):
        (link := out / "data" / path.parent.name / path.name).parent.mkdir(parents=True, exist_ok=True)
        link.hardlink_to(path)
    assert len(manifest.scan(out / "data", progress=False)) == count


def predict(images: Path, count: int, out: Path) -> None:
    """Verdicts of both stages."""
    assert sum(v.error is None for v in predicting.untrained(**MODEL).predict(_paths(images, count))) == count


def sweep(images: Path, count: int, out: Path) -> None:
    """Stage 1 on the images as they are and under two conditions."""
    from dfd.degrade import registry
    from dfd.evaluate import robustness

    stages = {"stage1": predicting.untrained(**MODEL).stage1}
    swept = robustness.sweep(stages, _table(images, count), registry.parse_all(["jpeg 75", "blur 1"]), out)
    assert len(swept["stage1"]) == 3 * count  # and as it is


def bank(images: Path, count: int, out: Path) -> None:
    """The views of the feature bank, with a mean in place of the backbone."""
    from dfd.train.bank import build

    backbone = SimpleNamespace(head=SimpleNamespace(in_features=3), forward_features=lambda x: x.mean((2, 3)), to=id)
    with contextlib.redirect_stderr(io.StringIO()):  # whose bar would stand among the rows
        built = build(_table(images, count), config.Stage1(out=str(out), workers=2), backbone)
    assert len(built) == count


def case(images: Path, count: int, out: Path) -> None:
    """A case file with a page an image."""
    from dfd.app.case import opened
    from dfd.app.examine import examine_or_refuse

    detector = predicting.untrained(**MODEL)
    with opened(out / "case", detector, {}) as made:
        for path in _paths(images, count):
            made.add(examine_or_refuse(detector, path, str(path)))
        made.finish()
    assert len(made.record["inputs"]) == count


def score(images: Path, count: int, out: Path) -> None:
    """Ray Data with one worker, its start included."""
    from dfd.inference.files import save_checkpoint
    from dfd.scale.score import Options
    from dfd.scale.score import score as judge

    (out / "model").mkdir()
    for content in predicting.contents(**MODEL):
        save_checkpoint(content, out / "model" / config.CHECKPOINTS[content["stage"]])
    (out / "images.txt").write_text("\n".join(map(str, _paths(images, count))))
    assert judge([str(out / "images.txt")], str(out / "scores"), out / "model", Options(workers=1))[0] == count


def _paths(images: Path, count: int) -> list[Path]:
    return sorted(images.glob("*/*"), key=lambda path: path.stem)[:count]


def _table(images: Path, count: int) -> pd.DataFrame:
    """A manifest by hand, for its scan is not measured here."""
    paths = [f"{path.parent.name}/{path.name}" for path in _paths(images, count)]
    table = pd.DataFrame({"path": paths, "label": [path.split("/")[0] for path in paths], "split": "test"})
    table = table.assign(is_fake=table["label"] != config.REAL, group=paths, sha256=paths, width=SIDE, height=SIDE)
    table.attrs["root"] = str(images)
    return table


WORK: dict[str, Callable[[Path, int, Path], None]] = {
    "scan": scan, "predict": predict, "score": score, "sweep": sweep, "feature bank": bank, "case": case}  # fmt: skip
