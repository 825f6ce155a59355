"""Running notebooks: order, resuming, failing, parameters."""

import errno
import gc
import json
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
from cases import Tiny
from nbformat.v4 import new_code_cell, new_markdown_cell

from dfd import config
from dfd.reports import runner

LOG = 'import sys; print(epochs, sys.executable, file=open(out + "/log.txt", "a"))'


def test_runs_in_order_by_this_interpreter_and_goes_on_where_it_stopped(case, capsys, monkeypatch, tmp_path):
    misleading = tmp_path / "share" / "kernels" / "python3"
    misleading.mkdir(parents=True)
    (misleading / "kernel.json").write_text('{"argv": ["/bin/false"], "display_name": "x", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    case.write("00_first", new_code_cell(LOG), new_code_cell("print('hello from a cell')"))
    case.write(
        "01_second", new_markdown_cell("## Opening"), new_code_cell('open(out + "/later.txt")'), new_code_cell(LOG)
    )

    with pytest.raises(runner.RunError) as stopped:
        case.run(parameters={"epochs": "3"})
    text = str(stopped.value)
    assert stopped.value.code == 1
    assert "01_second failed in cell 5:" in text
    assert "FileNotFoundError: [Errno 2] No such file" in text and str(case.out / "01_second.ipynb") in text
    assert {stem: entry["status"] for stem, entry in case.record().items()} == {
        "00_first": "finished",
        "01_second": "failed",
    }
    half = nbformat.read(case.out / "01_second.ipynb", as_version=4)
    assert any(output.output_type == "error" for cell in half.cells for output in cell.get("outputs", []))
    assert "01_second" in (case.out / "index.html").read_text() and "failed" in (case.out / "index.html").read_text()
    assert "stopped in" in (case.out / "01_second.html").read_text()
    assert "hello from a cell" in capsys.readouterr().out

    (case.out / "later.txt").touch()
    assert case.run(parameters={"epochs": "3"}) == case.out / "index.html"
    assert "00_first  finished before" in capsys.readouterr().out
    assert (case.out / "log.txt").read_text() == f"3 {sys.executable}\n" * 2  # each finished exactly once
    assert "failed" not in (case.out / "index.html").read_text()

    case.run(parameters={"epochs": "3"}, notebooks=["0"], fresh=True)
    case.run(parameters={"epochs": "3"})  # the first ran after the second, so the second is stale
    assert (case.out / "log.txt").read_text() == f"3 {sys.executable}\n" * 4


def test_no_kernel_imports_what_lies_in_the_working_directory(case, tmp_path, monkeypatch):
    """There may lie what somebody sent with the images."""
    monkeypatch.chdir(tmp_path)
    for name in ("ipykernel", "strangers"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / name)!r}, 'w')")
    case.write("00_first", new_code_cell("import strangers"))
    with pytest.raises(runner.RunError, match="No module named 'strangers'"):
        case.run()
    assert not (tmp_path / "strangers").exists() and not (tmp_path / "ipykernel").exists()


def test_what_a_notebook_was_made_from_decides_whether_it_runs_again(case, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(runner, "execute", lambda path, out, *rest: ran.append(path.stem) or _pretend(out, path, *rest))
    case.write("00_first")
    case.write("01_second")
    case.run()
    case.run()
    assert ran == ["00_first", "01_second"]
    assert "made anew" not in capsys.readouterr().out
    case.run(parameters={"01_second.epochs": 2})
    assert ran[2:] == ["01_second"]
    assert "01_second  made anew, for parameters are others than before: epochs was 1\n" in capsys.readouterr().out
    case.write("00_first", new_code_cell("1"))
    case.run(notebooks=["00_first"])
    assert ran[3:] == ["00_first"]
    said = "00_first  made anew, for its code, data or files, or a notebook before it, changed\n"
    assert said in capsys.readouterr().out
    case.run(parameters={"01.epochs": 2})
    assert ran[4:] == ["01_second"]
    (case.data / "new.png").touch()
    case.run(notebooks=["1"], parameters={"01.epochs": 2})
    assert ran[5:] == ["01_second"]


def test_a_notebook_whose_checkpoint_another_command_replaced_runs_again(case, capsys):
    name = config.CHECKPOINTS["stage1"]
    case.write(
        "00_first", new_code_cell(f"from pathlib import Path; Path(out, {name!r}).write_text('of the notebook')")
    )
    for text in ("", "00_first  finished before"):
        case.run()
        assert text in capsys.readouterr().out
    (case.out / name).write_text("of `train`")
    case.run()
    assert "finished before" not in capsys.readouterr().out and (case.out / name).read_text() == "of the notebook"


def test_a_notebook_by_path_is_that_file_and_no_other_of_its_name(case, tmp_path, monkeypatch):
    case.write("00_first")
    assert runner.choose(case.folder, [case.folder / "00_first.ipynb"]) == [case.folder / "00_first.ipynb"]
    for name in ("elsewhere/00_first.ipynb", "/no/such/place/00_first"):
        with pytest.raises(config.ConfigError, match="no notebook"):
            runner.choose(case.folder, [name])
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(case.folder / "00_first.ipynb", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(config.ConfigError, match="no notebook"):
        runner.choose(case.folder, ["00_first.ipynb"])
    assert runner.choose(case.folder, ["0", "00", "00_first"]) == [case.folder / "00_first.ipynb"] * 3
    assert runner.choose(case.folder, "00") == [case.folder / "00_first.ipynb"]


def test_a_copy_that_a_full_disk_broke_off_is_not_left(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="disk full"):
            runner.copy_notebooks(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    runner.copy_notebooks(tmp_path)
    for path in (tmp_path / "notebooks").iterdir():
        assert path.read_bytes() == (config.ROOT / "notebooks" / path.name).read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="no process takes another's place there")
def test_jupyterlab_takes_the_place_of_the_command(monkeypatch):
    given = []
    monkeypatch.setattr(os, "execv", lambda program, words: given.append((program, words)))
    runner.open_lab(["--no-browser"])
    assert given[0][0] == sys.executable and given[0][1][:4] == [sys.executable, "-Pm", "jupyter", "lab"]


def test_a_clock_that_was_set_back_keeps_nothing_that_is_stale(case, monkeypatch):
    times, ran = iter(["2026-01-01T13", "2026-01-01T14", "2026-01-01T11", "2026-01-01T12"]), []

    def execute(path, out, parameters, entry, stop):
        ran.append(path.stem)
        _pretend(out, path, parameters, entry, stop)
        entry["ended"] = next(times)

    monkeypatch.setattr(runner, "execute", execute)
    case.write("00_first")
    case.write("01_second")
    case.run()
    case.write("00_first", new_code_cell("1"))
    case.run()
    case.run()
    assert ran == ["00_first", "01_second"] * 2


def test_code_that_changed_runs_anew_and_what_is_kept_keeps_its_environment(case, monkeypatch):
    ran, made = [], iter("ABC")
    monkeypatch.setattr(runner, "execute", lambda path, out, *rest: ran.append(path.stem) or _pretend(out, path, *rest))
    monkeypatch.setattr(runner, "environment", lambda: {"commit": next(made)})
    case.write("00_first")
    commit = lambda: json.loads((case.out / "environment.json").read_text())["commit"]  # noqa: E731
    case.run()
    before = commit()
    case.run()
    assert len(ran) == 1 and commit() == before
    monkeypatch.setattr(runner, "code", lambda _: "other")
    case.run()
    assert len(ran) == 2 and commit() != before


def test_a_notebook_whose_files_are_gone_makes_them_again(case, capsys):
    case.write("00_first", new_code_cell('open(out + "/scores.csv", "w").write("1"); open(out + "/.hidden", "w")'))
    case.write("01_second", new_code_cell(LOG))
    case.run()
    assert case.record()["00_first"]["files"] == ["00_first.ipynb", "scores.csv"]
    (case.out / "01_second.html").unlink()  # for want of room
    case.run()
    assert capsys.readouterr().out.count("kept") == 2 and (case.out / "01_second.html").exists()
    (case.out / "scores.csv").unlink()
    case.run()
    assert (case.out / "scores.csv").read_text() == "1" and "kept" not in capsys.readouterr().out


def _pretend(out, path, parameters, entry, stop):
    (out / path.name).write_text((path).read_text())
    entry |= {"status": "finished", "seconds": 0.0, "ended": runner.datetime.now(runner.UTC).isoformat(), "error": None}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"epoch": "3"}, "unknown parameter 'epoch'; did you mean 'epochs'?"),
        ({"01.epochs": "3"}, "unknown parameter '01.epochs'"),
        ({"epochs": "three"}, "epochs must be a valid integer"),
        ({"epochs": "0"}, "epochs must be greater than or equal to 1, got '0'"),
        ({"rate": "fast"}, "rate must be a valid number"),
        ({"careful": "maybe"}, "careful must be a valid boolean"),
        ({"levels": '["a'}, "levels Unterminated string"),
    ],
)
def test_a_bad_parameter_stops_before_anything_runs(case, parameters, message):
    case.write("00_first")
    with pytest.raises(config.ConfigError, match=re.escape(message)):
        case.run(parameters=parameters)
    assert not case.out.exists()


def test_a_name_goes_to_every_notebook_that_has_it_and_to_no_other():
    given = runner.plan(
        ["00_a", "01_b", "02_c"], {"01_b": Tiny, "02_c": Tiny}, {}, "demo", {"rate": "1", "02.name": "z"}
    )
    assert given == {"00_a": {}, "01_b": {"rate": 1.0}, "02_c": {"rate": 1.0, "name": "z"}}
    own = runner.plan(["01_b", "02_c"], {"01_b": Tiny, "02_c": Tiny}, {}, "demo", {"01.rate": "2", "rate": "1"})
    assert (own["01_b"]["rate"], own["02_c"]["rate"]) == (2.0, 1.0)  # in any order, as a grid has them sorted


def test_parameters_that_were_edited_in_the_notebook_are_recorded(case):
    case.write("00_first", new_code_cell(LOG))
    path = case.folder / "00_first.ipynb"
    path.write_text(path.read_text().replace("epochs = 1", "epochs = 7"))
    case.run()
    assert case.record()["00_first"]["parameters"]["epochs"] == 7
    assert (case.out / "log.txt").read_text().startswith("7 ")
    case.run(parameters={"epochs": "3"})
    assert case.record()["00_first"]["parameters"]["epochs"] == 3


def test_a_parameter_of_no_notebook_that_runs_is_told(case, capsys):
    for stem in ("00_first", "01_second"):
        case.write(stem)
    case.run(parameters={"01.rate": "2"}, notebooks=["00"], configs={"01_second": Tiny})
    assert "01.rate is a parameter of none of the notebooks that run" in capsys.readouterr().out
    case.run(parameters={"01.rate": "2", "name": "x"}, configs={"01_second": Tiny})
    assert "of none of the notebooks" not in capsys.readouterr().out


def test_what_is_left_of_a_run_goes_by_what_was_done(tmp_path):
    """Notebooks of 3 and 25 % of a demo took 70 s; those after it take as long by their own shares. Of others' none."""
    paths = [Path(f"{stem}.ipynb") for stem in runner.SHARES]
    done = {"00_eda": {"seconds": 6}, "01_stage1_real_fake": {"seconds": 64}}
    demo, own = ({"profile": profile, "notebooks": done, "out": str(tmp_path)} for profile in ("demo", "quick"))
    assert sum(runner.SHARES.values()) == pytest.approx(1)
    assert runner.to_go(demo, paths[0], paths) == ""  # too little was done to tell
    assert runner.to_go(demo, paths[1], paths) == "; about 3:00 to go"
    assert runner.to_go(demo, paths[1], paths[:2]) == ""
    assert runner.to_go(own, paths[1], paths) == ""  # 200 images of one's own: 19 minutes it said, and 3 were left
    pd.DataFrame({"label": ["RealPhotos", "A"], "is_fake": [False, True]}).to_parquet(tmp_path / "manifest.parquet")
    assert runner.to_go(demo, paths[1], paths) == "; about 1:20 to go"  # without 02, which needs two generators


def test_missing_data_and_unknown_notebooks_and_profiles_are_named(case):
    case.write("00_first")
    with pytest.raises(config.ConfigError, match="no notebook '7'; there are: 00_first"):
        case.run(notebooks=["7"])
    with pytest.raises(config.ConfigError, match="unknown profile"):
        case.run(profile="huge")
    case.data.rmdir()
    with pytest.raises(FileNotFoundError, match="no data folder .*images"):
        case.run()
    assert not case.out.exists()


def test_a_full_disk_ends_the_run_and_keeps_what_is_done(case, monkeypatch):
    case.write("00_first")
    case.write("01_second")
    case.run(notebooks=["0"])
    (case.out / "01_second.html").touch()  # of an earlier run

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(papermill, "execute_notebook", full)
    with pytest.raises(OSError, match="No space left"):
        case.run()
    assert [entry["status"] for entry in case.record().values()] == ["finished", "interrupted"]
    assert not (case.out / "01_second.html").exists()


@pytest.mark.parametrize(
    ("dies", "how"),
    [
        ("os._exit(3)", "ended with exit status 3"),
        pytest.param(
            "os.kill(os.getpid(), 9)", "ended with exit status -9; it was killed, .*memory", marks=pytest.mark.slow
        ),
    ],
)
def test_a_dead_kernel_fails_the_run(case, dies, how):
    case.write("00_first", new_code_cell(f"import os; {dies}"))
    with pytest.raises(runner.RunError, match=f"failed in cell 4:\n.*the Python process {how}") as stopped:
        case.run()
    assert stopped.value.code == 1 and case.record()["00_first"]["status"] == "failed"


@pytest.mark.parametrize(
    ("percent", "own", "threads"), [(5, None, "None"), (30, None, "3"), (100, None, "1"), (100, "2", "2")]
)
def test_a_notebook_leaves_busy_cores_to_others_unless_told(percent, own, threads, case, tmp_path, monkeypatch):
    monkeypatch.setattr(runner.psutil, "cpu_percent", lambda seconds: percent)
    monkeypatch.setattr(runner.runs, "cores", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if own:
        monkeypatch.setenv("OMP_NUM_THREADS", own)
    seen = tmp_path / "threads.txt"
    code = f"import os, pathlib; pathlib.Path({str(seen)!r}).write_text(str(os.environ.get('OMP_NUM_THREADS')))"
    case.write("00_first", new_code_cell(code))
    case.run()
    assert seen.read_text() == threads


def test_kernels_that_start_at_once_share_no_socket():
    one, other = runner.Kernel(), runner.Kernel()
    places = [Path(found.ip).parent for found in (one, other)]
    assert places[0] != places[1] and all(place.stat().st_mode & 0o777 == 0o700 for place in places)
    del one, other
    gc.collect()
    assert not any(place.exists() for place in places)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise SystemExit('no')", "Kernel died before replying"),
        pytest.param("import time; time.sleep(60)", "Kernel didn't respond in 2 seconds", marks=pytest.mark.slow),
    ],
)
def test_a_kernel_that_does_not_start_fails_the_run(case, code, why, monkeypatch):
    case.write("00_first", new_code_cell("1"))
    argv = [sys.executable, "-c", code]
    monkeypatch.setattr(runner.Kernel, "kernel_spec", runner.KernelSpec(argv=argv, language="python"))
    monkeypatch.setattr(runner, "START", 2)
    with pytest.raises(runner.RunError, match=f"failed in cell 0:\n.*the Python process .*{why}"):
        case.run()
    assert case.record()["00_first"]["status"] == "failed"
    assert runner.Kernel.process.wait(5) is not None


def test_a_notebook_is_whole_at_any_moment(case, monkeypatch):
    case.write("00_first", new_code_cell("1"))
    seen, replace = [], os.replace

    def watched(draft, path):
        if str(path).endswith(".ipynb"):
            seen.append(len(nbformat.read(draft, 4).cells))
        replace(draft, path)

    monkeypatch.setattr(os, "replace", watched)
    case.run()
    assert len(seen) > 4 and set(seen) == {4}


@pytest.mark.parametrize("name", ["out", "data", "00.out"])
def test_folders_are_set_by_their_own_options(name, tmp_path):
    with pytest.raises(config.ConfigError, match="once for all notebooks"):
        runner.plan(["00_eda"], config.NOTEBOOKS, {"data": "d", "out": "o"}, "demo", {name: "x"})


def test_run_folder_inside_the_data_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(config.ConfigError, match="inside the data folder"):
        runner.run(data=str(tmp_path / "data"), out=str(tmp_path / "data" / "run"))
    assert not list((tmp_path / "data").iterdir())


def test_notebooks_that_compare_generators_are_left_out_where_there_is_one(case, capsys, monkeypatch, tmp_path):
    table = pd.DataFrame({"label": ["RealPhotos", "ProGAN"], "is_fake": [False, True]})
    assert runner.left_out("02_stage2_attribution", tmp_path) == ""  # nothing is scanned yet
    table.to_parquet(tmp_path / "manifest.parquet")
    assert "all fakes are ProGAN" in runner.left_out("02_stage2_attribution", tmp_path)
    assert runner.left_out("01_stage1_real_fake", tmp_path) == runner.left_out("03_robustness", tmp_path) == ""
    pd.concat([table, table.replace("ProGAN", "BigGAN")]).to_parquet(tmp_path / "manifest.parquet")
    assert runner.left_out("02_stage2_attribution", tmp_path) == ""
    monkeypatch.setattr(runner, "left_out", lambda stem, out: "for a reason" if stem == "01_second" else "")
    for stem in ("00_first", "01_second", "02_third"):
        case.write(stem, new_code_cell(LOG))
    case.run()
    assert "01_second  left out: for a reason" in capsys.readouterr().out
    (case.out / config.CHECKPOINTS["stage2"]).touch()  # of data that had two generators before
    (case.out / "metrics.json").write_text('{"stage1": {"a": 1}, "stage2": {}, "robustness": {}}')
    record = json.loads((case.out / "config.json").read_text())
    assert [*record["notebooks"]] == ["00_first", "02_third"]
    record["notebooks"]["01_second"] = {"files": ["scores_stage2.parquet", "both.csv", "metrics.json"]}
    record["notebooks"]["00_first"]["files"] = ["both.csv", "metrics.json"]
    record["notebooks"]["02_third"]["files"] += ["scores_stage2.parquet"]  # it adds rows, and is made anew
    (case.out / "config.json").write_text(json.dumps(record))
    stale = ("scores_stage2.parquet", "model_card_stage2.md", "01_second.html", "01_second.ipynb")
    for name in (*stale, "both.csv", "stage2 of mine.txt"):
        (case.out / name).touch()
    for _ in range(2):
        case.run()
        assert (case.out / "both.csv").exists() and (case.out / "stage2 of mine.txt").exists()
        assert not [name for name in (*stale, config.CHECKPOINTS["stage2"]) if (case.out / name).exists()]
        assert json.loads((case.out / "metrics.json").read_text()) == {"stage1": {"a": 1}, "robustness": {}}


def test_a_part_of_a_run_does_not_change_the_profile_that_it_was_trained_with(case, monkeypatch):
    monkeypatch.setattr(runner, "TRAIN", ("01_second",))
    case.write("00_first")
    case.write("01_second")
    case.run()
    profile = lambda: json.loads((case.out / "config.json").read_text())["profile"]  # noqa: E731
    assert profile() == "demo"
    case.run(profile="quick", notebooks=["00"])
    assert profile() == "demo"
    case.run(profile="quick", notebooks=["01"])
    assert profile() == "quick"
