"""Parameter sweeps: which runs a grid asks for, how they are run, ended and kept, and what is said of them."""

import contextlib
import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from score_tables import noisy_table

import dfd
from dfd import cli, config
from dfd.core import io, runs
from dfd.reports import parameter_grid, parameter_sweep, parameter_sweep_report
from dfd.reports.parameter_grid import SweepError
from dfd.reports.parameter_sweep import LOG, RECORD

STEMS = ("00_eda", "01_stage1_real_fake", "02_stage2_attribution")
# Does what `dfd run` leaves behind: `loss` is its behaviour, and batch_size the number it reaches.
ACTS = """
import json, os, pathlib, signal, sys, time
words = sys.argv[1:]
out = pathlib.Path(words[words.index("--out") + 1])
given = {words[i + 1].rpartition(".")[2]: words[i + 2] for i, word in enumerate(words) if word == "-p"}
here = pathlib.Path(__file__).parent
(here / f"{out.name}.began").write_text(f"{time.time()} {os.environ['OMP_NUM_THREADS']} {os.getpid()}")
act = given.get("representation", "rgb")
if act == "npr" and not (here / "mended").exists():
    print("one\\x1b[31m\\nbar 1\\rbar 2\\ndfd: no luck", flush=True)
    sys.exit(1)
if act == "highpass" and not (here / "mended").exists():
    if (here / "stubborn").exists():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (here / "sleeps").write_text(str(os.getpid()))
    time.sleep(600)
value = {"value": int(given["batch_size"]) / 100, "low": 0.1, "high": 0.99}
time.sleep(float(os.environ.get("TAKES", 0)))
numbers = {"val": {"auc": value}, "test": {"auc": value | {"value": 1 - value["value"]}}}
(out / "metrics.json").write_text(json.dumps({"stage1": numbers}))
(out / "config.json").write_text(json.dumps({"notebooks": {"01_stage1_real_fake": {"status": "finished"}}}))
(out / "index.html").write_text("x")
(here / f"{out.name}.ended").write_text(str(time.time()))
"""


class Case:
    """A folder with data, a grid and a stand-in for `dfd run`."""

    def __init__(self, folder):
        self.folder, self.data, self.grid, self.out = folder, folder / "images", folder / "rates.yaml", folder / "out"
        self.data.mkdir()
        self.script = folder / "acts" / "acts.py"
        self.script.parent.mkdir()
        self.script.write_text(ACTS)
        self.said = []

    def write(self, text):
        self.grid.write_text(f"data: {self.data}\n{text}\n")
        return self

    def read(self, **options):
        return parameter_grid.read(self.grid, **options)

    def run(self, jobs=2, **options):
        command = (sys.executable, str(self.script))
        self.said.clear()
        return parameter_sweep.run(self.read(), self.out, jobs, command=command, say=self.said.append, **options)

    def statuses(self):
        return [entry["status"] for entry in io.read_json(self.out / RECORD).get("runs", {}).values()]

    def began(self):
        return sorted(path.stem for path in self.script.parent.glob("*.began"))


@pytest.fixture
def case(tmp_path, monkeypatch):
    for name in parameter_sweep.THREADS:
        monkeypatch.delenv(name, raising=False)
    return Case(tmp_path)


PLAIN = "parameters:\n  01.batch_size: [16, 24, 8]"
MIXED = "parameters:\n  batch_size: 16\nruns:\n- representation: npr\n- representation: rgb\n- representation: highpass"


def test_a_grid_is_the_product_of_its_lists_with_what_is_fixed_and_the_seeds(case):
    case.write("notebooks: [0, 1]\nparameters:\n  01.lr_gc: [1e-3, 0.003]\n  crop_size: [64, 96]\n  num_epochs: 2")
    sweep = case.read()
    assert (sweep.name, sweep.profile, sweep.notebooks) == ("rates", "demo", STEMS[:2])
    assert [run.name for run in sweep.runs] == [
        "01.lr_gc-1e-3,crop_size-64",
        "01.lr_gc-1e-3,crop_size-96",
        "01.lr_gc-0.003,crop_size-64",
        "01.lr_gc-0.003,crop_size-96",
    ]
    assert dict(sweep.runs[3].settings) == {"01.lr_gc": "0.003", "crop_size": "96", "num_epochs": "2"}
    assert sweep.runs[3].varying == {"01.lr_gc": "0.003", "crop_size": "96"}
    seeded = case.write("seeds: [0, 7]\nprofile: quick").read()
    assert [dict(run.settings) for run in seeded.runs] == [{"01.seed": s, "02.seed": s} for s in ("0", "7")]
    assert [run.name for run in seeded.runs] == ["seed-0", "seed-7"]


def test_runs_may_be_listed_and_names_do_not_depend_on_the_order(case):
    case.write("parameters: {num_epochs: 2}\nruns:\n- {01.lr_gc: 0.01}\n- {02.loss: x}")
    with pytest.raises(SweepError, match="unknown parameter '02.loss'"):
        case.read()
    case.write("parameters: {num_epochs: 2}\nruns:\n- {01.lr_gc: 0.01, 02.joint: false}\n- {02.joint: true}")
    sweep = case.read()
    assert [run.name for run in sweep.runs] == ["01.lr_gc-0.01,02.joint-false", "02.joint-true"]
    assert dict(sweep.runs[1].settings) == {"num_epochs": "2", "02.joint": "true"}
    turned = case.write("runs:\n- {02.joint: false, 01.lr_gc: 0.01, num_epochs: 2}\n- {02.joint: true}").read()
    assert turned.runs[0].name == "01.lr_gc-0.01,02.joint-false,num_epochs-2"


def test_what_no_folder_can_be_called_gets_a_digest(case):
    case.write(
        "notebooks: [3]\nparameters:\n  conditions: [[jpeg 75, blur 1], [jpeg 75 - blur 1], [a/../b]]".replace(
            ", [jpeg 75 - blur 1], [a/../b]", ", [blur 1]"
        )
    )
    first, second = case.read().runs
    assert re.fullmatch(r"conditions-jpeg-75-blur-1-[0-9a-f]{6}", first.name)
    assert dict(second.settings) == {"conditions": "['blur 1']"}
    long = case.write(f"notebooks: [1]\nparameters:\n  backbone: [resnet50, ../{'x' * 300}]").read().runs[1]
    assert len(long.name) < 110 and "/" not in long.name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parameters: {lr_gx: 1}", "unknown parameter 'lr_gx'; did you mean 'lr_gc'?"),
        ("parameters: {num_epochs: [1, two]}", "num_epochs must be a whole number, got 'two'"),
        ("parameters: {num_epochs: [1, 0]}", "num_epochs must be at least 1, got 0"),
        ("parameters: {num_epochs: []}", "num_epochs is an empty list; give it a value"),
        ("parameters: {num_epochs: }", "num_epochs must be a number, a word"),
        ("parameters: {num_epochs: [2, 2]}", "num_epochs lists 2 twice"),
        ("parameters: {lr_gc: [0.1, 1e-1]}", "two runs are the same"),
        ("parameters: {out: x}", "out is no parameter of a run"),
        ("parameters: {03.crops: 2}", "03.crops is a parameter of 03_robustness only; add that under notebooks"),
        ("parameters: [a]", "parameters must be names with values"),
        ("parameters: {num_epochs: 1, num_epochs: 2}", "not YAML: line 2: num_epochs is there twice"),
        ("parameters: {num_epochs: [1, 2]\nseeds", "not YAML: line"),
        ("parameter: {}", "unknown key 'parameter'; did you mean 'parameters'?"),
        ("profile: fast", "unknown profile 'fast'"),
        ("notebooks: [9]", "no notebook '09'; there are: 00_eda"),
        ("notebooks: []", "notebooks must be a list of words"),
        ("notebooks: [3]\nseeds: [1]", "seeds needs a notebook that trains"),
        ("seeds: [1, 1]", "seeds names one twice"),
        ("seeds: [x]", "seed must be a whole number, got 'x'"),
        ("seeds: [1]\nparameters: {seed: 2}", "seed is under seeds and among the parameters"),
        ("runs: []", "runs must be a list"),
        ("runs: [{num_epochs: [1, 2]}]", "run 1 of runs: num_epochs must have one value"),
        ("runs: [{crop_size: 64}]\nparameters: {num_epochs: [1, 2]}", "num_epochs has several values beside runs"),
        ("sort_by: stage1.auk", "sort_by: unknown metric 'stage1.auk'; did you mean 'stage1.auc'?"),
        ("parameters: {seed: [1, 2, 3, 4, 5, 6], num_epochs: [1, 2]}", "asks for 12 runs; `--limit 12` runs them all"),
    ],
)
def test_what_is_wrong_in_a_grid_is_told_in_one_line_with_the_file(case, text, message):
    with pytest.raises(SweepError) as wrong:
        case.write(text).read(limit=10)
    said = str(wrong.value)
    assert said.startswith(f"{case.grid}: ") and message in said and "\n" not in said


def test_missing_files_are_named(case, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"rates\.yaml: no such file"):
        case.read()
    case.grid.write_text("data: nowhere")
    with pytest.raises(FileNotFoundError, match=r"rates\.yaml: no data folder nowhere"):
        case.read()
    case.grid.write_text("")
    with pytest.raises(SweepError, match="needs keys with values"):
        case.read()
    case.grid.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SweepError, match="not text in UTF-8"):
        case.read()


def test_runs_go_at_once_as_many_as_asked_for_each_with_its_share_of_the_cores(case, monkeypatch):
    monkeypatch.setenv("TAKES", "0.5")
    monkeypatch.setattr(runs, "cores", lambda: 8)
    case.write("parameters:\n  01.batch_size: [10, 20, 30, 40]").run(jobs=2)
    began = {p.stem: p.read_text().split() for p in case.script.parent.glob("*.began")}
    ended = {p.stem: float(p.read_text()) for p in case.script.parent.glob("*.ended")}
    assert {threads for _, threads, _ in began.values()} == {"4"}
    at_once = [sum(float(began[o][0]) < ended[one] and ended[o] >= ended[one] for o in began) for one in began]
    assert max(at_once) == 2
    assert parameter_sweep.default_jobs() == 4


def test_the_best_on_validation_leads_though_test_says_otherwise(case):
    page = case.write(PLAIN).run()
    assert page == case.out / "index.html" and case.statuses() == ["finished"] * 3
    text = page.read_text()
    assert text.index("batch_size-24") < text.index('href="01.batch_size-16') < text.index('href="01.batch_size-8')
    frame = pd.read_csv(case.out / "sweep.csv").set_index("01.batch_size")
    assert frame["stage1_val_auc"].to_dict() == {16: 0.16, 24: 0.24, 8: 0.08}
    assert frame["stage1_test_auc"][24] == pytest.approx(0.76)
    assert set(frame["stage1_val_auc_low"]) == {0.1} and frame["stage2_val_accuracy"].isna().all()
    assert any(
        re.search(r"\[\d/3\]  01.batch_size-24  finished after 0:0\d.*AUC 0.240 on validation", s) for s in case.said
    )


def test_a_metric_of_which_less_is_better_is_sorted_so():
    frame = pd.DataFrame(
        {"run": list("abc"), "stage1_val_ece": [0.2, np.nan, 0.1], "stage1_val_auc": [0.2, np.nan, 0.1]}
    )
    assert parameter_sweep_report.order(frame, "stage1.ece")["run"].tolist() == ["c", "a", "b"]
    assert parameter_sweep_report.order(frame, "stage1.auc")["run"].tolist() == ["a", "c", "b"]


@pytest.mark.parametrize(
    ("first", "second", "counted"),
    [
        (("finished", "1"), ("finished", "2"), True),
        (("finished", "3"), ("finished", "2"), False),  # interrupted, or failed, before its second notebook
        (("failed", "1"), ("finished", "2"), False),
        (("running", None), ("finished", "2"), False),
        (("finished", "1"), ("failed", "2"), False),
    ],
)
def test_a_notebook_counts_if_all_before_it_are_finished_and_ended_earlier(tmp_path, first, second, counted):
    entries = {stem: {"status": status} for stem, (status, _) in zip(STEMS, (first, second), strict=False)}
    for stem, (_, ended) in zip(STEMS, (first, second), strict=False):
        entries[stem] |= {"ended": f"2026-11-25T03:0{ended}:00+00:00"} if ended else {}
    io.write_json(tmp_path / "config.json", {"notebooks": entries})
    io.write_json(tmp_path / "metrics.json", {"stage1": {"val": {"auc": {"value": 0.9}}}, "stage2": {"val": {}}})
    found = parameter_sweep_report._measured(tmp_path)
    assert found == ({"stage1": {"val": {"auc": {"value": 0.9}}}} if counted else {})


def test_a_failed_run_is_told_with_its_last_lines_and_stops_no_other(case):
    with pytest.raises(SweepError) as stopped:
        case.write(MIXED.replace("highpass", "highpass\n  batch_size: 20").replace("highpass", "npr")).run(jobs=1)
    assert stopped.value.code == 1
    assert "2 of 3 runs did not finish: " in str(stopped.value) and "run the same command again" in str(stopped.value)
    assert case.statuses() == ["failed", "finished", "failed"]
    assert case.said.count("    dfd: no luck") == 2 and "    bar 2" in case.said
    page = (case.out / "index.html").read_text()
    assert "one\nbar 1\nbar 2\ndfd: no luck</pre>" in page and "2 of 3 runs did not finish" in page

    (case.script.parent / "mended").touch()
    for path in case.script.parent.glob("*.began"):
        path.unlink()
    case.run(jobs=1)
    assert case.statuses() == ["finished"] * 3 and case.said[0] == "1 of 3 runs finished before; kept."
    assert case.began() == ["batch_size-16,representation-npr", "batch_size-20,representation-npr"]


def test_what_the_runs_are_made_from_decides_whether_they_run_again(case):
    def again(text, **options):
        for path in case.script.parent.glob("*.began"):
            path.unlink()
        case.write(text).run(**options)
        return case.began()

    assert again(PLAIN) == ["01.batch_size-16", "01.batch_size-24", "01.batch_size-8"]
    assert again(PLAIN) == []
    assert again(PLAIN.replace("8]", "8, 32]")) == ["01.batch_size-32"]
    assert again(PLAIN + "\n  num_epochs: 2") == ["01.batch_size-16", "01.batch_size-24", "01.batch_size-8"]
    (case.out / "01.batch_size-8" / "index.html").unlink()
    assert again(PLAIN + "\n  num_epochs: 2") == ["01.batch_size-8"]
    (case.data / "new.png").touch()
    assert len(again(PLAIN + "\n  num_epochs: 2")) == 3
    assert len(again("profile: quick\n" + PLAIN + "\n  num_epochs: 2")) == 3


def test_a_record_that_is_no_json_is_named(case):
    case.write(PLAIN).run()
    (case.out / RECORD).write_text("{")
    with pytest.raises(SweepError, match=r"sweep\.json cannot be read .* remove it"):
        case.run()


def test_a_run_that_runs_out_of_memory_says_so(case, monkeypatch):
    case.script.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(SweepError):
        case.write(PLAIN).run()
    assert "    ended by signal 9; most often memory ran out" in case.said


@contextlib.contextmanager
def started(case, text, jobs=2, within="contextlib.nullcontext(parameter_sweep.Process)"):
    """A sweep in a process of its own, when one of its runs sleeps; and the process of that run."""
    case.write(text)
    script = (
        "import contextlib, sys; from dfd import parameter_grid, parameter_sweep, ray_runs\n"
        f"sweep = parameter_grid.read({str(case.grid)!r})\n"
        f"command = ({sys.executable!r}, {str(case.script)!r})\n"
        f"options = {{'out': {str(case.out)!r}, 'jobs': {jobs}, 'command': command, 'threads': 1}}\n"
        "try:\n"
        f"    with {within} as launch: parameter_sweep.run(sweep, launch=launch, **options)\n"
        "except parameter_grid.SweepError as error: print(error, flush=True); sys.exit(error.code)"
    )
    command = [sys.executable, "-u", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        late, sleeps = time.monotonic() + 240, case.script.parent / "sleeps"
        while time.monotonic() < late and not (
            sleeps.exists() and case.statuses() == ["failed", "finished", "running"]
        ):
            time.sleep(0.05)
        try:
            yield process, int(sleeps.read_text())
        finally:
            process.terminate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_ends_its_runs_and_goes_on(case, number):
    with started(case, MIXED, jobs=3) as (process, sleeping):
        process.send_signal(number)
        said = process.stdout.read()
    assert process.returncode == 128 + number and "Traceback" not in said
    assert "Ending 1 run; once more ends at once." in said and "Interrupted. What is done is kept" in said
    with pytest.raises(ProcessLookupError):
        os.kill(sleeping, 0)
    assert case.statuses() == ["failed", "finished", "interrupted"]
    page = (case.out / "index.html").read_text()
    assert "1 finished" in page and "the same command goes on from there" in page
    (case.script.parent / "mended").touch()
    case.run()
    assert case.statuses() == ["finished"] * 3 and case.said[0].startswith("1 of 3")


def test_a_run_that_does_not_end_is_ended_when_asked_again(case):
    (case.script.parent / "stubborn").touch()
    with started(case, MIXED, jobs=3) as (process, sleeping):
        process.send_signal(signal.SIGINT)
        for line in process.stdout:
            if line.startswith("Ending"):
                break
        os.kill(sleeping, 0)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode == 130
    with pytest.raises(ProcessLookupError):
        os.kill(sleeping, 0)


def gone(pid):
    """Whether a process has ended; one that nobody has waited for counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not end a process with its parent")
def test_a_killed_sweep_leaves_no_run_behind_and_goes_on(case):
    with started(case, MIXED, jobs=3) as (process, sleeping):
        assert not gone(sleeping)
        process.kill()
        process.wait()
        late = time.monotonic() + 20
        while time.monotonic() < late and not gone(sleeping):
            time.sleep(0.02)
        assert gone(sleeping)
    (case.script.parent / "mended").touch()
    case.run()
    assert case.statuses() == ["finished"] * 3 and case.said[0].startswith("1 of 3")


def test_a_run_is_not_started_for_a_process_that_is_no_more(tmp_path):
    words = [sys.executable, "-c", parameter_sweep.TIED, "0", sys.executable, "-c", "print('started')"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == ""


def test_a_full_disk_leaves_no_run_behind_and_the_record_whole(case, monkeypatch):
    case.write(PLAIN).run()
    before, sleeps = (case.out / RECORD).read_text(), case.script.parent / "sleeps"

    def full(*args):
        late = time.monotonic() + 60
        while time.monotonic() < late and not (sleeps.exists() and sleeps.read_text()):  # the run that was just started
            time.sleep(0.02)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(io, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        case.write("runs:\n- representation: highpass\n- representation: rgb").run(jobs=2)
    assert (case.out / RECORD).read_text() == before
    with pytest.raises(ProcessLookupError):
        os.kill(int(sleeps.read_text()), 0)


def test_the_best_is_paired_with_the_others_on_the_test_images(case, monkeypatch):
    monkeypatch.setattr(parameter_sweep_report, "DRAWS", 40)
    case.write(PLAIN).run()
    tables = {16: noisy_table(seed=0), 24: noisy_table(seed=0), 8: noisy_table(seed=1)}
    for size, scores in tables.items():
        scores.to_parquet(case.out / f"01.batch_size-{size}" / "scores_stage1.parquet", index=False)
    page = case.run().read_text()
    assert '<a href="01.batch_size-24/index.html">1</a>' in page
    section = page[page.index("Stage 1: AUC, beside run 1") :]
    assert "+0.000 [+0.000, +0.000]" in section and section.count("<td>300</td>") == 2
    (case.out / "01.batch_size-8" / "scores_stage1.parquet").write_bytes(b"no table")
    assert "Run 3: not compared, the tables of" in case.run().read_text()


def test_over_the_seeds_means_are_told(case, monkeypatch):
    case.script.write_text(ACTS.replace('int(given["batch_size"]) / 100', '0.1 * int(given["seed"])'))
    page = case.write("seeds: [1, 3]\nparameters: {crop_size: [64, 96]}").run(jobs=4).read_text()
    assert page.count("<td>2</td><td>0.200 (0.100 to 0.300)</td>") == 2


def test_the_command_lists_runs_and_passes_everything_on(case, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    case.write(PLAIN + "\n  num_epochs: 2")
    call = CliRunner().invoke
    result = call(cli.main, ["sweep", "rates.yaml", "--dry-run", "--out", "x y"])
    assert result.exit_code == 0 and result.output.count("waiting") == 3
    assert "python -m dfd run --data" in result.output and "'x y/01.batch_size-16'" in result.output
    assert "-p 01.batch_size 16 -p num_epochs 2 -- 00_eda 01_stage1_real_fake 02_stage2_attribution" in result.output
    assert not (tmp_path / "x y").exists()

    given = []
    monkeypatch.setattr(parameter_sweep, "run", lambda *args, **options: given.append(args) or tmp_path / "i.html")
    result = call(cli.main, ["sweep", "rates.yaml", "--jobs", "3"])
    assert result.output == "Open i.html\n" and given[0][1:] == ("reports/rates", 3)
    result = call(cli.main, ["sweep", "rates.yaml", "--limit", "2"])
    assert (result.exit_code, result.output.count("\n")) == (2, 1) and "asks for 3 runs" in result.output
    assert "needs --ray" in call(cli.main, ["sweep", "rates.yaml", "--address", "auto"]).output


def test_a_signal_before_the_first_run_ends_in_one_line(case, monkeypatch):
    case.write(PLAIN)
    monkeypatch.setattr(parameter_sweep, "run", lambda *args, **options: signal.raise_signal(signal.SIGTERM))
    result = CliRunner().invoke(cli.main, ["sweep", str(case.grid)])
    assert (result.exit_code, result.output) == (143, "dfd: Interrupted.\n")


@pytest.mark.slow
def test_ray_runs_the_same_and_ends_its_runs_when_interrupted(case):
    """On a cluster of one machine; three runs asked for at once, one of which sleeps until it is ended."""
    pytest.importorskip("ray", reason="needs Ray: pip install -e '.[scale]'")
    with started(case, MIXED, jobs=3, within="ray_runs.on_ray(None, 1)") as (process, sleeping):
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
    assert process.returncode == 130 and "    dfd: no luck" in said and "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.kill(sleeping, 0)
    assert case.statuses() == ["failed", "finished", "interrupted"]
    assert {path.read_text().split()[1] for path in case.script.parent.glob("*.began")} == {"1"}
    (case.script.parent / "mended").touch()
    case.run()  # without Ray, and on
    assert case.said[0].startswith("1 of 3") and case.statuses() == ["finished"] * 3


class Queue:
    """In place of the package ray: a task waits half a second for its cores, then runs."""

    def __init__(self):
        self.ran = []

    def remote(self, **options):
        def task(function):
            return SimpleNamespace(remote=lambda *args: (time.monotonic() + 0.5, function, args))

        return task

    def wait(self, references, timeout):
        return [one for one in references if time.monotonic() > one[0]], []

    def get(self, reference):
        began = time.monotonic()
        found = reference[1](*reference[2])
        self.ran.append(time.monotonic() - began)
        return found


def test_the_wait_in_rays_queue_is_none_of_a_runs_seconds(case, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", queue := Queue())
    case.write(PLAIN).run(jobs=3, launch=lambda command, log, threads: ray_runs.Task(command, log, threads, 0))
    seconds = [entry["seconds"] for entry in io.read_json(case.out / RECORD)["runs"].values()]
    assert len(queue.ran) == 3 and all(0 < s < ran + 0.1 for s, ran in zip(seconds, queue.ran, strict=True))


def test_a_run_whose_seconds_nobody_knows_has_none(case):
    class Lost(parameter_sweep.Process):
        seconds = property(lambda self: None, lambda self, value: None)

    page = case.write(PLAIN).run(launch=Lost)
    assert pd.read_csv(case.out / "sweep.csv")["seconds"].isna().all() and page.exists()
    assert any(line.endswith("01.batch_size-8  finished  Stage 1: AUC 0.080 on validation") for line in case.said)


def test_without_ray_the_remedy_is_named(case, monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "dfd.scale.cluster", raising=False)  # of other tests
    monkeypatch.delattr(dfd, "cluster", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    result = CliRunner().invoke(cli.main, ["sweep", str(case.write(PLAIN).grid), "--ray"])
    assert result.exit_code == 2 and result.output == "dfd: --ray needs the package ray: pip install -e '.[scale]'\n"


def test_tiny_notebooks_run_through_the_command_line(case, monkeypatch, tmp_path):
    """The real `run`, on a notebook that fails for one value."""
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    cells = [
        new_markdown_cell("# 01 · Does it run?\n\nReads."),
        new_code_cell('data = "d"\nout = "o"\nseed = 0\nepochs = 1', metadata={"tags": ["parameters"]}),
        new_code_cell("print('kept', 1 / (epochs - 2))"),
    ]
    nbformat.write(new_notebook(cells=cells), notebooks / "01_tiny.ipynb")
    (tmp_path / "configs.py").write_text(
        "from dataclasses import dataclass\nfrom functools import partial\nfrom dfd import __main__, config, report\n"
        "@dataclass(frozen=True)\nclass Tiny(config.Shared):\n    epochs: int = 1\n"
        f"options = {{'folder': {str(notebooks)!r}, 'configs': {{'01_tiny': Tiny}}}}\n"
        "if __name__ == '__main__':\n    report.run = partial(report.run, **options)\n    __main__.main()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    configs = importlib.import_module("configs")

    case.write("notebooks: [1]\nparameters:\n  epochs: [1, 2]")
    command = (sys.executable, str(tmp_path / "configs.py"), "run")
    asked = parameter_grid.read(case.grid, **configs.options)
    with pytest.raises(SweepError, match="1 of 2 runs did not finish: epochs-2"):
        parameter_sweep.run(asked, case.out, 1, folder=notebooks, command=command, say=case.said.append)
    assert any("ZeroDivisionError" in line for line in case.said), case.said
    assert "kept -1.0" in (case.out / "epochs-1" / LOG).read_text()
    assert (case.out / "epochs-1" / "01_tiny.html").exists() and case.statuses() == ["finished", "failed"]


@pytest.mark.slow
def test_a_real_sweep_trains_and_compares(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    grid = tmp_path / "rates.yaml"
    small = "backbone: test_resnet.r160_in1k, pretrained: false, num_epochs: 1, crop_size: 32, crops: 1, workers: 0"
    grid.write_text(
        f"data: {tiny_data}\nnotebooks: [0, 1]\nparameters: {{{small}, batch_size: 8, launderer_width: 4,"
        " images_per_epoch: 16, 01.lr_gc: [0.001, 0.01]}"
    )
    words = [sys.executable, "-m", "dfd", "sweep", str(grid), "--out", str(tmp_path / "out"), "--jobs", "2"]
    result = subprocess.run(words, capture_output=True, text=True, cwd=config.ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    frame = pd.read_csv(tmp_path / "out" / "sweep.csv")
    assert frame["status"].tolist() == ["finished"] * 2 and frame["stage1_val_auc"].between(0, 1).all()
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Beside the best" in page and "Metrics against 01.lr_gc" in page
