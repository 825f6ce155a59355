"""Parameter sweeps: which runs a grid asks for, how they are run, ended and kept, and what is said of them."""

import os
import re
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from sklearn.metrics import roc_auc_score

from dfd import cli, config
from dfd.data import manifest
from dfd.reports import runner, sweep

# Does what `dfd run` leaves behind: `extractor` is its behaviour, and batch_size the number it reaches.
ACTS = """
import json, os, pathlib, signal, sys, time
words = sys.argv[1:]
out = pathlib.Path(words[words.index("--out") + 1])
given = {words[i + 1].rpartition(".")[2]: words[i + 2] for i, word in enumerate(words) if word == "-p"}
here = pathlib.Path(__file__).parent
(here / f"{out.name}.began").write_text(f"{time.time()} {os.environ['OMP_NUM_THREADS']} {os.getpid()}")
act = given.get("extractor", "rgb")
if act == "unet" and not (here / "mended").exists():
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
(out / "metrics.json").with_suffix(".part").write_text(json.dumps({"stage1": numbers}))
os.replace(out / "metrics.part", out / "metrics.json")  # at once, as runs write it: the sweep reads meanwhile
(out / "index.html").write_text("x")
(here / f"{out.name}.ended").write_text(str(time.time()))
"""
PLAIN = "parameters:\n  01.batch_size: [16, 24, 8]"
MIXED = "parameters:\n  batch_size: 16\nruns:\n- extractor: unet\n- extractor: rgb\n- extractor: highpass"


class Case:
    """A folder with data, a grid and a stand-in for `dfd run`."""

    def __init__(self, folder):
        self.data, self.grid, self.out = folder / "images", folder / "rates.yaml", folder / "out"
        self.data.mkdir()
        self.script = folder / "acts" / "acts.py"
        self.script.parent.mkdir()
        self.script.write_text(ACTS)
        self.said = []

    def write(self, text):
        self.grid.write_text(f"data: {self.data}\n{text}\n")
        return self

    def settings(self, text):
        return sweep.read(self.write(text).grid).settings()

    def run(self, jobs=2):
        self.said.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sweep, "COMMAND", (sys.executable, str(self.script)))
            return sweep.run(sweep.read(self.grid), self.out, jobs, say=self.said.append)

    def statuses(self):
        table = self.out / "sweep.csv"
        return sorted(pd.read_csv(table)["status"]) if table.exists() else []


@pytest.fixture
def case(tmp_path, monkeypatch):
    for name in sweep.THREADS:
        monkeypatch.delenv(name, raising=False)
    return Case(tmp_path)


def test_a_grid_is_the_product_of_its_lists_with_what_is_fixed_and_the_seeds(case):
    text = "notebooks: [0, 1]\nparameters:\n  01.lr_gc: [1e-3, 0.003]\n  crop_size: [64, 96]\n  num_epochs: 2"
    assert case.settings(text) == {
        f"01.lr_gc-{rate},crop_size-{size}": {"01.lr_gc": rate, "crop_size": size, "num_epochs": "2"}
        for rate in ("1e-3", "0.003")
        for size in ("64", "96")
    }
    seeded = case.settings("seeds: [0, 7]\nprofile: quick")
    assert seeded == {f"seed-{seed}": {"01.seed": seed, "02.seed": seed} for seed in ("0", "7")}


def test_runs_may_be_listed_and_names_do_not_depend_on_the_order(case):
    settings = case.settings(
        "parameters: {num_epochs: 2}\nruns:\n- {01.lr_gc: 0.01, 02.pretrained: no}\n- {02.pretrained: yes}"
    )
    assert list(settings) == ["01.lr_gc-0.01,02.pretrained-false", "02.pretrained-true"]
    assert settings["02.pretrained-true"] == {"num_epochs": "2", "02.pretrained": "true"}
    turned = case.settings("runs:\n- {02.pretrained: no, 01.lr_gc: 0.01}\n- {02.pretrained: yes, 01.lr_gc: 0.02}")
    assert list(turned) == ["01.lr_gc-0.01,02.pretrained-false", "01.lr_gc-0.02,02.pretrained-true"]


def test_what_no_folder_can_be_called_gets_a_digest(case):
    first, second = case.settings("notebooks: [3]\nparameters:\n  conditions: [[jpeg 75, blur 1], [blur 1]]").items()
    assert re.fullmatch(r"conditions-jpeg-75,-blur-1-[0-9a-f]{6}", first[0])
    planned = runner.plan(["03_robustness"], config.NOTEBOOKS, {}, "demo", first[1])
    assert planned["03_robustness"]["conditions"] == ("jpeg 75", "blur 1")
    assert len(second[0]) < 110
    long = list(case.settings(f"notebooks: [1]\nparameters:\n  backbone: [resnet50, ../{'x' * 300}]"))[1]
    assert len(long) < 110 and "/" not in long


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parameters: {lr_gx: 1}", "unknown parameter 'lr_gx'; did you mean 'lr_gc'?"),
        ("parameters: {num_epochs: [1, two]}", "num_epochs must be a valid integer"),
        ("parameters: {num_epochs: [1, 0]}", "num_epochs must be greater than or equal to 1"),
        ("parameters: {num_epochs: []}", "num_epochs"),
        ("parameters: {num_epochs: [2, 2]}", "two runs are the same"),
        ("parameters: {out: x}", "set out with --out"),
        ("parameters: [a]", "parameters: Input should be a valid dictionary"),
        ("parameters: {num_epochs: [1, 2]\nseeds", "while parsing a flow mapping"),
        ("parameter: {}", "parameter: Extra inputs are not permitted"),
        ("profile: fast", "unknown profile 'fast'"),
        ("notebooks: [9]", "no notebook 9; there are: 00_eda"),
        ("notebooks: [3]\nseeds: [1]", "seeds needs a notebook that trains"),
        ("seeds: [x]", "seeds.0: Input should be a valid integer"),
    ],
)
def test_what_is_wrong_in_a_grid_is_told_in_one_line_with_the_file(case, text, message):
    with pytest.raises(config.ConfigError) as wrong:
        sweep.read(case.write(text).grid)
    assert (
        str(wrong.value).startswith(f"{case.grid}: ") and message in str(wrong.value) and "\n" not in str(wrong.value)
    )


def test_missing_files_are_named(case):
    with pytest.raises(FileNotFoundError, match=r"rates\.yaml"):
        sweep.read(case.grid)
    case.grid.write_text("data: nowhere")
    with pytest.raises(FileNotFoundError, match=r"rates\.yaml: no data folder nowhere"):
        sweep.read(case.grid)


def test_runs_go_at_once_as_many_as_asked_for_each_with_its_share_of_the_cores(case, monkeypatch):
    monkeypatch.setenv("TAKES", "0.5")
    monkeypatch.setattr(sweep, "cores", lambda: 8)
    case.write("parameters:\n  01.batch_size: [10, 20, 30, 40]").run(jobs=2)
    began = {p.stem: p.read_text().split() for p in case.script.parent.glob("*.began")}
    ended = {p.stem: float(p.read_text()) for p in case.script.parent.glob("*.ended")}
    assert {threads for _, threads, _ in began.values()} == {"4"}
    at_once = [sum(float(began[o][0]) < ended[name] and ended[o] >= ended[name] for o in began) for name in began]
    assert max(at_once) == 2


def test_the_best_on_validation_leads_though_test_says_otherwise(case):
    page = case.write(PLAIN).run()
    assert page == case.out / "index.html" and case.statuses() == ["finished"] * 3
    text = page.read_text()
    order = re.findall(r'href="01.batch_size-(\d+)/index.html"', text)
    assert order == ["24", "16", "8"]
    frame = pd.read_csv(case.out / "sweep.csv").set_index("01.batch_size")
    assert frame["stage1_val_auc"].to_dict() == {16: 0.16, 24: 0.24, 8: 0.08}
    assert frame["stage1_test_auc"][24] == pytest.approx(0.76)
    assert set(frame["stage1_val_auc_low"]) == {0.1}
    assert any(re.match(r"01.batch_size-24  finished after 0:0\d", line) for line in case.said)


def test_where_sources_were_left_out_they_choose_and_not_what_was_learnt_from(case):
    draws = '{"value": 1 - value["value"], "deviation": 0.1, "worst": 0.25, "draws": 40}'
    held = f'numbers["hold_outs"] = {{"as it is": {{"auc": {draws}}}}}\n(out / "metrics.json")'
    case.script.write_text(ACTS.replace('(out / "metrics.json")', held))
    text = re.sub(r"\s+", " ", re.sub(r"<.*?>", "", case.write(PLAIN).run().read_text()))
    frame = pd.read_csv(case.out / "sweep.csv").set_index("01.batch_size")
    assert frame["stage1_val_auc"].to_dict() == {16: 0.84, 24: 0.76, 8: 0.92} and frame.index[0] == 8
    assert "0.920Stage 1: AUC, best on validation mean of 40 hold-outs, worst 0.250" in text
    assert "Stage 1: validation is judgements of sources left out" in text and "Stage 2:" not in text
    names = '{"accuracy": value, "balanced_accuracy": value}'
    own = f'{{"val": {names}, "test": {names}}}'  # without draws: each generator has one source
    second = f'"stage1": numbers, "stage2": {own}'
    case.script.write_text(ACTS.replace('"stage1": numbers', second).replace('(out / "metrics.json")', held))
    assert "only some" not in case.run().read_text()
    assert pd.read_csv(case.out / "sweep.csv")["stage1_val_auc"].tolist() == [0.92, 0.84, 0.76]
    some = held.replace("numbers[", "if given['batch_size'] != '24': numbers[")
    case.script.write_text(ACTS.replace('(out / "metrics.json")', some))
    text = case.run().read_text()
    assert pd.read_csv(case.out / "sweep.csv")["stage1_val_auc"].tolist() == [0.24, 0.16, 0.08]
    assert "Stage 1: only some runs have judgements" in text
    of_two = f"numbers['stage2']['hold_outs'] = {{'as it is': {{'accuracy': {draws}}}}}"
    some = f"if given['batch_size'] != '24': {of_two.replace('numbers[', 'both[')}"
    both = f'both = {{"stage1": numbers, "stage2": {own}}}\n{some}\n(out / "metrics.json")'
    acts = ACTS.replace('(out / "metrics.json")', both).replace('{"stage1": numbers}', "both")
    case.script.write_text(acts)
    text = case.run().read_text()
    assert "Stage 2: only some runs have judgements" in text and "Stage 1: " not in re.sub("Stage 1: AUC", "", text)


def test_names_on_sources_left_out_stand_beside_the_balanced_accuracy_of_test_images(case):
    """Accuracy of hold-outs is the mean over the generators; the test split's plain one is another number."""
    draws = '{"value": 0.6, "deviation": 0.1, "worst": 0.25, "draws": 40}'
    test = '{"accuracy": {"value": 0.9}, "balanced_accuracy": {"value": 0.7}}'
    second = f'"stage2": {{"hold_outs": {{"as it is": {{"accuracy": {draws}}}}}, "test": {test}}}'
    case.script.write_text(ACTS.replace('"stage1": numbers', f'"stage1": numbers, {second}'))
    text = re.sub(r"\s+", " ", re.sub(r"<.*?>", "", case.write("parameters:\n  01.batch_size: [16]").run().read_text()))
    assert "0.600Stage 2: Balanced accuracy, best on validation mean of 40 hold-outs, worst 0.250" in text
    assert "on test 0.700" in text and "Stage 2: validation is judgements of sources left out" in text


def test_the_best_settings_over_the_seeds_lead(case):
    case.script.write_text(
        ACTS.replace('int(given["batch_size"])', '(10 * int(given["seed"]) + int(given["crop_size"]) - 10)')
    )
    page = case.write("seeds: [1, 3]\nparameters: {crop_size: [32, 40]}").run(jobs=4).read_text()
    rows = re.findall(r"<tr><td>(\d+)</td><td>2</td><td>(.*?)</td></tr>", page)
    assert rows == [("40", "0.500 (0.400 to 0.600)"), ("32", "0.420 (0.320 to 0.520)")]


def test_a_failed_run_is_told_with_its_last_lines_and_stops_no_other(case):
    case.write(MIXED.replace("extractor: highpass", "{extractor: unet, batch_size: 20}"))
    with pytest.raises(runner.RunError, match="2 of 3 runs did not finish: .*run the same command again") as stopped:
        case.run(jobs=1)
    assert stopped.value.code == 1 and case.statuses() == ["failed", "failed", "finished"]
    assert sum("\n    dfd: no luck" in line for line in case.said) == 2
    page = (case.out / "index.html").read_text()
    assert "one\nbar 1\nbar 2\ndfd: no luck</pre>" in page and "2 of 3 runs did not finish" in page
    (case.script.parent / "mended").touch()
    case.run()
    assert case.statuses() == ["finished"] * 3


def test_a_run_that_runs_out_of_memory_says_so_and_shows_no_numbers_of_an_earlier_call(case, monkeypatch):
    monkeypatch.setattr(sweep, "cores", lambda: 6)
    case.write(PLAIN).run(jobs=None)
    assert {p.read_text().split()[1] for p in case.script.parent.glob("*.began")} == {"2"}  # three at once
    case.script.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(runner.RunError):
        case.write(PLAIN).run()
    assert case.said[-1].endswith("ended by signal 9; most often memory ran out")
    assert "stage1_val_auc" not in pd.read_csv(case.out / "sweep.csv")


def started(case):
    """A sweep in a process of its own, when one of its runs sleeps; and the process of that run."""
    case.write(MIXED)
    script = (
        "import sys; from dfd.reports import runner, sweep\n"
        f"grid, sweep.COMMAND = sweep.read({str(case.grid)!r}), ({sys.executable!r}, {str(case.script)!r})\n"
        f"try: sweep.run(grid, {str(case.out)!r}, 3)\n"
        "except runner.RunError as error: print(error, flush=True); sys.exit(error.code)"
    )
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([sys.executable, "-u", "-c", script], **options)
    late, sleeps = time.monotonic() + 240, case.script.parent / "sleeps"
    while time.monotonic() < late and not (sleeps.exists() and case.statuses() == ["failed", "finished", "waiting"]):
        time.sleep(0.05)
    return process, int(sleeps.read_text())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_ends_its_runs_and_goes_on(case, number):
    process, sleeping = started(case)
    process.send_signal(number)
    said = process.communicate()[0]
    assert process.returncode == 128 + number and "Traceback" not in said
    assert "once more ends at once" in said and "Interrupted. What is done is kept" in said
    with pytest.raises(ProcessLookupError):
        os.kill(sleeping, 0)
    assert case.statuses() == ["failed", "finished", "interrupted"]
    page = (case.out / "index.html").read_text()
    assert "1 finished" in page and "the same command goes on from there" in page
    (case.script.parent / "mended").touch()
    case.run()
    assert case.statuses() == ["finished"] * 3


def test_a_run_that_does_not_end_is_ended_when_asked_again(case):
    (case.script.parent / "stubborn").touch()
    process, sleeping = started(case)
    process.send_signal(signal.SIGINT)
    for line in process.stdout:
        if "Ending" in line:
            break
    os.kill(sleeping, 0)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    with pytest.raises(ProcessLookupError):
        os.kill(sleeping, 0)


def test_a_full_disk_leaves_no_run_behind(case, monkeypatch):
    sleeps = case.script.parent / "sleeps"

    def full(*args, **options):
        while not (sleeps.exists() and sleeps.read_text()):  # the run that was just started
            time.sleep(0.02)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sweep, "as_completed", full)
    with pytest.raises(OSError, match="No space left"):
        case.write("parameters: {batch_size: 8}\nruns:\n- extractor: highpass\n- extractor: rgb").run()
    with pytest.raises(ProcessLookupError):
        os.kill(int(sleeps.read_text()), 0)


def test_the_command_lists_runs_and_passes_everything_on(case, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    case.write(PLAIN + "\n  num_epochs: 2")
    call = CliRunner().invoke
    result = call(cli.main, ["sweep", "rates.yaml", "--dry-run", "--out", "x y"])
    assert result.exit_code == 0 and result.output.count("batch_size-") == 6
    assert "python -m dfd run --data" in result.output and "'x y/01.batch_size-16'" in result.output
    assert "-p 01.batch_size 16 -p num_epochs 2 -- 00_eda 01_stage1_real_fake 02_stage2_attribution" in result.output
    assert not (tmp_path / "x y").exists()

    given = []
    monkeypatch.setattr(sweep, "run", lambda *args, **options: given.append(args) or tmp_path / "i.html")
    result = call(cli.main, ["sweep", "rates.yaml", "--jobs", "3"])
    assert result.output == "Open i.html\n" and given[0][1:] == ("reports/rates", 3)


@pytest.mark.slow
def test_a_real_sweep_trains_and_compares(tiny_data, tmp_path):
    grid = tmp_path / "rates.yaml"
    small = "backbone: test_resnet.r160_in1k, pretrained: false, num_epochs: 1, crop_size: 32, crops: 1, workers: 0"
    grid.write_text(
        f"data: {tiny_data}\nnotebooks: [1]\nparameters: {{{small}, batch_size: 8, launderer_width: 4,"
        " images_per_epoch: 16, 01.lr_gc: [0.001, 0.01]}"
    )
    runs = [tmp_path / "out" / f"01.lr_gc-{rate}" for rate in (0.001, 0.01)]
    for run in runs:  # as notebook 00 does, which takes as long as a training
        manifest.scan(tiny_data, run, progress=False)
    words = [sys.executable, "-m", "dfd", "sweep", str(grid), "--out", str(tmp_path / "out"), "--jobs", "2"]
    result = subprocess.run(words, capture_output=True, text=True, cwd=config.ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    frame = pd.read_csv(tmp_path / "out" / "sweep.csv")
    assert frame["status"].tolist() == ["finished"] * 2
    for run, found in zip(runs, frame.sort_values("01.lr_gc")["stage1_val_auc"], strict=True):
        rows = pd.read_parquet(run / "scores_stage1.parquet").query("split == 'val' and degradation == 'none'")
        assert found == pytest.approx(roc_auc_score(rows["label"] != "RealPhotos", rows["logit_fake"]))
        trained = torch.load(run / config.CHECKPOINTS["stage1"], weights_only=True)
        assert f"-{trained['config']['lr_gc']}" in run.name and trained["finished"]
    assert "01.lr_gc" in (tmp_path / "out" / "index.html").read_text()


def test_the_folder_of_a_run_is_none_for_a_sweep(case):
    case.out.mkdir()
    (case.out / "config.json").write_text("{}")
    with pytest.raises(config.ConfigError, match="is the folder of a run; give the sweep another --out"):
        case.write(PLAIN).run()
    assert not (case.out / "index.html").exists()


def test_a_sweep_shows_what_it_ran_and_what_an_earlier_call_finished(case):
    case.script.write_text(ACTS.replace('{"stage1": numbers}', '{"stage1": numbers, "stage2": numbers}'))
    case.write("notebooks: [0, 1]\n" + PLAIN).run()
    grid = sweep.read(case.grid)
    entries = sweep.entries_of(grid, case.out)
    text = sweep.write(grid, entries, case.out).read_text()  # again, and stopped before any began
    assert "0.240" in text and "waiting" in text and "Stage 2:" not in text
    assert "The runs differ in" not in text
    assert "3 of the runs that wait show numbers of an earlier call, which may have had other parameters" in text
    entries["01.batch_size-16"]["status"] = "finished"  # what was run leads on the card, though less than what waits
    text = re.sub(r"<.*?>", "", sweep.write(grid, entries, case.out).read_text())
    assert "0.160Stage 1: AUC, best on validation" in text.replace("\n", "") and "2 of the runs that wait show" in text


@pytest.mark.parametrize(
    ("setting", "told"),
    [("seed: [0, 1]", "seed"), ("00.seed: [0, 1]", "00.seed"), ("00_eda.seed: [0, 1]", "00_eda.seed"),
     ("01.seed: [0, 1]", ""), ("val_fraction: [0.1, 0.2]", "val_fraction"),
     ("00.val_fraction: [0.1, 0.2]", "00.val_fraction"), ("01.hold_outs: [8, 40]", "01.hold_outs")],
)  # fmt: skip
def test_a_sweep_over_what_chooses_the_validation_images_says_so(case, setting, told):
    """By the name of the notebook too; the seed of a training leaves the splits as they are."""
    text = case.write(f"notebooks: [0, 1]\nparameters:\n  {setting}\n  batch_size: 8").run().read_text()
    line = f"The runs differ in {told}, which may give them other validation images"
    assert (line in text) if told else ("The runs differ in" not in text)


def test_a_sweep_again_keeps_its_page_until_it_has_more_and_tells_the_time_of_all_calls(case, monkeypatch):
    case.write(PLAIN).run()
    for run in case.out.glob("*/"):
        (run / "config.json").write_text('{"notebooks": {"01": {"seconds": 70.0}, "02": {"seconds": 50.0}}}')
    seen, write = [], sweep.write
    monkeypatch.setattr(sweep, "write", lambda *given: seen.append(1) or write(*given))
    case.run()
    assert len(seen) == 3  # one a run, and none before there is a number
    table = pd.read_csv(case.out / "sweep.csv")
    assert table["status"].eq("finished").all() and table["seconds"].eq(120).all()
