"""What a scan remembers of earlier ones."""

import errno
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
from bad_files import picture
from folders import classes, fill, scan

from dfd.core import images, runs
from dfd.data import layouts, manifest, splits
from dfd.data.manifest import ScanCache


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def decoded(monkeypatch):
    """The paths that were decoded, in any order."""
    seen, original = [], images.inspect

    def inspect(path):
        seen.append(Path(path).name)
        return original(path)

    monkeypatch.setattr(images, "inspect", inspect)
    return seen


def test_splits_that_lack_a_class_are_not_remembered(data):
    classes(data, 6)
    (data / "groups.csv").write_text("path,group\n" + "".join(f"ProGAN/{i}.png,all\n" for i in range(6)))
    assert splits.gaps(scan(data))
    (data / "groups.csv").unlink()
    assert not splits.gaps(table := scan(data))
    assert scan(data)["split"].equals(table["split"])


def test_a_class_that_is_too_small_moves_no_image_of_the_others(data):
    classes(data, 12, names=("RealPhotos", "ProGAN"))
    fill(data / "BigGAN", 2, start=50)
    before = scan(data).set_index("path")["split"]
    classes(data, 6, start=20, names=("RealPhotos", "ProGAN"))
    fill(data / "BigGAN", 1, start=60)
    after = scan(data)
    of_others = before.filter(regex="RealPhotos|ProGAN")
    assert after.set_index("path")["split"][of_others.index].equals(of_others) and not splits.gaps(after)


def test_second_scan_decodes_only_what_changed(data, decoded):
    classes(data)
    (data / "ProGAN" / "bad.jpg").write_bytes(b"no image")
    first = scan(data)
    assert len(decoded) == 19
    decoded.clear()
    pd.testing.assert_frame_equal(scan(data), first)
    assert decoded == []
    picture(1234).save(data / "ProGAN" / "3.png")
    fill(data / "BigGAN", 1, start=6)
    scan(data)
    assert sorted(decoded) == ["3.png", "6.png"]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, MemoryError])
def test_stopped_scan_keeps_what_it_has(data, monkeypatch, decoded, interrupt):
    classes(data)
    original = images.inspect

    def inspect(path):
        if len(decoded) == 11:  # in the middle of a batch
            raise interrupt
        return original(path)

    with monkeypatch.context() as patch:
        patch.setattr(images, "inspect", inspect)
        patch.setattr(manifest, "BATCH", 5)
        patch.setattr(runs, "cores", lambda: 1)
        with pytest.raises(interrupt):
            scan(data)
    decoded.clear()
    scan(data)
    assert len(decoded) == 18 - 10


def test_broken_or_unwritable_cache_is_named_with_the_remedy(data, tmp_path, monkeypatch):
    classes(data)
    with closing(ScanCache(data)) as cache:
        path = cache.path
    whole = path.read_bytes()
    for content in (b"no database" * 1000, whole[:3000], whole[: len(whole) // 2] + bytes(len(whole) // 2)):
        path.write_bytes(content)
        with pytest.raises(OSError, match=f"the cache {path} cannot be used .*delete the file, or set DFD_CACHE"):
            scan(data)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DFD_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="set DFD_CACHE"):
        scan(data)


def test_full_disk_is_named(data, tmp_path, monkeypatch):
    with closing(ScanCache(data)) as cache:
        cache.connection.execute("PRAGMA max_page_count = 6")
        with pytest.raises(OSError, match="disk is full.*free some space"):
            cache.store({"a": "x" * 100_000})
    classes(data)
    table = scan(data, tmp_path / "out")
    before = (tmp_path / "out" / "manifest.parquet").read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(OSError, match="disk full; free some space"):
        manifest.write(table, tmp_path / "out")
    assert (tmp_path / "out" / "manifest.parquet").read_bytes() == before
    assert not list((tmp_path / "out").glob("*.part"))


def test_cache_holds_whole_batches(data):
    with closing(ScanCache(data)) as cache:
        cache.store({"a": "b"})
        with pytest.raises(OSError, match="cannot be used"):
            cache.store({"c": "d", "e": ["no text"]})
        with closing(ScanCache(data)) as other:  # what another process sees, or what a kill would leave
            assert other.entries == {"a": "b"}


def test_what_an_earlier_description_learnt_is_not_trusted_but_its_splits_stay(data, decoded, monkeypatch):
    classes(data, 10)
    first = scan(data).set_index("path").split
    decoded.clear()
    monkeypatch.setattr(images, "DESCRIPTION", images.DESCRIPTION + " and more")
    fill(data / "ProGAN", 5, start=10)
    second = scan(data).set_index("path").split
    assert len(decoded) == 35
    assert (second[first.index] == first).all()


def test_what_may_be_read_by_now_is_not_what_was_seen(data, monkeypatch):
    classes(data)
    before = layouts.fingerprint(data)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "0.png")
    assert layouts.fingerprint(data) != before


@pytest.mark.parametrize(("module", "name"), [(images, "inspect"), (splits, "separate")])
def test_a_second_scan_of_the_folder_may_come_and_go_during_the_first(module, name, data, monkeypatch):
    classes(data)
    original, connect, calls = getattr(module, name), sqlite3.connect, []

    def watched(*given):
        calls.append(name)
        if len(calls) == {"inspect": 12, "separate": 1}[name]:
            assert len(scan(data, seed=1)) == 18
        return original(*given)

    monkeypatch.setattr(module, name, watched)
    monkeypatch.setattr(sqlite3, "connect", lambda path, timeout: connect(path, timeout=0.5))
    monkeypatch.setattr(runs, "cores", lambda: 1)
    assert len(scan(data)) == 18 and len(calls) > 1
    with closing(ScanCache(data)) as cache:
        assert [sum(key.startswith(f"split seed {seed},") for key in cache.entries) for seed in (0, 1)] == [18, 18]
