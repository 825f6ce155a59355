"""What a run keeps: fingerprints that change when they should, and files that are written whole or not at all."""

import json
import subprocess

import pytest

from dfd.core import io, runs
from dfd.reports import runner


def test_a_fingerprint_changes_with_names_sizes_and_times_only(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"1")
    (tmp_path / "dangling").symlink_to("nowhere")
    seen = [runs.fingerprint(tmp_path), runs.fingerprint(tmp_path)]
    assert len(set(seen)) == 1
    (tmp_path / "a" / "x.png").write_bytes(b"12")
    seen.append(runs.fingerprint(tmp_path))
    (tmp_path / "a" / "x.png").rename(tmp_path / "a" / "y.png")
    seen.append(runs.fingerprint(tmp_path))
    assert len(set(seen)) == 3


def test_code_changes_with_the_source_of_cells_and_not_with_outputs(tmp_path):
    def code(source, outputs):
        path = tmp_path / "00_x.ipynb"
        path.write_text(json.dumps({"cells": [{"source": source, "outputs": outputs}]}))
        return runner.code_of(path)

    assert code("1", []) == code("1", ["one"]) != code("2", [])


def test_a_failed_write_leaves_the_file_before_it_and_nothing_else(tmp_path):
    io.write_text(tmp_path / "a.txt", "whole")
    with pytest.raises(UnicodeEncodeError):
        io.write_text(tmp_path / "a.txt", "half\ud800")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "whole")]


def test_the_commit_marks_changed_files(tmp_path):
    def git(*words):
        settings = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        return subprocess.run(
            ["git", "-C", tmp_path, *settings, *words], check=True, capture_output=True, text=True
        ).stdout

    assert runner.commit(tmp_path) is None
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "one")
    short = git("rev-parse", "--short", "HEAD").strip()
    assert runner.commit(tmp_path) == short
    (tmp_path / "a").write_text("2")
    assert runner.commit(tmp_path) == short + "+"


def test_the_environment_names_versions_and_device():
    found = runner.environment()
    assert found["packages"].keys() >= {"torch", "torchvision", "timm"} and found["device"] and found["cpus"] > 0
    json.dumps(found)


def test_fingerprint_sees_behind_links_and_survives_loops(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ProGAN").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    before = runs.fingerprint(tmp_path / "data")
    (tmp_path / "elsewhere" / "new.png").write_bytes(b"x")
    assert runs.fingerprint(tmp_path / "data") != before


def test_fingerprint_changes_with_a_provenance_table_above_the_folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.png").write_bytes(b"x")
    before = runs.fingerprint(tmp_path / "data")
    (tmp_path / "provenance.csv").write_text("file,source\nx.png,a\n")
    assert runs.fingerprint(tmp_path / "data") != before
