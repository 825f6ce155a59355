"""predict as a person calls it: files, folders and patterns in; table, CSV and page out; interrupted and resumed."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from bad_files import encoded, picture
from click.testing import CliRunner
from networks import noise

from dfd import cli, config
from dfd.config import CHECKPOINTS
from dfd.core import runs
from dfd.data.layouts import find, find_images
from dfd.inference.files import update_checkpoint


@pytest.fixture
def call(model, tmp_path):
    """Run predict with tiny networks in a folder that holds three images and one that is none."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b,\n.png", "deep/=c.jpg")):
        (tmp_path / "in" / name).write_bytes(encoded(noise(70, 60, number), "PNG"))
    (tmp_path / "in" / "not.png").write_bytes(b"<svg/>")
    return lambda *words: CliRunner().invoke(cli.main, ["predict", "--model", "run", *words])


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_patterns_folders_and_files_stand_beside_each_other(call):
    assert find_images(["in/*.png"]) == ["in/a.png", "in/b,\n.png", "in/not.png"]
    assert find_images(["in/**/*.*g", "gone.png"])[-2:] == ["in/not.png", "gone.png"]
    assert find_images(["i[n]"]) == find_images(["in"]) == find_images("in")
    with pytest.raises(FileNotFoundError, match="no file matches"):
        find_images(["in/*.tiff"])


def test_no_name_begins_a_formula_in_a_table(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "in")
    names = ["=HYPERLINK(0).png", "+1.png", "-1.png", "@a.png"]
    for name in names:
        Path("a.png").rename(name)
        assert find_images(["*.png"])[0] == f"./{name}" == find_images(["."])[0].replace("././", "./")
        Path(name).rename("a.png")
    assert find_images(["-", "/x/=1.png", "=gone.png", ""]) == ["-", "/x/=1.png", "./=gone.png", ""]
    (tmp_path / "in" / "sub\x1b[1m").mkdir()
    (tmp_path / "in" / "sub\x1b[1m" / "a.png").write_bytes(Path("a.png").read_bytes())
    (tmp_path / "in" / "sub\x1b[1m" / "notes.txt").touch()
    find_images(["sub*"], tell=(lines := []).append)
    assert lines == [r"sub\x1b[1m: 1 hidden or no images, left out ('notes.txt')"]


def test_an_image_is_one_by_what_it_holds_and_the_rest_is_told(tmp_path):
    folder, image = tmp_path / "RealPhotos", encoded(picture(0), "JPEG")
    images = ["a.jfif", "hash_without_suffix", "picture.jpg~", "tweet.jpg_large"]
    others = [".DS_Store", "._a.jpg", "@eaDir/a.jpg", ".thumbnails/t.png", "__MACOSX/._a.jpg", "Thumbs.db", "notes.txt"]
    for name in [*images, *others]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image if name in images or "/" in name else b"\0\5\x16\7")
    lines = []
    assert find_images([str(folder)], tell=lines.append) == [f"{folder}/{name}" for name in images]
    names = "'.DS_Store', '._a.jpg', '.thumbnails', '@eaDir', 'Thumbs.db', '__MACOSX', 'notes.txt'"
    assert lines == [f"{folder}: 7 hidden or no images, left out ({names})"]
    listing = find(tmp_path)  # a scan opens the rest, and names each with its reason
    opened = {path.removeprefix("RealPhotos/") for path, *_ in listing.files}
    assert opened == {*images, "notes.txt"}
    refused = {row["path"].removeprefix("RealPhotos/") for row in listing.rejected}
    assert refused == {".DS_Store", "._a.jpg", "Thumbs.db", ".thumbnails", "@eaDir", "__MACOSX"}


def test_a_folder_is_entered_as_by_a_scan_and_what_cannot_be_read_is_a_row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = os.fsdecode(b"\xe9")
    for name in (".git/x.png", "folder.png/x.png", "closed/x.png", f"{odd}/x.png", ".y.png", "z.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"")
    os.symlink("..", tmp_path / "in" / "up")
    os.symlink("gone", tmp_path / "in" / "broken.png")
    original = os.scandir

    def scandir(path):
        if os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied", path)
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    expected = [".y.png", "broken.png", "closed", "folder.png", f"{odd}/x.png"]
    assert find_images(["in"]) == [f"in/{name}" for name in expected]


def test_the_exit_code_says_whether_a_file_was_refused(call):
    assert call("in/a.png").exit_code == 0
    result = call("--json", "in")
    assert result.exit_code == 1 and "1 of 4 images were refused" in result.stderr
    assert [json.loads(line)["error"] is None for line in result.stdout.splitlines()] == [True, True, True, False]
    assert call("--crops", "0", "in").exit_code == 2


def test_csv_holds_what_json_says(call):
    result = call("--json", "--csv", "out.csv", "in")
    for row, line in zip(rows("out.csv"), result.stdout.splitlines(), strict=True):
        answer = json.loads(line)
        assert row["path"] == answer["path"] and row["error"] == (answer["error"] or "")
        if not answer["error"]:
            assert float(row["p_fake"]) == answer["p_fake"] and row["is_fake"] == str(answer["is_fake"])
            assert float(row["p_source.ProGAN"]) == answer["p_source"]["ProGAN"]
            assert json.loads(row["candidates"]) == answer["candidates"]


def test_resume_skips_what_the_journal_has_and_mends_half_a_line(call, tmp_path):
    whole = call("--csv", "whole.csv", "in")
    assert whole.exit_code == 1
    assert call("--csv", "out.csv", "in/a.png", "in/not.png").exit_code == 1
    again = call("--csv", "out.csv", "in")
    assert again.exit_code == 2 and "--resume" in again.stderr and len(rows("out.csv")) == 2
    with open("out.csv", "a") as file:
        file.write('"in/b,')  # killed while it wrote
    result = call("--csv", "out.csv", "--resume", "in")
    assert "1 of 4 images are in out.csv already" in result.stderr
    assert result.exit_code == 1 and len(result.stdout.splitlines()) == 1 + 3  # what was refused is tried again

    def by_path(name):
        return {row["path"]: row["p_fake"][:7] for row in rows(name)}

    assert by_path("out.csv") == by_path("whole.csv") and len(rows("out.csv")) == 4
    assert call("--resume", "in").exit_code == 2
    for alone in (["--title", "x"], ["--examiner", "x"], ["--note", "x"], ["--with-images"], ["--map-stride", "64"]):
        assert call(*alone, "in").exit_code == 2


@pytest.mark.parametrize("cut", ["path,sha", "path,sha256,", "b,\n", "b,\n.p", "b,"])
def test_a_journal_cut_anywhere_is_gone_on_with(call, tmp_path, cut):
    call("--csv", "whole.csv", "in")
    whole = (tmp_path / "whole.csv").read_bytes()
    (tmp_path / "out.csv").write_bytes(whole[: whole.index(cut.encode()) + len(cut)])
    assert call("--csv", "out.csv", "--resume", "in").exit_code == 1
    assert sorted(row["path"] for row in rows("out.csv")) == sorted(row["path"] for row in rows("whole.csv"))


def test_a_table_holds_answers_of_the_same_crops_alone(call, tmp_path):
    call("--csv", "out.csv", "--crops", "1", "in/a.png")
    other = call("--csv", "out.csv", "--resume", "--crops", "2", "in")
    assert other.exit_code == 2 and "other networks, threshold or crops" in other.stderr and len(rows("out.csv")) == 1
    with open("out.csv") as file:
        table = file.read().replace(",crops_asked", "").replace(",None 1", "")  # as version 0.2.0 wrote it
    (tmp_path / "out.csv").write_text(table)
    assert call("--csv", "out.csv", "--resume", "--crops", "1", "in/a.png").exit_code == 0


def test_only_what_is_asked_for_is_tried_again(call, tmp_path):
    call("--csv", "out.csv", "in")
    assert call("--csv", "out.csv", "--resume", "in/a.png").exit_code == 0
    assert sorted(row["path"] for row in rows("out.csv")) == sorted(find_images(["in"]))


def test_a_table_with_a_column_of_its_own_keeps_it(call, tmp_path):
    call("--csv", "out.csv", "in/a.png")
    first, second = (tmp_path / "out.csv").read_text().splitlines()
    (tmp_path / "out.csv").write_text(f"remark,{first}\nmine,{second}\n")
    assert call("--csv", "out.csv", "--resume", "in").exit_code == 1
    table = {row["path"]: row for row in rows("out.csv")}
    assert len(table) == 4 and table["in/a.png"]["remark"] == "mine"
    assert {len(row["sha256"]) for row in table.values() if row["p_fake"]} == {64}


def test_each_image_on_standard_input_is_judged(call, tmp_path):
    for name in ("a.png", "deep/=c.jpg"):
        words = ["predict", "--model", "run", "--csv", "out.csv", "--resume", "-"]
        given = (tmp_path / "in" / name).read_bytes()
        assert CliRunner().invoke(cli.main, words, input=given).exit_code == 0
    first, second = rows("out.csv")
    assert first["path"] == second["path"] == "-" and first["sha256"] != second["sha256"]


def test_a_case_below_its_images_does_not_judge_its_own_pictures(call, tmp_path):
    for _ in range(2):
        assert call("--case", "in/case", "in").exit_code == 1
    assert sorted(row["path"] for row in rows("in/case/verdicts.csv")) == sorted(
        ["in/a.png", "in/b,\n.png", "in/deep/=c.jpg", "in/not.png"]
    )
    kept = rows("in/case/verdicts.csv")
    (tmp_path / "in" / "a.png").write_bytes(encoded(noise(70, 60, 9), "PNG"))
    assert call("--case", "in/case", "in/deep").exit_code == 0  # nor drop what it is not asked for
    assert {row["path"]: row["sha256"] for row in rows("in/case/verdicts.csv")} == {
        row["path"]: row["sha256"] for row in kept
    }


def test_what_was_refused_is_one_row_when_it_can_be_read(call, tmp_path):
    call("--csv", "out.csv", "in")
    (tmp_path / "in" / "not.png").write_bytes(encoded(noise(70, 60, 9), "PNG"))
    assert call("--csv", "out.csv", "--resume", "in").exit_code == 0
    assert sorted(row["path"] for row in rows("out.csv")) == sorted(find_images(["in"]))
    assert not any(row["error"] for row in rows("out.csv")) and not list(tmp_path.glob(".out.csv*"))


def test_a_table_is_written_by_one_process(call, tmp_path):
    with runs.file_lock(tmp_path / ".out.csv.lock", ""):
        result = call("--csv", "out.csv", "in")
    assert isinstance(result.exception, SystemExit) and "another predict" in result.stderr
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="open files are looked up in /proc")
def test_a_lock_that_is_held_is_not_deleted_on_windows(call, tmp_path, monkeypatch):
    """There nobody can; filelock does, when it lets go."""
    unlink = Path.unlink

    def as_there(path, missing_ok=False):
        if str(path) in {os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")}:
            raise PermissionError(errno.EACCES, "it is being used by another process", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", as_there)
    monkeypatch.setattr(sys, "platform", "win32")
    result = call("--csv", "out.csv", "in/a.png")
    assert result.exit_code == 0, result.stderr
    assert len(rows("out.csv")) == 1


def test_a_file_whose_name_is_a_pattern_is_itself_on_windows(call, tmp_path, monkeypatch, capsys):
    """There click would expand patterns, whatever files are called, and photo1.jpg be judged in its place."""
    for name in ("photo1.png", "photo[1].png"):
        Path(name).write_bytes(Path("in/a.png").read_bytes())
    monkeypatch.setattr(click.core, "os", SimpleNamespace(**vars(os) | {"name": "nt"}))
    monkeypatch.setattr(sys, "argv", ["dfd", "predict", "--model", "run", "--json", "photo[1].png", "in/a*.png"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = [json.loads(line)["path"] for line in capsys.readouterr().out.splitlines()]
    assert ended.value.code == 0 and told == ["photo[1].png", "in/a.png"]


def test_standard_input_is_an_image(call, tmp_path):
    content = (tmp_path / "in" / "a.png").read_bytes()
    invoke = CliRunner().invoke
    result = invoke(cli.main, ["predict", "--model", "run", "--json", "-"], input=content)
    answer, same = json.loads(result.stdout), json.loads(call("--json", "in/a.png").stdout)
    assert answer == same | {"path": "-"} and answer["sha256"]
    broken = invoke(cli.main, ["predict", "--model", "run", "--json", "-"], input=b"no image")
    assert broken.exit_code == 1 and json.loads(broken.stdout)["error"].startswith("not an image")
    made = invoke(cli.main, ["predict", "--model", "run", "--case", "case", "-"], input=content)
    assert made.exit_code == 0 and len(list((tmp_path / "case" / "images").iterdir())) == 1
    for into, again in (("--case", "case"), ("--csv", "stdin.csv")):
        words = ["predict", "--model", "run", into, again, *(["--resume"] if into == "--csv" else []), "-"]
        given = (content, content, encoded(noise(70, 60, 9), "PNG"))
        told = [invoke(cli.main, words, input=data).stderr for data in given]
        assert ["already" in text for text in told] == [into == "--case", True, False]  # another image is judged


def test_addresses_files_of_a_model_and_halves_of_one_are_named(call, tmp_path):
    for address in ("https://example.com/a.jpg", "HTTP://example.com/a.jpg?size=large", "s3://bucket/a.jpg"):
        assert "is an address; save the picture" in call(address).stderr
    invoke = CliRunner().invoke
    for name in CHECKPOINTS.values():
        assert invoke(cli.main, ["predict", "--model", f"run/{name}", "in/a.png"]).exit_code == 0
    (tmp_path / "run" / CHECKPOINTS["stage1"]).unlink()
    result = call("in/a.png")
    assert result.exit_code == 2 and f"it lacks {CHECKPOINTS['stage1']}" in result.stderr


def test_stage_1_judges_alone(call, tmp_path):
    (tmp_path / "run" / CHECKPOINTS["stage2"]).unlink()
    update_checkpoint(tmp_path / "run" / CHECKPOINTS["stage1"], threshold=0.0, generators=["ProGAN"])
    result = call("--case", "first", "in/a.png")
    assert result.exit_code == 0 and "no stage 2" in result.stderr and result.stdout.rstrip().endswith("ProGAN")
    (row,) = rows("first/verdicts.csv")
    assert row["source"] == "ProGAN" and not any(name.startswith("p_source.") for name in row)
    text = next((tmp_path / "first" / "images").iterdir()).read_text()
    assert "made all fakes that it learnt from" in text and "Called generated<" in text
    update_checkpoint(tmp_path / "run" / CHECKPOINTS["stage1"], generators=["ProGAN", "BigGAN"])
    assert call("--case", "second", "in/a.png").stdout.rstrip().endswith("not told: no stage 2")
    text = next((tmp_path / "second" / "images").iterdir()).read_text()
    assert "Called generated<" in text and "does not say: it has no stage 2" in text


def test_a_name_that_the_stream_cannot_hold_ends_nothing(call, tmp_path):
    (tmp_path / "in" / "图.png").write_bytes(encoded(noise(70, 60, 5), "PNG"))
    command = [sys.executable, "-m", "dfd", "predict", "--model", "run", "--csv", "out.csv", "in"]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONPATH": str(config.ROOT)}
    done = subprocess.run(command, capture_output=True, env=environment, cwd=tmp_path)
    assert done.returncode == 1 and rb"\u56fe.png" in done.stdout
    assert len(rows("out.csv")) == 5


def test_a_journal_of_other_networks_or_another_threshold_is_not_gone_on_with(call, tmp_path):
    assert call("--csv", "out.csv", "in/a.png").exit_code == 0
    for stage, change in (("stage2", {"ood_threshold": 0.5}), ("stage1", {"key": "other"})):
        update_checkpoint(tmp_path / "run" / CHECKPOINTS[stage], **change)
        result = call("--csv", "out.csv", "--resume", "in")
        assert result.exit_code == 2 and "other networks" in result.stderr and len(rows("out.csv")) == 1
    for foreign in ("name,colour\nx,red", "name,colour\n", "no line at all"):  # and nothing is cut off
        (tmp_path / "mine.csv").write_text(foreign)
        result = call("--csv", "mine.csv", "--resume", "in")
        assert result.exit_code == 2 and "was not written by" in result.stderr
        assert (tmp_path / "mine.csv").read_text() == foreign


def test_a_table_without_rows_of_other_generators_is_not_gone_on_with(call, tmp_path):
    assert call("--csv", "out.csv", "in/not.png").exit_code == 1
    text = (tmp_path / "out.csv").read_text()
    (tmp_path / "out.csv").write_text(text.replace("p_source.ProGAN", "p_source.Midjourney"))
    result = call("--csv", "out.csv", "--resume", "in")
    assert result.exit_code == 2 and "take another name" in result.stderr


def test_a_disk_that_is_full_is_told_with_the_remedy(call, tmp_path, monkeypatch):
    really = csv.DictWriter.writerow

    def full(self, row):
        if row["path"] != "path":  # the header has its place
            raise OSError(errno.ENOSPC, "No space left on device")
        return really(self, row)

    monkeypatch.setattr(csv.DictWriter, "writerow", full)
    result = call("--csv", "out.csv", "in/a.png")
    assert result.exit_code == 2 and "disk full; free some space" in result.stderr and "out.csv" in result.stderr


def test_a_threshold_by_rate_changes_the_calls_and_not_the_scores(call, tmp_path):
    p = json.loads(call("--json", "in/a.png").stdout)["p_fake"]
    result = call("--threshold-fpr", "0.2", "in/a.png")
    assert result.exit_code == 2 and "fitted on photos and fakes of validation" in result.stderr
    photos = [p - 0.01] * 5 + [p + 0.01] * 5
    update_checkpoint(tmp_path / "run" / CHECKPOINTS["stage1"], validation={"photos": photos, "fakes": [1.0]})
    calls = {}
    for share in ("0.5", "0.1"):
        calls[share] = json.loads(call("--json", "--threshold-fpr", share, "in/a.png").stdout)
    assert calls["0.5"]["is_fake"] and not calls["0.1"]["is_fake"]
    assert calls["0.5"]["p_fake"] == calls["0.1"]["p_fake"] == p


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_a_message_and_whole_lines(call, tmp_path, sent):
    (tmp_path / "many").mkdir()
    data = encoded(picture(1, 64, 64), "PNG")
    for number in range(3000):
        (tmp_path / "many" / f"{number:05}.png").write_bytes(data)
    command = [sys.executable, "-m", "dfd", "predict", "--model", "run", "--csv", "out.csv", "many"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        for _ in range(1200):
            if os.path.exists(tmp_path / "out.csv") and len(rows(tmp_path / "out.csv")) > 20:
                break
            time.sleep(0.05)
        process.send_signal(sent)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + sent and "Traceback" not in errors
    done = rows(tmp_path / "out.csv")
    assert f"interrupted after {len(done)} of 3000 images; the same command with --resume goes on" in errors
    assert all(row["threshold"] for row in done)


def test_a_rate_of_none_is_a_rate(call, tmp_path):
    scores = {"photos": [1.0, 0.1], "fakes": [1.0]}
    update_checkpoint(tmp_path / "run" / CHECKPOINTS["stage1"], validation=scores, threshold=0.0)
    for words, is_fake in (([], True), (["--threshold-fpr", "0"], False)):
        assert json.loads(call("--json", *words, "in/a.png").stdout)["is_fake"] == is_fake
