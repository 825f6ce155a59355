"""Fixtures that several test files share."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny networks: threads only wait for one another
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}  # the same on every machine

import shutil

import numpy as np
import pytest
import xdist
from PIL import Image

from dfd.config import CHECKPOINTS


def pytest_sessionstart(session):
    """Import what is slow here and in fixtures, not above: the process that hands tests out needs none of it."""
    if not xdist.is_xdist_controller(session):
        import matplotlib

        matplotlib.use("Agg")


def pytest_collection_finish():
    """Leave what imports made to no garbage collection: with all of it, one takes half a second, and trainings ask."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keep the scan cache of a test to itself, and out of the user's home."""
    monkeypatch.setenv("DFD_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def unprinted(request, monkeypatch):
    """Cases without a PDF, for a browser takes seconds each time, but in tests that are marked `printed`."""
    if not request.node.get_closest_marker("printed"):
        monkeypatch.setattr("dfd.app.case.write_pdf", lambda html, path: path.unlink(missing_ok=True))


@pytest.fixture
def closed():
    """Close a test's figures after it."""
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


@pytest.fixture
def case(tmp_path):
    """A folder for tiny notebooks, see cases.Case."""
    from cases import Case

    for name in ("notebooks", "images"):
        (tmp_path / name).mkdir()
    return Case(tmp_path / "notebooks", tmp_path / "images", tmp_path / "out")


@pytest.fixture
def run(tmp_path):
    """A run folder with two untrained checkpoints."""
    from networks import content

    from dfd.inference.files import save_checkpoint

    for stage, name in CHECKPOINTS.items():
        save_checkpoint(content(stage), tmp_path / name)
    return tmp_path


@pytest.fixture
def model(tmp_path, monkeypatch):
    """Two untrained checkpoints in the folder `run` of the working directory."""
    from networks import content

    from dfd.inference.files import save_checkpoint

    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for stage, name in CHECKPOINTS.items():
        save_checkpoint(content(stage), tmp_path / "run" / name)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A folder with 12 PNGs of each class, 64 to 96 px: smooth photos, and fakes with a texture of their own.

    ProGAN has a checkerboard of period 2, BigGAN stripes of period 4; so a small network can learn the difference.
    """
    folder = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    for label in ("RealPhotos", "ProGAN", "BigGAN"):
        (folder / label).mkdir()
        for number in range(12):
            height, width = rng.integers(64, 97, 2)
            rows, columns = np.mgrid[:height, :width]
            small = Image.fromarray(rng.integers(40, 216, (5, 5, 3), dtype=np.uint8))
            pixels = np.asarray(small.resize((int(width), int(height)), Image.Resampling.BICUBIC), dtype=float)
            texture = {
                "RealPhotos": np.zeros_like(rows),
                "ProGAN": (rows + columns) % 2 * 2 - 1,
                "BigGAN": columns // 2 % 2 * 2 - 1,
            }[label]
            pixels += 12 * texture[..., None] + rng.normal(0, 2, pixels.shape)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / label / f"{number:02}.png")
    return folder


@pytest.fixture(scope="session")
def three_generators(tiny_data, tmp_path_factory):
    """The folder of tiny_data with a third generator: StyleGAN2, with stripes of period 2 in rows."""
    folder = tmp_path_factory.mktemp("three") / "data"
    shutil.copytree(tiny_data, folder)
    (folder / "StyleGAN2").mkdir()
    for path in sorted((folder / "RealPhotos").iterdir()):
        pixels = np.asarray(Image.open(path), dtype=float)
        pixels += 12 * (np.arange(len(pixels)) % 2 * 2 - 1)[:, None, None]
        pixels = pixels[:, ::-1]  # not the photo again
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "StyleGAN2" / path.name)
    return folder
