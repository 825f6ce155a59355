"""The folder of parts, and the worker that writes them, without Ray: whole files, resumed units, images that kill."""

import dataclasses
import json
import os
import pickle

import bad_files
import fsspec
import pandas as pd
import pytest
from networks import checkpoint

from dfd.config import CHECKPOINTS
from dfd.inference.detector import Detector, Verdict
from dfd.inference.stage import save_checkpoint
from dfd.scale import parts, scoring
from dfd.scale import units as units_module
from dfd.scale.inputs import Inputs
from dfd.scale.parts import Parts, begun, finished, part_name
from dfd.scale.scoring import Job, Scorer


@pytest.fixture
def model(tmp_path):
    """A run folder with untrained networks."""
    (tmp_path / "run").mkdir()
    for stage, name in CHECKPOINTS.items():
        save_checkpoint(checkpoint(stage, crop_size=32, crops=2), tmp_path / "run" / name)
    return tmp_path / "run"


@pytest.fixture
def scorer(model, tmp_path):
    contents = {name: (model / name).read_bytes() for name in CHECKPOINTS.values()}
    return lambda **options: Scorer(contents, Job(str(tmp_path / "out"), threshold=0.5, **options))


def fill(folder, count=7):
    folder.mkdir()
    for number in range(count):
        bad_files.picture(number, 60, 50).save(folder / f"{number}.png")
    return folder


def score(scorer, folder):
    units = enumerate(Inputs((str(folder),)).units(scorer.job.part_size))
    return [written for number, unit in units for written in scorer(number, unit)]


def rows(folder):
    return pd.read_parquet(folder).set_index("path").sort_index()


def test_the_rows_are_what_predict_says_of_good_and_bad_files(scorer, model, tmp_path):
    bad_files.make(tmp_path / "in")
    one = scorer(part_size=16)
    written = score(one, tmp_path / "in")
    table = rows(tmp_path / "out")
    assert table.index.is_unique and len(table) == sum(images for images, _ in written) > 40
    assert sum(refused for _, refused in written) == table.error.notna().sum() > 20
    found = [item for unit in Inputs((str(tmp_path / "in"),)).units(99) for item in unit.files]
    for item, expected in zip(found, Detector.load(model).predict(one.address for one in found), strict=True):
        row = table.loc[item.name]
        assert (None if pd.isna(row.error) else row.error) == expected.error
        if expected.error:
            assert row.drop(["error", "candidates"]).isna().all() and row.candidates is None
        else:
            assert row[["p_fake", "crop_std"]].tolist() == pytest.approx([expected.p_fake, expected.crop_std], abs=1e-5)
            assert [row.p_BigGAN, row.p_ProGAN] == pytest.approx(list(expected.p_source.values()), abs=1e-5)
            assert (row.is_fake, row.source, row.crops) == (expected.is_fake, expected.source, expected.crops)
            assert tuple(row.candidates) == expected.candidates


def test_batches_and_the_limit_on_what_is_held_change_nothing(scorer, tmp_path, monkeypatch):
    tables = []
    for held, options in ((scoring.HELD, {}), (1, {"batch_size": 3})):
        monkeypatch.setattr(scoring, "HELD", held)
        score(scorer(part_size=3, **options), tmp_path / "in" if tables else fill(tmp_path / "in"))
        tables.append(rows(tmp_path / "out").drop(columns="candidates"))
        for path in (tmp_path / "out").iterdir():
            path.unlink()
    pd.testing.assert_frame_equal(*tables, atol=1e-5)


def test_a_unit_goes_on_with_its_next_part(scorer, tmp_path):
    from test_inputs import shard

    (tmp_path / "in").mkdir()
    members = [(f"{i}.png", bad_files.encoded(bad_files.picture(i, 60, 50), "PNG")) for i in range(7)]
    shard(tmp_path / "in" / "s.tar", members)
    one = scorer(part_size=3)
    assert score(one, tmp_path / "in") == [(3, 0), (3, 0), (1, 0)]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert [name[21:] for name in names] == ["0000.parquet", "0001.parquet", "0002-last.parquet"]
    whole = rows(tmp_path / "out").drop(columns="candidates")
    assert finished(names) == {0} and finished(names[:2]) == finished(names[1:]) == set()
    (tmp_path / "out" / names[1]).unlink()
    kept = (tmp_path / "out" / names[0]).stat().st_mtime_ns
    assert score(one, tmp_path / "in") == [(3, 0)]
    assert (tmp_path / "out" / names[0]).stat().st_mtime_ns == kept
    pd.testing.assert_frame_equal(rows(tmp_path / "out").drop(columns="candidates"), whole)
    assert score(one, tmp_path / "in") == []


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (lambda data: data[: len(data) // 3], "damaged after 2 images: unexpected end of data"),
        (lambda data: data[:100], "not a tar archive, or damaged from the beginning: truncated header"),
        (None, "ends earlier than it did before"),
    ],
)
def test_a_unit_that_breaks_off_where_it_was_scored_before_says_so_in_a_row(end, reason, scorer, tmp_path):
    from test_inputs import shard

    (tmp_path / "in").mkdir()
    members = [(f"{i}.png", bad_files.encoded(bad_files.picture(i, 60, 50), "PNG")) for i in range(7)]
    archive, out = tmp_path / "in" / "s.tar", tmp_path / "out"
    shard(archive, members)
    whole, one = archive.read_bytes(), scorer(part_size=3)
    score(one, tmp_path / "in")
    next(out.glob("*-last.parquet")).unlink()  # as if killed after its second part
    archive.write_bytes(end(whole)) if end else shard(archive, members[:3])
    assert score(one, tmp_path / "in") == [(1, 1)] and finished(os.listdir(out)) == {0}
    assert score(one, tmp_path / "in") == []
    assert rows(out).error.dropna().to_dict() == {str(archive): reason} and len(rows(out)) == 7
    next(out.glob("*-last.parquet")).unlink()  # what --retry removes
    archive.write_bytes(whole)
    assert score(one, tmp_path / "in") == [(1, 0)]
    assert len(rows(out)) == 7 and rows(out).error.isna().all()


def test_a_unit_that_breaks_off_before_a_part_that_was_removed_is_scored_in_the_end(scorer, tmp_path):
    from test_inputs import shard

    (tmp_path / "in").mkdir()
    members = [(f"{i}.png", bad_files.encoded(bad_files.picture(i, 60, 50), "PNG")) for i in range(7)]
    archive, out = tmp_path / "in" / "s.tar", tmp_path / "out"
    shard(archive, members)
    whole, one = archive.read_bytes(), scorer(part_size=3)
    score(one, tmp_path / "in")
    next(out.glob("*-0001.parquet")).unlink()
    archive.write_bytes(whole[:100])
    assert score(one, tmp_path / "in") == [(1, 1)] and finished(os.listdir(out)) == {0}
    next(out.glob("*-0001-last.parquet")).unlink()
    archive.write_bytes(whole)
    assert score(one, tmp_path / "in") == [(3, 0)] and finished(os.listdir(out)) == {0}
    assert len(rows(out)) == 7 and rows(out).error.isna().all()


def test_a_unit_that_fits_its_parts_exactly_ends_with_the_last(scorer, tmp_path):
    assert score(scorer(part_size=3), fill(tmp_path / "in", 6)) == [(3, 0), (3, 0)]
    assert finished(os.listdir(tmp_path / "out")) == {0, 1}


def test_part_names_say_what_is_there():
    names = [part_name(3, "0a1b2c3d", 0, True), part_name(12, "ffffffff", 0, False), "_score.json", "notes.parquet"]
    assert begun(names) == {3: "0a1b2c3d", 12: "ffffffff"}
    assert finished(names) == {3}


def test_a_part_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = Parts(str(tmp_path / "out"))
    folder.put("a", b"first")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        folder.put("a", b"second")
    assert os.listdir(tmp_path / "out") == ["a"] and folder.read("a") == b"first"


@pytest.mark.parametrize("is_store", [True, False])
def test_on_other_file_systems_it_is_one_put_or_a_draft_and_a_move(is_store, monkeypatch):
    fs = fsspec.filesystem("memory")
    written, pipe = [], type(fs).pipe_file
    monkeypatch.setattr(type(fs), "pipe_file", lambda self, path, data: written.append(path) or pipe(self, path, data))
    monkeypatch.setattr(parts, "is_store", lambda fs: is_store)
    folder = Parts("memory://scores")
    folder.put("a", b"1")
    folder.put("a", b"2")
    assert folder.read("a") == b"2" and folder.names() == {"a"}
    folder.remove("a")
    monkeypatch.setattr(parts.interruption, "alone", lambda path: pytest.fail("a lock on this machine's disk"))
    with folder.alone():
        assert folder.names() == set()
    assert all((path == "/scores/a") == is_store for path in written)
    fs.store.clear()


def test_which_stores_need_no_draft():
    assert parts.is_store(fsspec.get_filesystem_class("s3")()) and not parts.is_store(fsspec.filesystem("memory"))


RECORD = {"networks": ["a", "b"], "threshold": 0.5, "crops": None, "crop_mode": None, "part_size": 4}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"networks": ["a", "c"]}, "was scored by other networks, m; take another --out"),
        ({"threshold": 0.7}, "was scored with threshold 0.5, not 0.7; take"),
        ({"part_size": 5, "crops": 9}, "was scored with crops None, not 9 and part size 4, not 5; take"),
    ],
)
def test_a_folder_of_another_model_or_threshold_is_refused(change, text, tmp_path):
    folder = Parts(str(tmp_path / "out"))
    folder.begin(RECORD | {"model": "m"}, scoring.SAME)
    folder.begin(RECORD, scoring.SAME)
    with pytest.raises(ValueError, match=text):
        folder.begin(RECORD | change, scoring.SAME)


def test_a_folder_with_other_things_a_file_and_a_damaged_record_are_refused(tmp_path):
    (tmp_path / "mine.parquet").write_bytes(b"x")
    with pytest.raises(FileExistsError, match="holds files that `score` did not write"):
        Parts(str(tmp_path)).begin(RECORD, scoring.SAME)
    with pytest.raises(FileExistsError, match="holds files that"), Parts(str(tmp_path)).alone():
        pass
    assert os.listdir(tmp_path) == ["mine.parquet"]  # no lock either
    with pytest.raises(ValueError, match="is a file; --out is a folder"):
        Parts(str(tmp_path / "mine.parquet")).begin(RECORD, scoring.SAME)
    (tmp_path / "_score.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        Parts(str(tmp_path)).begin(RECORD, scoring.SAME)


def test_a_run_that_was_killed_in_its_first_write_goes_on(tmp_path, monkeypatch):
    folder = Parts(str(tmp_path))
    with monkeypatch.context() as patch:
        for name in ("replace", "unlink"):
            patch.setattr(os, name, killed)
        with pytest.raises(Killed):
            folder.begin(RECORD, scoring.SAME)
    assert [name[:13] for name in os.listdir(tmp_path)] == ["._score.json."]
    folder.begin(RECORD, scoring.SAME)
    assert folder.record() == RECORD


def test_counts_come_from_the_footers(tmp_path):
    folder = Parts(str(tmp_path))
    verdicts = [Verdict("a", error="damaged"), Verdict("b", True, 0.9, "X", {"X": 1.0}, ("X",), 5, 0.1)]
    folder.put("p", parts.table(verdicts, ["X"]))
    assert list(folder.counts(["p"])) == [("p", 2, 1)]
    folder.put("q", b"PAR1 no more")
    with pytest.raises(OSError, match="q cannot be used"):
        list(folder.counts(["q"]))


class Killed(BaseException):
    """The end of a process: nothing that runs after it leaves a trace."""


def killed(*args):
    raise Killed


def test_an_image_that_kills_every_worker_becomes_a_row_and_the_others_are_scored(scorer, tmp_path, monkeypatch):
    (unit,) = Inputs((str(fill(tmp_path / "in", 5)),)).units(16)
    load = units_module.load

    def deadly(item):
        if item.name.endswith("3.png"):
            raise Killed
        return load(item)

    with monkeypatch.context() as patch:
        patch.setattr(units_module, "load", deadly)
        for _ in range(2 * scoring.DEATHS):
            with pytest.raises(Killed):
                list(scorer()(0, unit))
            assert not finished(os.listdir(tmp_path / "out"))
        assert list(scorer()(0, unit)) == [(5, 1)]
    name = part_name(0, unit.key(), 0, True)
    assert os.listdir(tmp_path / "out") == [name]
    table = rows(tmp_path / "out")
    assert table.error.dropna().to_dict() == {str(tmp_path / "in/3.png"): "2 workers died while they had it in hand"}
    (tmp_path / "out" / name).unlink()
    list(scorer()(0, unit))
    good = table.error.isna()
    assert table.p_fake[good].tolist() == pytest.approx(rows(tmp_path / "out").p_fake[good].tolist(), abs=1e-5)


def test_a_worker_killed_for_another_reason_makes_no_image_bad(scorer, tmp_path):
    """Once at a part, later once at an image: both are forgiven."""
    (unit,) = Inputs((str(fill(tmp_path / "in", 3)),)).units(16)
    one = scorer()
    mark = scoring.MARK + part_name(0, unit.key(), 0, False)
    one.parts.put(mark, json.dumps({"begun": 2, "at": 1, "deaths": {}}).encode())
    assert list(one(0, unit)) == [(3, 0)]
    assert os.listdir(tmp_path / "out") == [part_name(0, unit.key(), 0, True)]


def test_a_job_is_plain_values():
    assert pickle.loads(pickle.dumps(Job("out"))) == Job("out") == Job(**dataclasses.asdict(Job("out")))
