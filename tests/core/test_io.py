"""Files are whole or not there: after a full disk, a read-only folder, and one that vanished.

A full disk is /dev/full, linked to under the temporary name: every write to it fails as on a full disk, also those of
compiled libraries, and nobody needs to be root for it.
"""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from score_tables import stage1_table

from dfd.analysis import fingerprint
from dfd.core import io, runs
from dfd.data import manifest
from dfd.evaluate import scores
from dfd.inference import files


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.is_symlink()}


def fill(path):
    """Let the disk be full for this file, once."""
    path.with_name(path.name + io.PART).symlink_to("/dev/full")


WRITERS = {
    "text": ("a.txt", lambda folder, n: io.write_text(folder / "a.txt", f"{n}")),
    "long text": ("a.txt", lambda folder, n: io.write_text(folder / "a.txt", f"{n}" * 100_000)),
    "checkpoint": ("a.pt", lambda folder, n: files.save_checkpoint({"n": n}, folder / "a.pt")),
    "large checkpoint": ("a.pt", lambda folder, n: files.save_checkpoint(_large(n), folder / "a.pt")),
    "scores": (
        "scores_stage1.parquet",
        lambda folder, n: scores.save_scores(stage1_table([n], ["ProGAN"]), folder, "stage1"),
    ),
    "manifest": ("manifest.parquet", lambda folder, n: manifest.write(_manifest(n), folder)),
    "spectra": (fingerprint.SPECTRA, lambda folder, n: fingerprint.save_spectra(_prints(n), folder)),
}


def _large(n):
    return {"weights": torch.full((1_000_000,), float(n))}


def _manifest(n):
    table = pd.DataFrame({"path": [f"{n}.png"]})
    table.attrs = {"rejected": [], "root": "/"}
    return table


def _prints(n):
    return {"ProGAN": fingerprint.Fingerprint(np.zeros((8, 8, 3)), np.full((8, 8), float(n)), 1)}


@pytest.mark.parametrize("content", [b"", b'{"data": "x"', b"[]", b"7", b"\xff\xfe{"])
def test_a_damaged_record_is_named_with_the_remedy(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config.json is damaged \(.+\); take a copy, or delete it, and run again"):
        io.read_json(tmp_path / "config.json")


@pytest.mark.parametrize("name", ["a.parquet", "a.csv"])
def test_a_table_that_was_cut_is_named_with_the_remedy(name, tmp_path):
    with pytest.raises(FileNotFoundError):
        io.read_table(tmp_path / name)
    pd.DataFrame({"path": ["x"]}).to_parquet(tmp_path / "whole.parquet")
    content = (tmp_path / "whole.parquet").read_bytes()[:-20] if name == "a.parquet" else b""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged \(.+\); take a copy, or delete it"):
        io.read_table(tmp_path / name)
    assert io.read_table(tmp_path / "whole.parquet")["path"].tolist() == ["x"]


@pytest.mark.parametrize("home", [None, "/proc", "/nonexistent"])
def test_a_user_without_a_home_has_one_that_is_nobody_elses(home, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("DFD_CACHE")
    monkeypatch.setenv("HOME", home or "")
    if home is None:
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))  # nor a passwd entry
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) == tmp_path / f"dfd-{os.getuid()}")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    folder = tmp_path / f"dfd-{os.getuid()}"
    assert io.cache_folder() == io.cache_folder() == folder / ".cache" / "dfd"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert capsys.readouterr().err == f"There is no home that can be written to: {folder} is used.\n"


def test_a_temporary_home_of_another_user_is_not_used(tmp_path, monkeypatch):
    other = os.getuid() + 1
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    (tmp_path / f"dfd-{other}").mkdir()  # made by somebody else
    monkeypatch.setattr(os, "getuid", lambda: other)
    with pytest.raises(OSError, match="another user's; set HOME"):
        io.need_home()


@pytest.mark.parametrize("what", WRITERS)
def test_a_full_disk_leaves_the_file_before_it_whole_and_says_what_to_do(what, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_symlink", lambda path: False)  # a draft that is a link is refused, but this one
    name, write = WRITERS[what]
    write(tmp_path, 1)
    before = contents(tmp_path)
    fill(tmp_path / name)
    with pytest.raises(OSError, match="disk full; free some space.*what is done is kept.*" + name) as caught:
        write(tmp_path, 2)
    assert caught.value.errno == errno.ENOSPC
    assert contents(tmp_path) == before
    assert not (tmp_path / (name + io.PART)).exists()
    write(tmp_path, 2)  # with space again
    assert contents(tmp_path)[name] != before[name]


def test_a_folder_that_cannot_be_written_is_named():
    with pytest.raises(
        OSError, match=r"cannot be written, or is held by another program; .*choose another.*/sys/a.txt"
    ):
        io.write_text(Path("/sys/a.txt"), "x")  # nobody can write there, root neither


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="is no regular file, which it would take the place of"):
            io.write_text(path, "x")
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "a.txt.part").symlink_to(tmp_path / "mine")  # as a folder of somebody else may hold
    with pytest.raises(OSError, match="take another name"):
        io.write_text(tmp_path / "a.txt", "x")
    assert (tmp_path / "mine").read_text() == "mine"


def test_what_an_editor_leaves_beside_the_code_is_no_code(tmp_path, monkeypatch):
    (tmp_path / "templates").mkdir()
    (tmp_path / "a.py").write_text("1")
    monkeypatch.setattr(io, "TEMPLATES", tmp_path / "templates")
    digests = []
    for name in ("a.py", ".ipynb_checkpoints/a-checkpoint.py", "__pycache__/a.pyc", "app/b.py", "b.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("2")
        digests.append(io.code.__wrapped__())
    assert digests[0] == digests[1] == digests[2] == digests[3] != digests[4]


def test_a_folder_that_vanished_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder is gone; bring it back.*gone/a.txt"):
        io.write_text(tmp_path / "gone" / "a.txt", "x")


def test_an_error_about_another_file_keeps_its_words(tmp_path):
    with pytest.raises(FileNotFoundError, match="No such file.*other.png"), io.atomic_write(tmp_path / "a") as draft:
        draft.write_text("half")
        (tmp_path / "other.png").read_bytes()
    assert not list(tmp_path.iterdir())


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace

    def watched(descriptor):
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("renamed"), replace(*names)))
    io.write_text(tmp_path / "a.txt", "x")
    assert done == [str(tmp_path / "a.txt.part"), "renamed"]


def test_what_a_killed_run_left_is_overwritten_or_swept(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / (name + io.PART)).write_text("left by a run that was killed, and longer")
    io.write_text(tmp_path / "a.txt", "x")
    (tmp_path / runs.HOLDER).write_text("process 1")
    with runs.run_lock(tmp_path):
        pass
    (tmp_path / runs.LOCK).unlink(missing_ok=True)
    assert contents(tmp_path) == {"a.txt": b"x"}


def test_a_folder_where_no_run_was_killed_keeps_what_is_in_it(tmp_path, monkeypatch):
    """A browser's unfinished download has the same suffix; and a name on the command line may be no UTF-8."""
    monkeypatch.setattr(sys, "argv", ["dfd", os.fsdecode(b"caf\xe9.jpg")])
    (tmp_path / "ubuntu.iso.part").write_text("half")
    (tmp_path / "folder.part").mkdir()
    with runs.run_lock(tmp_path):
        assert "caf\\udce9.jpg" in (tmp_path / runs.HOLDER).read_text("utf-8")
    assert (tmp_path / "ubuntu.iso.part").read_text() == "half" and (tmp_path / "folder.part").is_dir()


def test_digest_is_that_of_the_content_and_not_of_order_or_container():
    weights = {"a": torch.ones(2, 3), "b": torch.zeros(2, dtype=torch.bfloat16)}
    same = io.digest(1, ["x", (2.5, None)], {"b": 2, "a": b"1"}, Path("p"), np.arange(3), weights)
    again = [np.arange(3), dict(reversed(weights.items()))]
    assert same == io.digest(1, ("x", [2.5, None]), {"a": b"1", "b": 2}, "p", *again)
    assert len(same) == 16 and int(same, 16)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", 1),
        ("ab", "abc"),
        ([1, 2], [2, 1]),
        (["ab"], ["a", "b"]),
        (b"1", "1"),
        (np.zeros(2, np.float32), np.zeros(1, np.float64)),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        ({"a": torch.zeros(2)}, {"a": torch.tensor([0.0, 1e-30])}),
        (float("nan"), 0.0),
    ],
)
def test_digest_tells_values_apart(one, other):
    assert io.digest(one) != io.digest(other) and io.digest(one) == io.digest(one)


def test_digest_is_the_same_in_another_process_and_has_no_doubt_about_what_it_hashes():
    script = "from dfd.core.io import digest; print(digest({'b': b'a'}, 'ü', 0.1))"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == io.digest({"b": b"a"}, "ü", 0.1)
    with pytest.raises(TypeError):
        io.digest(object())
