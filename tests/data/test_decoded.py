"""Decoded images in memory: the same pixels, from files that are read once."""

import contextlib
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dfd.core.images import ImageError
from dfd.data.crops import Decoded, read_pixels


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        pixels = rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return pd.DataFrame({"path": [f"{i}.png" for i in range(6)], "width": 30, "height": [20 + i for i in range(6)]})


def test_pixels_are_those_of_the_file_and_it_is_read_once(table, tmp_path):
    decoded = Decoded(table, tmp_path, 1e6)
    paths = [tmp_path / path for path in table["path"]]
    truth = [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths]
    assert all(torch.equal(decoded(path), pixels) for path, pixels in zip(paths, truth, strict=True))
    for path in paths:
        path.unlink()
    assert all(torch.equal(decoded(path), pixels) for path, pixels in zip(paths, truth, strict=True))


@pytest.mark.parametrize(("limit", "expected"), [(0, 0), (3 * 30 * 25 * 2, 2), (3 * 30 * 135, 6)])
def test_no_more_is_kept_than_the_limit(table, tmp_path, limit, expected):
    decoded = Decoded(table, tmp_path, limit)
    paths = [tmp_path / path for path in table["path"]]
    for path in paths:
        decoded(path)
        path.unlink()
    kept = 0
    for path in paths:
        with contextlib.suppress(ImageError):
            kept += len(decoded(path)) // 3
    assert kept == expected and len(decoded.memory) <= max(limit + 6, 1)


def test_what_a_forked_process_decodes_is_there_for_all(table, tmp_path):
    decoded = Decoded(table, tmp_path, 1e6)
    paths = [tmp_path / path for path in table["path"]]
    truth = [read_pixels(path) for path in paths]
    child = torch.multiprocessing.get_context("fork").Process(target=lambda: [decoded(path) for path in paths])
    child.start()
    child.join()
    for path in paths:
        path.unlink()
    assert all(torch.equal(decoded(path), pixels) for path, pixels in zip(paths, truth, strict=True))


def test_a_file_of_another_size_than_when_scanned_is_given_as_it_is(table, tmp_path):
    decoded = Decoded(table, tmp_path, 1e6)
    Image.new("RGB", (11, 12), "red").save(tmp_path / "3.png")
    assert decoded(tmp_path / "3.png").shape == (3, 12, 11)
    neighbours = [decoded(tmp_path / f"{i}.png") for i in (2, 4)]
    assert all(
        torch.equal(seen, read_pixels(tmp_path / f"{i}.png")) for i, seen in zip((2, 4), neighbours, strict=True)
    )


def test_a_copy_for_a_process_that_is_not_forked_reads_the_files(table, tmp_path):
    decoded = pickle.loads(pickle.dumps(Decoded(table, tmp_path, 1e6)))
    assert torch.equal(decoded(tmp_path / "0.png"), read_pixels(tmp_path / "0.png"))


def test_a_broken_file_stays_an_error(table, tmp_path):
    decoded = Decoded(table, tmp_path, 1e6)
    (tmp_path / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    for _ in range(2):
        with pytest.raises(ImageError, match="1.png"):
            decoded(tmp_path / "1.png")
