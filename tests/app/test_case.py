"""A case as a folder: its record, tables and hashes, going on with it, and what verify says when a byte changes."""

import csv
import errno
import json
import os
import re
import shlex
import shutil
import sys
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pandas as pd
import pytest
from bad_files import encoded
from click.testing import CliRunner
from networks import noise
from PIL import PngImagePlugin

from dfd import cli
from dfd.app import case, examine
from dfd.app.case import read_verdicts
from dfd.config import CHECKPOINTS
from dfd.core import runs, write_json
from dfd.inference import Detector, Verdict, update_checkpoint


@pytest.fixture
def call(model, tmp_path):
    """Run predict --case, or another command, beside twelve images, two of them alike, and one that is none."""
    (tmp_path / "in").mkdir()
    for number in range(11):
        (tmp_path / "in" / f"{number:02}.png").write_bytes(encoded(noise(70, 60, number), "PNG"))
    (tmp_path / "in" / "alike.jpg").write_bytes(encoded(noise(70, 60, 3), "JPEG", quality=98))
    (tmp_path / "in" / "not.png").write_bytes(b"<svg/>")

    def call(*words, command=("predict", "--model", "run", "--pictures", "1", "--case", "case")):
        return CliRunner().invoke(cli.main, [*command, *words])

    return call


def record():
    with open("case/case.json", encoding="utf-8") as file:
        return json.load(file)


def test_a_case_that_is_judged_anew_and_killed_keeps_the_pages_of_that_run(call, monkeypatch):
    names, add, count = [f"in/{number:02}.png" for number in range(4)], case.Case.add, []
    assert call(*names).exit_code == 0

    def killed(made, examination):
        if len(count) == 3:
            raise SystemExit(9)
        count.append(examination)
        return add(made, examination)

    with monkeypatch.context() as patch:
        patch.setattr(case.Case, "add", killed)
        assert call(*names, "--crops", "2").exit_code == 9
    assert len(os.listdir("case/images")) == 3
    went_on = call(*names, "--crops", "2")
    assert went_on.exit_code == 0 and len(os.listdir("case/images")) == 4
    assert case.verify(Path("case")) == ([], [])
    assert "3 of 4 images are in case already" in went_on.stderr


def test_a_case_whose_first_table_met_a_full_disk_is_begun_again(call, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(case.Journal, "__init__", Mock(side_effect=OSError(errno.ENOSPC, "disk full")))
        assert call("in/00.png").exit_code == 2
    assert call("in/00.png").exit_code == 0


@pytest.mark.parametrize("is_new", [True, False])
def test_a_case_whose_record_met_a_full_disk_goes_on_and_nobody_is_said_to_have_forged_it(call, monkeypatch, is_new):
    if not is_new:
        assert call("in/00.png", "in/not.png").exit_code == 1
    before = dict(case._hashes(Path("case"))) if not is_new else {}
    with monkeypatch.context() as patch:
        patch.setattr(case, "write_json", Mock(side_effect=OSError(errno.ENOSPC, "disk full")))
        assert call("in/00.png", "in/not.png").exit_code == 2
        assert is_new or call("in/00.png", "in/not.png", "--crops", "2").exit_code == 2
    assert case._hashes(Path("case")) == before
    went_on = call("in/00.png", "in/not.png")
    assert went_on.exit_code == 1 and "behind its last run" not in went_on.stderr
    assert case.verify(Path("case")) == ([], [])


def test_what_lies_in_a_hidden_folder_is_no_part_of_a_case(call):
    """JupyterLab makes one beside each file that is opened in it."""
    call("in/00.png")
    os.mkdir("case/.ipynb_checkpoints")
    Path("case/.ipynb_checkpoints/verdicts-checkpoint.csv").write_text("path")
    assert case.verify(Path("case")) == ([], [])
    assert "behind its last run" not in call("in/01.png").stderr and not record()["runs"][-1]["found"]


def test_a_case_tells_of_stage_1_alone_what_json_tells(call, tmp_path):
    (tmp_path / "run" / CHECKPOINTS["stage2"]).unlink()
    shown = json.loads(call("--json", "in/00.png", command=("predict", "--model", "run")).stdout)
    call("in/00.png")
    assert json.loads(Path("case/verdicts.json").read_text()) == [shown]


def test_a_link_to_itself_is_refused_and_the_rest_is_judged(call):
    os.symlink("loop.png", "in/loop.png")
    made = call("in/loop.png", "in/00.png")
    assert made.exit_code == 1 and "1 of 2 images were refused" in made.stderr
    assert [verdict.path for verdict in case.read_verdicts(Path("case/verdicts.csv"))] == ["in/loop.png", "in/00.png"]


def test_a_table_whose_folder_has_gone_is_told(run, tmp_path):
    (folder := tmp_path / "tables").mkdir()
    journal = case.Journal(folder / "a.csv", False, Detector.load(run), {})
    journal.write(Verdict("a.png", error="none"))
    shutil.rmtree(folder)
    with pytest.raises(OSError, match="a.csv"):
        journal.write(Verdict("b.png", error="none"))


@pytest.mark.printed
def test_a_case_holds_tables_pages_and_the_hash_of_everything(call, tmp_path):
    made = call("--title", "A & B", "--examiner", "me", "--note", "one", "--note", "two", "in")
    assert made.exit_code == 1 and "1 of 13 images were refused" in made.stderr  # not.png
    told = f"SHA-256 of case.json: {sha256((tmp_path / 'case' / 'case.json').read_bytes()).hexdigest()}\n"
    assert made.stderr.endswith(told)
    noted, folder = record(), tmp_path / "case"
    assert (noted["title"], noted["examiner"], noted["notes"]) == ("A & B", "me", ["one", "two"])
    (made_in,) = noted["runs"]
    assert noted["detector"]["threshold"] == 0.5 and noted["detector"] == made_in["detector"]
    assert made_in["versions"].keys() >= {"dfd", "torch", "python", "code"}
    assert made_in["versions"]["device"] in ("cpu, bfloat16", "cpu, float32")
    assert noted["created"].endswith("+00:00") and made_in["started"] <= made_in["ended"]
    assert made_in["folder"] == str(tmp_path) and made_in["command"] == shlex.join(sys.orig_argv)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert noted["outputs"].keys() == {name for name in files if name != "case.json" and not name.startswith(".")}
    for name, entry in noted["outputs"].items():
        data = (folder / name).read_bytes()
        assert entry == {"sha256": sha256(data).hexdigest(), "bytes": len(data)}
    for entry in noted["inputs"]:  # the refused one too
        data = (tmp_path / entry["path"]).read_bytes()
        assert (entry["sha256"], entry["bytes"]) == (sha256(data).hexdigest(), len(data))
    verdicts = json.loads((folder / "verdicts.json").read_text())
    with open("case/verdicts.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [verdict["path"] for verdict in verdicts] and len(rows) == 13
    assert [float(row["p_fake"]) for row in rows[:12]] == [verdict["p_fake"] for verdict in verdicts[:12]]
    assert len(list((folder / "images").iterdir())) == len(list((folder / "thumbs").iterdir())) == 12
    drawn = [path for path in (folder / "images").iterdir() if "<h4>Grad-CAM" in path.read_text()]
    assert len(drawn) == 1 and not (folder / "originals").exists()
    index = (folder / "index.html").read_text()
    assert "<title>A &amp; B" in index and index.count("1 more</td>") == 2 and index.count('class="folded"') == 1
    assert "in part generated" not in index and index.count("no other picture was drawn") == 0
    without = [page for page in (folder / "images").iterdir() if "no other picture was drawn" in page.read_text()]
    assert len(without) == 11
    without[0].write_text(without[0].read_text().replace("<ul>", "<ul><li>In part: the square</li>"))
    path = folder / "verdicts.csv"
    path.write_text(re.sub(r"^(in/alike.jpg,\w+,\w+),\w+", r"\1,other", path.read_text(), flags=re.M))
    write_json(folder / "case.json", record() | {"outputs": case._hashes(folder)})  # as if it had been made so
    call("in/00.png")
    index = (folder / "index.html").read_text()
    assert index.count("1 more, verdicts differ</td>") == 2 and index.count("in part generated, see its page") == 1


def test_verify_names_the_byte_that_changed(call, tmp_path):
    call("in")
    verify = lambda: call("case", command=["verify"])  # noqa: E731
    assert verify().exit_code == 0 and verify().stdout == "case: as it was made\n"
    page = next((tmp_path / "case" / "images").iterdir())
    data = bytearray(page.read_bytes())
    data[len(data) // 2] ^= 1
    page.write_bytes(bytes(data))
    assert verify().exit_code == 1 and f"images/{page.name} was changed\n" in verify().stdout
    (tmp_path / "case" / "verdicts.json").unlink()
    (tmp_path / "case" / "mine.txt").write_text("x")
    (tmp_path / "in" / "00.png").write_bytes(b"other")
    (tmp_path / "in" / "01.png").unlink()
    told = verify().stdout
    for line in ("verdicts.json is gone", "mine.txt was added", "in/00.png, an image that was judged, was changed"):
        assert line in told
    assert "in/01.png is not here, or cannot be read" in told and "4 differences" in told
    shutil.rmtree(tmp_path / "case")
    (tmp_path / "case").mkdir()
    assert verify().exit_code == 2 and "no finished case.json" in verify().stderr
    (tmp_path / "case/case.json").write_text('{"outputs": {}}')
    assert verify().exit_code == 2 and "no finished case.json" in verify().stderr


def test_an_image_whose_page_is_gone_is_judged_again_and_has_one_row(call, tmp_path):
    call("in/00.png", "in/01.png")
    next((tmp_path / "case" / "images").iterdir()).unlink()
    assert call("case", command=["verify"]).exit_code == 1
    assert "1 of 2 images are in case already" in call("in/00.png", "in/01.png").stderr
    rows = read_verdicts(tmp_path / "case" / "verdicts.csv")
    assert sorted(row.path for row in rows) == ["in/00.png", "in/01.png"] and len(record()["inputs"]) == 2
    assert call("case", command=["verify"]).exit_code == 0


def test_a_page_that_was_changed_is_made_anew_and_not_signed(call, tmp_path):
    call("in/00.png")
    page = next((tmp_path / "case" / "images").iterdir())
    before = page.read_text()
    page.write_text(before.replace("Called", "Not called"))
    again = call("in/01.png")  # the page goes, though its image is not named, and the list leads to none
    line, index = f"images/{page.name} was changed", tmp_path / "case/index.html"
    assert again.exit_code == 0 and not page.exists() and f'href="images/{page.name}' not in index.read_text()
    assert line in again.stderr and line in index.read_text()
    call("in/00.png", "in/01.png")
    assert [name for run in record()["runs"] for name, _ in run["found"]] == [f"images/{page.name}"]
    assert "Not called" not in page.read_text() and len(read_verdicts(tmp_path / "case" / "verdicts.csv")) == 2


def test_what_was_changed_behind_a_case_is_said_and_kept_and_no_other_verdict_is_signed(call, tmp_path):
    call("in/00.png", "in/01.png")
    for name in ("thumbs/x.jpg", "x\n.txt"):
        (tmp_path / "case" / name).write_text("planted")
    again = call("in/02.png")
    assert r"x\n.txt was added" in again.stderr and "thumbs/x.jpg was added" in again.stderr
    assert "thumbs/x.jpg was added" in (tmp_path / "case/index.html").read_text()
    assert ["thumbs/x.jpg", "was added"] in record()["runs"][1]["found"] and "added" not in call("in/02.png").stderr
    table, kept = tmp_path / "case/verdicts.csv", record()
    rows = pd.read_csv(table, dtype=str).assign(is_fake="True", verdict="fake")
    rows.to_csv(table, index=False)
    refused = call("in/00.png", "in/01.png")
    assert refused.exit_code == 2 and "verdicts.csv was changed behind its last run" in refused.stderr
    assert record() == kept and call("case", command=["verify"]).exit_code == 1


def test_a_changed_page_goes_behind_a_run_that_broke_off_too_and_records_of_before_are_gone_on_with(call, tmp_path):
    call("in/00.png", "in/01.png")
    page, noted = next((tmp_path / "case/images").iterdir()), record()
    del noted["runs"][0]["ended"], noted["runs"][0]["found"]
    write_json(tmp_path / "case/case.json", noted)
    page.write_text(page.read_text().replace("Called", "Not called"))
    again = call("in/00.png", "in/01.png")
    assert "1 of 2 images are in case already" in again.stderr and "behind its last run" not in again.stderr
    assert "Not called" not in page.read_text() and call("case", command=["verify"]).exit_code == 0


def test_a_refused_command_touches_no_page_and_a_damaged_thumbnail_ends_no_run(call, tmp_path):
    call("in/00.png", "in/01.png")
    page, thumb = (next((tmp_path / "case" / kind).iterdir()) for kind in ("images", "thumbs"))
    page.write_text("forged")
    thumb.write_text("damaged")
    assert call("in/02.png", "--crops", "3").exit_code == 2 and page.read_text() == "forged"
    assert call("in/02.png").exit_code == 0 and not page.exists() and not thumb.exists()
    assert dict(record()["runs"][1]["found"]) == {f"{p.parent.name}/{p.name}": "was changed" for p in (page, thumb)}
    assert call("case", command=["verify"]).exit_code == 0
    assert f"thumbs/{thumb.name}" not in (tmp_path / "case/index.html").read_text().replace(
        f"thumbs/{thumb.name} was", ""
    )


def test_the_name_of_a_changed_image_writes_no_answer(call, tmp_path):
    name = (tmp_path / "in/00.png").rename(tmp_path / "in/x\ncase: as it was made\n.png").relative_to(tmp_path)
    call(str(name))
    name.write_bytes((tmp_path / "in/01.png").read_bytes())
    assert len(call("case", command=["verify"]).stdout.splitlines()) == 2


def test_verify_sees_links_and_records_in_folders_and_no_name_writes_its_answer(call, tmp_path):
    call("in/00.png")
    case, index = tmp_path / "case", tmp_path / "case" / "index.html"
    index.rename(tmp_path / "index.html")
    index.symlink_to(tmp_path / "index.html")
    (case / "linked").symlink_to(tmp_path / "in")
    (case / "thumbs" / "case.json").write_text("{}")
    (case / "\x1b[2Kcase: as it was made").write_text("x")
    told = call("case", command=["verify"]).stdout
    for line in ("index.html was changed", "linked was added", "thumbs/case.json was added", r"\x1b[2Kcase: as"):
        assert line in told
    assert "\x1b[2K" not in told and "4 differences" in told


def test_a_case_of_a_run_on_simulated_fakes_says_so(call, tmp_path):
    write_json(tmp_path / "run" / "metrics.json", {"stage1": {}, "notes": ["simulated by small decoders"]})
    call("in/00.png", "--note", "mine")
    assert record()["notes"] == ["mine", "simulated by small decoders"]
    assert "simulated by small decoders" in (tmp_path / "case" / "index.html").read_text()


def test_a_table_that_is_refused_leaves_the_record_as_it_was(call, tmp_path):
    call("in/00.png")
    noted = (tmp_path / "case" / "case.json").read_bytes()
    rows = (tmp_path / "case" / "verdicts.csv").read_text()
    (tmp_path / "case" / "verdicts.csv").write_text(rows.replace("five 5", "grid 9").replace("None None", "grid 9"))
    assert (tmp_path / "case" / "verdicts.csv").read_text() != rows
    assert call("in/01.png").exit_code == 2
    assert (tmp_path / "case" / "case.json").read_bytes() == noted


def test_a_case_notes_the_list_of_trust_and_all_that_answers_come_from(call, tmp_path, monkeypatch):
    (tmp_path / "trust.pem").write_text("certificates")
    monkeypatch.setenv("DFD_C2PA_TRUST", str(tmp_path / "trust.pem"))
    call("in/00.png")
    assert record()["runs"][-1]["versions"]["trust list"] == sha256(b"certificates").hexdigest()
    detector = Detector.load(tmp_path / "run")
    assert record()["detector"]["files"] == detector.files and set(detector.files) == set(CHECKPOINTS.values())
    (tmp_path / "clip.safetensors").write_bytes(b"weights")
    monkeypatch.setattr("dfd.inference.detector.weights_file", lambda: tmp_path / "clip.safetensors")
    detector.stage1.settings |= {"backbone": "clip", "pretrained": True}
    assert detector.files["clip.safetensors"] == sha256(b"weights").hexdigest()


def test_a_case_goes_on_and_judges_again_only_what_changed(call, tmp_path):
    for _ in range(2):
        call("in/00.png", "in/01.png", "--note", "first")
    before, noted = read_verdicts(tmp_path / "case" / "verdicts.csv"), record()
    (tmp_path / "in" / "01.png").write_bytes(encoded(noise(80, 80, 99), "PNG"))
    result = call("in/00.png", "in/01.png", "in/02.png", "--note", "second")
    assert "1 of 3 images are in case already" in result.stderr and result.exit_code == 0
    after = read_verdicts(tmp_path / "case" / "verdicts.csv")
    assert [verdict.path for verdict in after] == ["in/00.png", "in/01.png", "in/02.png"]
    sizes = {entry["path"]: entry["bytes"] for entry in record()["inputs"]}
    assert sizes["in/01.png"] == (tmp_path / "in" / "01.png").stat().st_size
    kept = (tmp_path / "in" / "01.png").read_bytes()
    (tmp_path / "in" / "01.png").write_bytes(b"other")
    call("in/02.png")  # says nothing of the first two, which stay noted as they were judged
    assert {entry["path"]: entry["bytes"] for entry in record()["inputs"]} == sizes
    (tmp_path / "in" / "01.png").write_bytes(kept)
    assert after[0] == before[0] and after[1].sha256 != before[1].sha256
    assert record()["id"] == noted["id"] and record()["notes"] == ["first", "second"] and len(record()["runs"]) == 4
    again = call("in/00.png", "--model", str(tmp_path / "run"))  # the same by another path
    assert (
        "1 of 1 images are in case already" in again.stderr
        and len(read_verdicts(tmp_path / "case" / "verdicts.csv")) == 3
    )
    update_checkpoint(tmp_path / "run" / CHECKPOINTS["stage1"], threshold=0.9, key="other")
    refused = call("in/00.png")
    assert refused.exit_code == 2 and "holds 2 images more, such as in/01.png: name all, go on as its" in refused.stderr
    assert len(read_verdicts(tmp_path / "case" / "verdicts.csv")) == 3 and len(record()["runs"]) == 5
    named = [f"in/0{number}.png" for number in (0, 1, 2)]
    result = call(*named)
    assert "judged by another detector" in result.stderr and "already" not in result.stderr
    assert [verdict.path for verdict in read_verdicts(tmp_path / "case" / "verdicts.csv")] == named


def test_other_crops_judge_a_case_anew(call, tmp_path):
    call("in/00.png", "--crops", "2")
    for words in (["--crops", "1"], ["--crops", "1", "--crop-mode", "grid"]):
        again = call("in/00.png", *words)
        assert "on other crops: all is judged anew" in again.stderr and "already" not in again.stderr
    assert "already" in call("in/00.png", *words).stderr


def test_long_pictures_copies_and_paths_that_are_given_twice_are_one_case(call, tmp_path):
    (tmp_path / "in" / "long.png").write_bytes(encoded(noise(20, 800, 5), "PNG"))
    shutil.copy(tmp_path / "in" / "00.png", tmp_path / "in" / "copy.png")
    assert call("in/long.png", "in/00.png", "in/copy.png", "in/00.png", "--pictures", "2").exit_code == 0
    rows = read_verdicts(tmp_path / "case" / "verdicts.csv")
    assert [row.path for row in rows] == ["in/long.png", "in/00.png", "in/copy.png"]
    page = (tmp_path / "case" / "images" / f"{rows[1].sha256[:32]}.html").read_text()
    assert "<h4>Grad-CAM" in page and "in/copy.png" not in page  # the copy's took nothing from it
    assert call("case", command=["verify"]).exit_code == 0


def test_a_case_is_gone_on_with_where_it_was_begun_or_by_whole_paths(call, tmp_path, monkeypatch):
    call("in/00.png")
    for name in ("00", "01"):  # others of the same name
        (tmp_path / "there" / "in").mkdir(parents=True, exist_ok=True)
        (tmp_path / "there" / "in" / f"{name}.png").write_bytes(encoded(noise(80, 80, 99), "PNG"))
    monkeypatch.chdir(tmp_path / "there")
    command = ("predict", "--model", "../run", "--pictures", "0", "--case", "../case")
    refused = call("in/01.png", command=command)
    assert (
        refused.exit_code == 2 and f"was begun in {tmp_path}; go on there, or give in/01.png by its" in refused.stderr
    )
    kept = {path: path.read_bytes() for path in (tmp_path / "case").rglob("*.*") if path.is_file()}
    at_fpr = call("in/00.png", "--threshold-fpr", "0.01", command=command)  # all of it, but another file
    assert at_fpr.exit_code == 2 and all(path.read_bytes() == data for path, data in kept.items())
    assert call(str(tmp_path / "there" / "in" / "01.png"), command=command).exit_code == 0
    assert call("../case", command=["verify"]).stdout == "../case: as it was made\n"
    monkeypatch.chdir(tmp_path)
    kept = read_verdicts(tmp_path / "case" / "verdicts.csv")
    assert [verdict.path for verdict in kept] == ["in/00.png", str(tmp_path / "there" / "in" / "01.png")]
    assert [entry["bytes"] for entry in record()["inputs"]] == [Path(entry.path).stat().st_size for entry in kept]


def test_standard_input_and_any_bytes_in_a_title_have_their_place_in_a_case(call, tmp_path, monkeypatch):
    data = (tmp_path / "in" / "02.png").read_bytes()
    monkeypatch.setattr(cli.sys, "stdin", SimpleNamespace(buffer=BytesIO(data)))
    title = os.fsdecode(b"caf\xe9 \xc3\xa9")
    runner = ["predict", "--model", "run", "--pictures", "0", "--json", "--case", "case", "--title", title, "-"]
    with pytest.raises(SystemExit) as ended:
        cli.main(runner, standalone_mode=False)
    assert ended.value.code == 0
    (verdict,) = read_verdicts(tmp_path / "case" / "verdicts.csv")
    assert (verdict.path, verdict.sha256) == ("-", sha256(data).hexdigest())
    index = (tmp_path / "case" / "index.html").read_text()
    assert "<title>caf\\udce9 é" in index


def test_originals_are_copied_where_that_is_asked_for(call, tmp_path):
    call("in/00.png")
    call("--with-images", "in/00.png", "in/alike.jpg", "in/not.png")  # the first was judged without
    copies = {copy.suffix: copy.read_bytes() for copy in (tmp_path / "case" / "originals").iterdir()}
    assert copies == {Path(name).suffix: (tmp_path / "in" / name).read_bytes() for name in ("00.png", "alike.jpg")}
    (tmp_path / "in" / "00.png").write_bytes(b"other")  # of what was not judged no copy is kept
    shutil.rmtree(tmp_path / "case" / "originals")
    call("--with-images", "in/alike.jpg")
    assert [copy.suffix for copy in (tmp_path / "case" / "originals").iterdir()] == [".jpg"]


def test_a_case_is_finished_though_an_image_cannot_be_read_or_has_a_name_that_is_too_long(call, tmp_path, monkeypatch):
    read = case.sha256_of

    def unreadable(path):
        if Path(path).name == "not.png":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(case, "sha256_of", unreadable)
    made = call("--with-images", "in/00.png", "in/not.png")
    assert made.exit_code == 1 and "1 of 2 images were refused" in made.stderr
    assert [entry["sha256"] is None for entry in record()["inputs"]] == [False, True]
    verified = call("case", command=["verify"])
    assert verified.exit_code == 0 and "in/not.png is not here, or cannot be read" in verified.stdout
    uploaded = examine.examine(Detector.load("run"), (tmp_path / "in" / "01.png").read_bytes(), "写" * 100)
    with case.opened(tmp_path / "case", Detector.load("run"), {"crops": None, "crop_mode": None}) as opened:
        opened.add(uploaded)
        opened.finish()
    assert call("case", command=["verify"]).exit_code == 0 and record()["inputs"][-1]["path"] == "写" * 100


def test_a_folder_of_other_files_and_one_in_use_are_left_alone(call, tmp_path):
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "thesis.doc").write_text("x")
    result = call("in/00.png")
    assert result.exit_code == 2 and "is no case" in result.stderr
    assert [path.name for path in (tmp_path / "case").iterdir() if path.name[0] != "."] == ["thesis.doc"]
    assert call("--csv", "x.csv", "in/00.png").exit_code == 2
    (tmp_path / "case" / "thesis.doc").unlink()
    detector = Detector.load("run")
    with case.opened(tmp_path / "case", detector, {}), pytest.raises(runs.InUse):
        runs._held.clear()
        with case.opened(tmp_path / "case", detector, {}):
            pass


@pytest.mark.printed
def test_without_a_browser_a_line_says_that_there_is_no_pdf(call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    monkeypatch.setitem(sys.modules, "weasyprint", None)
    result = call("in/00.png")
    assert result.exit_code == 0 and "No case.pdf" in result.stderr and not (tmp_path / "case" / "case.pdf").exists()
    assert call("case", command=["verify"]).exit_code == 0


@pytest.mark.printed
def test_why_the_browser_failed_is_told_where_there_is_no_weasyprint(tmp_path, monkeypatch, capsys):
    sync_api = pytest.importorskip("playwright.sync_api")
    monkeypatch.setattr(sync_api, "sync_playwright", Mock(side_effect=RuntimeError("libnss3.so is missing\n╔═")))
    monkeypatch.setitem(sys.modules, "weasyprint", None)
    case.write_pdf("<p>", tmp_path / "case.pdf")
    assert "No case.pdf: libnss3.so is missing. " in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.printed
def test_the_pdf_holds_the_list_and_the_pages(call, tmp_path):
    pytest.importorskip("playwright.sync_api")
    if not shutil.which("chromium"):
        pytest.skip("needs Chromium")
    call("in/00.png", "in/01.png")
    pdf = (tmp_path / "case" / "case.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") >= 3
    assert b"/StructTreeRoot" in pdf and b"/Outlines" in pdf and b"file:" not in pdf  # for a reader, and of no disk


@pytest.mark.printed
def test_the_browser_that_prints_asks_nobody(call, tmp_path, monkeypatch):
    """Offline is the tab alone: Chromium itself would look for its maker's servers."""
    pytest.importorskip("playwright.sync_api")
    if not (chromium := shutil.which("chromium")):
        pytest.skip("needs Chromium")
    (spy := tmp_path / "spy").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/given\nexec {chromium} "$@"\n')
    spy.chmod(0o755)
    monkeypatch.setattr(case.shutil, "which", lambda _: str(spy))
    call("in/00.png")
    assert "--host-resolver-rules=MAP * ~NOTFOUND" in (tmp_path / "given").read_text().splitlines()
    assert (tmp_path / "case" / "case.pdf").exists()


def test_names_that_differ_in_what_cannot_be_seen_are_told_apart(call, tmp_path):
    names = ["caf\udce9.png", "caf\udce8.png", "caf\x01.png", "caf\u202e.png", "caf .png"]
    for number, name in enumerate(names):
        noise(70, 60, number).save(tmp_path / "in" / "a.png")
        (tmp_path / "in" / "a.png").rename(tmp_path / "in" / name)
    assert call(*(f"in/{name}" for name in names)).exit_code == 0
    shown = [r"caf\udce9.png", r"caf\udce8.png", r"caf\x01.png", r"caf\u202e.png", "caf .png"]
    index = (tmp_path / "case" / "index.html").read_text()
    pages = [path.read_text() for path in (tmp_path / "case" / "images").iterdir()]
    for name in shown:
        assert f">in/{name}</a>" in index and sum(f"in/{name}<" in page for page in pages) == 1


def test_what_pages_fold_is_open_in_the_pdf(call, tmp_path, monkeypatch):
    text, printed = PngImagePlugin.PngInfo(), []
    text.add_text("parameters", "a cat, Steps: 20")
    noise(70, 60).save(tmp_path / "in" / "00.png", pnginfo=text)
    monkeypatch.setattr(case, "write_pdf", lambda html, path: printed.append(html))
    call("in/00.png")
    (page,) = (tmp_path / "case" / "images").iterdir()
    assert "<details>" in page.read_text() and "<details>" not in printed[0]
    assert printed[0].count("<details open>") == page.read_text().count("<details>") + 1  # and what the columns say


def test_an_image_whose_verdict_differs_from_its_likes_is_not_folded(call, tmp_path):
    """Two of nearly the same pixels, and a threshold between their scores."""
    call("in/03.png", "in/alike.jpg")
    index = tmp_path / "case" / "index.html"
    assert index.read_text().count('class="folded"') == 1 and "group 1, 1 more<" in index.read_text()
    scores = [verdict.p_fake for verdict in read_verdicts(tmp_path / "case" / "verdicts.csv")]
    update_checkpoint(tmp_path / "run" / CHECKPOINTS["stage1"], threshold=sum(scores) / 2)
    shutil.rmtree(tmp_path / "case")
    call("in/03.png", "in/alike.jpg")
    assert 'class="folded"' not in index.read_text() and "group 1, 1 more, verdicts differ" in index.read_text()


def test_what_is_generated_in_part_is_not_folded(call, tmp_path, monkeypatch):
    page_of = case.Case.page_of

    def spliced(made, sha256):
        page = page_of(made, sha256)
        if page.exists() and sha256 == of_copy and b"In part" not in page.read_bytes():
            page.write_text(page.read_text() + "<li>In part: there")
        return page

    of_copy = sha256((tmp_path / "in" / "alike.jpg").read_bytes()).hexdigest()
    monkeypatch.setattr(case.Case, "page_of", spliced)
    call("in/03.png", "in/alike.jpg")
    index = (tmp_path / "case" / "index.html").read_text()
    assert "in part generated, see its page" in index and 'class="folded"' not in index


def test_names_at_the_ends_of_long_paths_are_told_apart(call, tmp_path):
    folder = tmp_path.joinpath(*("long" * 20 for _ in range(3)))
    folder.mkdir(parents=True)
    for number in range(2):
        noise(70, 60, number).save(folder / f"IMG_{number}.png")
    call(str(folder))
    texts = [(tmp_path / "case" / "index.html").read_text()]
    texts += [page.read_text() for page in (tmp_path / "case" / "images").iterdir()]
    assert all(f"IMG_{number}.png<" in texts[0] for number in range(2))
    assert sum("IMG_0.png</h1>" in text for text in texts[1:]) == 1


def test_a_journal_gives_back_what_was_written(run):
    names = {"BigGAN": 0.25, "ProGAN": 0.5, "StyleGAN2": 0.25}
    fake = Verdict("a", True, "fake", 0.75, "ProGAN", names, ("ProGAN",), 5, 0.5, sha256="0a", log10_lr=-0.5)
    told = [fake, replace(fake, path="b", is_fake=False, outside="flat", log10_lr=None), Verdict("c", error="empty")]
    journal = case.Journal(run / "verdicts.csv", False, Detector.load(run), {})
    with journal.file:
        for verdict in told:
            journal.write(verdict)
    assert read_verdicts(run / "verdicts.csv") == told


def test_a_case_is_judged_and_drawn_as_was_asked(call, tmp_path):
    call("--crops", "2", "--crop-mode", "random", "--map-stride", "10", "in/00.png")
    (verdict,) = read_verdicts(tmp_path / "case" / "verdicts.csv")
    (page,) = (path.read_text() for path in (tmp_path / "case" / "images").iterdir())
    assert verdict.crops == 2 and "one each 10 pixels" in page and "It stands in" in page
