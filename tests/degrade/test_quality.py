"""The quality that a label states is the one that the encoder used: read back from the files' quantisation tables."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from folders import scan
from PIL import Image

from dfd.app import evidence
from dfd.app.examine import examine
from dfd.core.images import subsampling
from dfd.data.crops import RealFakeDataset
from dfd.degrade import RandomDegrade, operators, registry
from dfd.evaluate import robustness
from dfd.inference import Detector
from dfd.train import bank

LUMINANCE = [  # the standard's Annex K, in its first two rows and columns enough to tell qualities apart
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
]  # fmt: skip


def table_of(quality):
    """The IJG's rule: the standard's table, scaled."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((np.array(LUMINANCE) * scale + 50) // 100, 1, 255).tolist()


QUALITIES = {tuple(table_of(quality)): quality for quality in range(1, 101)}


@pytest.fixture
def files(monkeypatch):
    """What the codecs wrote, (quality by the file's own table, chroma), in order."""
    written, opened = [], operators.Image.open

    def read(buffer):
        image = opened(buffer)
        if image.format == "JPEG":
            written.append((QUALITIES[tuple(image.quantization[0][:16])], subsampling(image)))
        return image

    monkeypatch.setattr(operators, "Image", SimpleNamespace(open=read, fromarray=Image.fromarray))
    return written


@pytest.fixture
def table(tiny_data, tmp_path):
    return scan(tiny_data, tmp_path / "scan").groupby("label").head(1).reset_index(drop=True)


def test_qualities_differ_by_their_tables():
    assert len(QUALITIES) > 90  # the best ones share tables of ones


def test_training_and_the_bank_write_the_quality_they_state(files, table, monkeypatch):
    off = dict.fromkeys(("p_history", "p_crop", "p_rescale", "p_blur", "p_gamma", "p_noise", "p_social", "p_webp"), 0.0)
    degrade, stated = RandomDegrade(**off, p_codec=1.0, p_double=0.4), []
    draw = RandomDegrade.draw
    monkeypatch.setattr(RandomDegrade, "draw", lambda self: stated.append(draw(self)) or stated[-1])
    data = RealFakeDataset(table, table.attrs["root"], 64, degrade, equalise_quality=77)
    torch.manual_seed(0)
    for index in [0, 1, 2] * 6:
        files.clear()
        data[index]
        ((name, quality, how),) = stated[-1]
        chroma = how.get("subsampling", "4:2:0")
        first = [(how["first"], chroma)] if name == "double_jpeg" else []
        assert files == [*first, (quality, chroma), (77, "4:2:0")]
    assert {chain[0][0] for chain in stated} == {"jpeg", "double_jpeg"}
    files.clear()
    settings = SimpleNamespace(crop_size=64, equalise=False, equalise_quality=90, random_views=0, degrade=True)
    bank.Views(table, settings)[0]
    assert [quality for quality, _ in files] == [condition.level for condition in bank.CONDITIONS[1:]] == [95, 75, 50]


def test_sweep_and_probe_write_the_quality_they_state(files, table, run, tmp_path):
    detector = Detector.load(run)
    last = detector.stage1.equalise_quality
    for text, stated in (("jpeg 30", [30]), ("jpeg 85 4:4:4", [85]), ("double_jpeg 60 first=80", [80, 60]),
                         ("social 70 factor=0.9", [70])):  # fmt: skip
        files.clear()
        conditions = [registry.parse(text)]
        robustness.sweep({"stage1": detector.stage1}, table[:1], conditions, tmp_path / text.replace(" ", "_"), crops=2)
        assert [quality for quality, _ in files] == [*stated, last, last][: len(files)] and len(files) > len(stated)
        assert files[0][1] == ("4:4:4" if "4:4:4" in text else "4:2:0")
    examination = examine(detector, f"{table.attrs['root']}/{table['path'][0]}", crops=1)
    files.clear()
    list(evidence.trace(detector, examination))
    seen = [quality for quality, _ in files if quality != last]
    assert set(seen) == {*evidence.QUALITIES} - {None, last}
