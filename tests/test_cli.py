"""The command line: what each command passes on, prints and answers when something is wrong."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from bad_files import picture
from click.testing import CliRunner

import dfd
from dfd import cli, config
from dfd.core.images import ImageError
from dfd.inference import files
from dfd.reports import runner

HEAVY = ("torch", "pandas", "numpy", "sklearn", "papermill", "nbconvert", "matplotlib", "PIL", "pydantic")


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run a command in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(cli.main, list(words))


def every_command(group=cli.main, path=()):
    for name, command in group.commands.items():
        yield (*path, name)
        if hasattr(command, "commands"):
            yield from every_command(command, (*path, name))


def test_help_imports_nothing_heavy():
    script = f"import sys, dfd.cli; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("words", list(every_command()), ids=" ".join)
def test_every_command_teaches_with_an_example(words, call):
    result = call(*words, "--help")
    assert result.exit_code == 0
    assert f"python -m dfd {' '.join(words)}" in result.output
    assert "[OPTIONS]" in result.output and "\\b" not in result.output


def test_choices_are_those_of_the_parameters():
    given = {"crop mode": config.CROP_MODES, "profile": config.PROFILES, "stage": tuple(config.CHECKPOINTS)}
    assert {name: tuple(values) for name, values in cli.CHOICES.items()} == given


def test_run_passes_everything_on(call, monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(runner, "run", lambda *args: given.append(args) or tmp_path / "r" / "index.html")
    words = "run --data d --out r --profile quick -p epochs 3 -p 02.name x --fresh 01 2".split()
    result = call(*words)
    assert given == [("d", "r", "quick", {"epochs": "3", "02.name": "x"}, ("01", "2"), True)]
    assert result.output.startswith("Open r/index.html\nNext: train with `python -m dfd run --out r`, with the same -p")


def test_run_ends_with_what_was_found(call, monkeypatch, tmp_path):
    """The numbers of the test split with their intervals, where there are some."""
    sure, few = {"value": 0.91234, "low": 0.8, "high": 0.95}, {"value": 0.5, "low": None, "high": None}
    numbers = {"stage1": {"test": {"auc": sure, "real_accuracy": few, "fake_accuracy": few}}}
    (tmp_path / "metrics.json").write_text(json.dumps(numbers))
    monkeypatch.setattr(runner, "run", lambda *args: tmp_path / "index.html")
    found, opened, after = call("run", "--out", "r").output.splitlines()
    assert "AUC 0.912 (0.800 to 0.950), photos called real 0.500, fakes" in found and "which generator" not in found
    assert opened.startswith("Open ") and after.startswith("Next: ")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (config.ConfigError("unknown parameter 'x'"), 2),
        (ImageError("a.png: empty"), 2),
        (FileNotFoundError("no data folder"), 2),
        (runner.RunError("01 failed", 1), 1),
        (runner.RunError("Interrupted", 130), 130),
    ],
)
def test_expected_errors_are_one_line(error, code, call, monkeypatch):
    def fail(*args):
        raise error

    monkeypatch.setattr(runner, "run", fail)
    result = call("run")
    assert (result.exit_code, result.output) == (code, f"dfd: {error}\n")
    assert "Traceback" in call("--debug", "run").output
    monkeypatch.setenv("DFD_DEBUG", "1")
    assert "Traceback" in call("run").output


def test_other_errors_keep_their_traceback(call, monkeypatch):
    def fail(*args):
        raise AttributeError("a mistake of ours")

    monkeypatch.setattr(runner, "run", fail)
    assert isinstance(call("run").exception, AttributeError)


def test_a_misspelt_parameter_and_missing_data_end_the_real_command(call):
    result = call("run", "-p", "num_epoch", "3")
    assert result.exit_code == 2 and "did you mean 'num_epochs'" in result.output
    result = call("run", "--data", "nowhere")
    assert result.exit_code == 2 and "no data folder nowhere" in result.output


@pytest.mark.parametrize("words", [("run",), ("train", "stage1")])
def test_a_parameter_that_is_given_twice_is_refused(words, call):
    result = call(*words, "-p", "hold_out", "a", "-p", "hold_out", "b")
    assert result.exit_code == 2 and "-p gives a parameter twice" in result.stderr


def test_home_is_found_in_every_path(call, verdicts, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "reports").rename(tmp_path / "home")
    call("predict", "--model=~/new", "a.png")
    assert verdicts.loaded == [tmp_path / "home" / "new"]


def test_a_comparison_makes_the_folder_of_its_page(call, monkeypatch, tmp_path):
    from dfd.evaluate import compare

    monkeypatch.setattr(compare, "compare", lambda runs: [])
    monkeypatch.setattr("dfd.reports.html.render", lambda path, *_, **__: Path(path))
    assert call("compare", "a", "b", "--out", "new/page.html").exit_code == 0 and (tmp_path / "new").is_dir()


def test_predict_without_a_model_says_how_to_get_one(call, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "DETECTOR", tmp_path / "none")
    result = call("predict", "a.png")
    assert result.exit_code == 2 and result.output.count("\n") == 1
    assert "make demo" in result.output and "python -m dfd run" in result.output
    assert call("predict", "--model", str(tmp_path), "a.png").exit_code == 2


def test_the_shipped_detector_answers_before_a_run_on_simulated_fakes(call, verdicts, tmp_path, monkeypatch):
    from dfd.core import io
    from dfd.data.sample import NOTE

    monkeypatch.setattr(config, "DETECTOR", tmp_path / "detector")
    assert files.find_model(None) == tmp_path / "reports" / "new"
    (tmp_path / "reports" / "new" / "train_stage2.pt").touch()  # stopped, or still going on
    os.utime(tmp_path / "reports" / "new" / "train_stage2.pt", (1e9 - 10, 1e9 - 10))  # before another one was finished
    assert files.find_model(None) == tmp_path / "reports" / "new"
    (tmp_path / "reports" / "new" / "train_stage2.pt").touch()
    lines = []
    assert files.find_model(None, lines.append) == tmp_path / "reports" / "old"
    assert lines == [f"{tmp_path / 'reports' / 'new'} is being trained, or was stopped; its networks are passed over"]
    (tmp_path / "reports" / "new" / "train_stage2.pt").unlink()
    read, closed, lines = files.read_json, tmp_path / "reports" / "new" / "metrics.json", []

    def refuse(path):
        if path == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "read_json", refuse)  # a folder of somebody else, whom a chmod would not stop as root
        assert files.find_model(None, lines.append) == tmp_path / "reports" / "old"
    assert len(lines) == 1 and f"{closed}'; its networks are passed over" in lines[0]
    io.write_json(tmp_path / "reports" / "new" / "metrics.json", {"notes": []})  # trained, and never measured
    assert files.find_model(None) == tmp_path / "reports" / "old"
    io.write_json(tmp_path / "reports" / "old" / "metrics.json", {"stage1": {}, "notes": [NOTE]})
    with pytest.raises(FileNotFoundError, match="no trained model"):
        files.find_model(None)
    (tmp_path / "detector").mkdir()
    (tmp_path / "detector" / config.SUMS).touch()
    assert files.find_model(None) == tmp_path / "detector" == files.find_model(str(tmp_path / "detector"))
    assert files.find_model("reports/new") == Path("reports/new")


@pytest.fixture
def verdicts(monkeypatch, tmp_path):
    """A trained run folder, and a detector that finds names with an f fake; gives the calls it got."""
    from dfd.inference import detector as inference

    calls = []

    class Detector:
        def predict(self, paths, crops=None, mode=None, report=print):
            for path in paths:
                calls.append((path, crops, mode))
                if "large" in path:
                    report(f"{path}: scored on 252 of 1890 crops")
                if "bad" in path:
                    yield inference.Verdict(path, error="truncated")
                elif "f" in path.rsplit("/")[-1]:
                    both = {"ProGAN": 0.75, "BigGAN": 0.25}
                    source = "unknown" if "strange" in path else "ProGAN"
                    yield inference.Verdict(path, True, "fake", 0.9876, source, both, ("ProGAN", "BigGAN"), 5, 0.1)
                else:
                    sources = {"ProGAN": 0.6, "BigGAN": 0.4}
                    yield inference.Verdict(path, False, "real", 0.0123, "RealPhotos", sources, ("ProGAN",), 5, 0.1)

    for age, name in enumerate(("new", "old")):
        folder = tmp_path / "reports" / name
        folder.mkdir(parents=True)
        for checkpoint in config.CHECKPOINTS.values():
            (folder / checkpoint).touch()
            os.utime(folder / checkpoint, (1e9 - age, 1e9 - age))
        (folder / "metrics.json").write_text('{"stage1": {}}')
    (tmp_path / "reports" / "half").mkdir()
    (tmp_path / "reports" / "half" / config.CHECKPOINTS["stage1"]).touch()  # a run that is still going on
    loaded = []
    monkeypatch.setattr(inference.Detector, "load", lambda run: loaded.append(run) or Detector())
    return SimpleNamespace(calls=calls, loaded=loaded)


def test_predict_prints_an_aligned_table_by_the_newest_model(call, verdicts, tmp_path):
    result = call("predict", "f1.png", "a.png", "bad\n.png", "x" * 80 + ".png", "f_strange.png")
    assert verdicts.loaded == [tmp_path / "reports" / "new"]
    assert result.stderr == "model: reports/new\n1 of 5 images were refused\n"
    lines = result.stdout.splitlines()
    assert len(lines) == 6  # the name with a newline stays on one line
    assert [line[60:] for line in lines] == [
        "  verdict  p(fake)  source",
        "  fake       0.988  ProGAN (75%), or BigGAN",
        "  real       0.012  if it were fake: ProGAN (60%)",
        "  error             truncated",
        "  real       0.012  if it were fake: ProGAN (60%)",
        "  fake       0.988  unknown, nearest ProGAN (75%), or BigGAN",
    ]
    assert lines[3].startswith("bad\\n.png") and lines[4].startswith("…xxx")


def test_predict_writes_json_lines_and_searches_folders(call, verdicts, tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("b.JPG", "deep/f.png", "note.txt"):
        (tmp_path / "in" / name).touch()
    options = ("--json", "--crops", "3", "--crop-mode", "random", "--model", "reports/old")
    result = call("predict", *options, "in", "bad.png")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert verdicts.calls == [(path, 3, "random") for path in ("in/b.JPG", "in/deep/f.png", "bad.png")]
    assert rows[1] == {
        "path": "in/deep/f.png",
        "is_fake": True,
        "verdict": "fake",
        "p_fake": 0.9876,
        "source": "ProGAN",
        "p_source": {"ProGAN": 0.75, "BigGAN": 0.25},
        "candidates": ["ProGAN", "BigGAN"],
        "crops": 5,
        "crop_std": 0.1,
        "error": None,
        "sha256": None,  # this detector reads no file
        "log10_lr": None,
        "outside": None,
    }
    assert rows[2] == dict.fromkeys(rows[1]) | {"path": "bad.png", "error": "truncated"}


@pytest.mark.parametrize("stage", config.CHECKPOINTS)
def test_train_scans_once_and_hands_the_config_on(stage, call, monkeypatch):
    from dfd import train
    from dfd.data import manifest

    given, scans = [], []

    def load(out, data):
        raise FileNotFoundError(out)

    monkeypatch.setattr(manifest, "load", load)
    monkeypatch.setattr(manifest, "scan", lambda *args: scans.append(args) or "table")
    monkeypatch.setattr(train, "fit", lambda table, cfg: given.append((table, cfg)))
    result = call("train", stage, "--data", "d", "--out", "o", "-p", "num_epochs", "3", "-p", "seed", "7")
    assert result.exit_code == 0, result.output
    (table, cfg), (scan,) = given[0], scans
    assert table == "table" and type(cfg).__name__.lower() == stage
    assert (cfg.num_epochs, cfg.seed) == (3, 7)
    assert scan == (cfg.data, cfg.out, 7)


def test_train_refuses_data_that_are_not_as_scanned(call, monkeypatch, tmp_path):
    from folders import classes, fill

    from dfd import train
    from dfd.data import manifest

    monkeypatch.setattr(train, "fit", lambda table, cfg: None)
    classes(tmp_path / "data")
    words = ("train", "stage1", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "o"), "--profile", "quick")
    assert [call(*words).exit_code for _ in range(2)] == [0, 0]
    fill(tmp_path / "data" / "StyleGAN2")
    result = call(*words)
    assert result.exit_code == 2 and "6 files are not as scanned, such as StyleGAN2/0.png; run 00_eda" in result.stderr
    manifest.scan(tmp_path / "data", tmp_path / "o")
    assert call(*words).exit_code == 0


def test_sample_and_scan_pass_their_options_on(call, monkeypatch):
    import pandas as pd

    from dfd.data import manifest, sample

    given = []
    monkeypatch.setattr(sample, "build", lambda *args: given.append(args) or "there")
    monkeypatch.setattr(manifest, "scan", lambda *args, **options: given.append((*args, options)) or "table")
    monkeypatch.setattr(manifest, "summary", lambda table: pd.DataFrame({"images": [12]}, index=["ProGAN"]))
    assert call("sample", "--out", "s", "--seed", "4").output == "Wrote there\n"
    assert "--seed" in (refused := call("sample", "--out", "s", "--seed", "-1")).output and refused.exit_code == 2
    assert "ProGAN" in call("scan", "f", "--out", "o").output
    call("scan", "f", "--hold-out", "a", "--hold-out", "b")
    scans = [
        (*folders, {"group_by": "", "hold_out": held})
        for folders, held in ((("f", "o"), ()), (("f", None), ("a", "b")))
    ]
    assert given == [("s", 4), *scans]


def test_run_takes_data_and_profile_from_the_run_folder(call, monkeypatch, tmp_path):
    from dfd.core import io

    (tmp_path / "mine").mkdir()
    io.write_json(tmp_path / "mine" / "config.json", {"data": "my/images", "profile": "quick"})
    seen = []
    monkeypatch.setattr(runner, "run", lambda data, out, profile, *rest: seen.append((data, profile)) or tmp_path)
    call("run", "--out", str(tmp_path / "mine"), "03")
    call("run", "--out", str(tmp_path / "mine"), "--data", "others")
    call("run", "--out", str(tmp_path / "new"))
    assert seen == [("my/images", "quick"), ("others", "quick"), ("data/sample", "demo")]


def test_predict_on_a_folder_without_images_says_so(call, verdicts, tmp_path):
    (tmp_path / "empty").mkdir()
    result = call("predict", "--model", "reports/old", "empty")
    assert result.exit_code == 2 and "no images below" in result.stderr


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_predict_names_images_that_are_too_large_for_all_crops_on_stderr(options, call, verdicts):
    result = call("predict", *options, "a.png", "large\n.png")
    assert result.stderr == "model: reports/new\nlarge\\n.png: scored on 252 of 1890 crops\n"
    assert len(result.stdout.splitlines()) == (2 if options else 3)
    assert verdicts.calls == [("a.png", None, None), ("large\n.png", None, None)]


def test_predict_knows_the_crop_modes_and_the_cap(call):
    from dfd.data import crops

    result = call("predict", "--crop-mode", "everywhere", "a.png")
    assert result.exit_code == 2 and all(mode in result.output for mode in config.CROP_MODES)
    assert str(crops.MAX_CROPS) in call("predict", "--help").output


def test_predict_answers_what_it_can_and_names_what_it_refuses(call, tmp_path):
    from bad_files import picture, png_header
    from networks import content

    from dfd.inference.files import save_checkpoint

    for stage, name in config.CHECKPOINTS.items():
        save_checkpoint(content(stage), tmp_path / name)
    picture(0, 1, 1).save("one_pixel.png")
    picture(1, 96, 80).save("good.png")
    (tmp_path / "huge.png").write_bytes(png_header(20_000, 20_000))
    result = call("predict", "--json", "--model", ".", "--crop-mode", "grid", "one_pixel.png", "huge.png", "good.png")
    assert result.exit_code == 1, result.output
    one_pixel, huge, good = map(json.loads, result.stdout.splitlines())
    assert one_pixel["error"].startswith("too small: 1 x 1") and one_pixel["p_fake"] is None
    assert huge["error"].startswith("oversized: ") and huge["p_fake"] is None
    assert (good["error"], good["crops"]) == (None, 9) and 0 <= good["p_fake"] <= 1


def test_the_package_names_its_public_face_and_imports_it_when_asked():
    script = "import sys, dfd; a = 'torch' in sys.modules; from dfd import Detector, scan; print(a, Detector.__name__)"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed == "False Detector\n"
    with pytest.raises(AttributeError, match="detector_of_lies"):
        dfd.detector_of_lies  # noqa: B018


def test_notebooks_are_copied_once_and_run_in_place_on_the_folder_above(call, tmp_path, monkeypatch):
    lab = tmp_path / "lab"
    assert "files copied to lab" in call("notebooks", "lab").output
    copied = {str(path.relative_to(lab)) for path in lab.rglob("*.*")}
    own = {
        f"{folder}/{path.name}"
        for folder in ("notebooks", "configs")
        for path in (config.ROOT / folder).glob("*.[iy]*")
    }
    assert copied == own and len(own) == 11
    (lab / "notebooks" / "00_eda.ipynb").write_text("mine")
    assert (
        call("notebooks", "lab").output.startswith("0 files") and (lab / "notebooks/00_eda.ipynb").read_text() == "mine"
    )
    monkeypatch.chdir(lab / "notebooks")
    assert config.resolve("data/mine") == lab / "data" / "mine"
    monkeypatch.chdir(lab)
    assert config.resolve("data/mine") == lab / "data" / "mine"


@pytest.mark.parametrize(
    ("module", "late"),
    [
        (
            "dfd.app.predict, torch.distributed.tensor, timm",  # either of these would open what is merely put off
            ["sklearn.base", "scipy.optimize", "captum", "skimage", "matplotlib", "dfd.app.evidence"],
        ),
        ("dfd.reports.runner", ["torchvision.ops", "timm.models", "torch._dynamo", "rfc3987_syntax.syntax_helpers"]),
    ],
)
def test_a_command_imports_only_what_it_needs(module, late):
    """1.5 s of `predict`'s start go to what fits and draws, and 3 s of `run`'s to what only its kernels need."""
    code = f"import sys, {module}; print([name for name in {late} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("options", [(), ("-P",)])
def test_code_that_lies_beside_the_images_does_not_run(options, tmp_path):
    for name in ("lazy_loader", "click", "tomllib", "numpy"):
        (tmp_path / f"{name}.py").write_text("print('it ran')")
    command = [sys.executable, *options, "-m", "dfd", "predict", "--model", str(tmp_path / "none"), "x.png"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 2 and ran.stdout == "" and "no trained model in" in ran.stderr


def test_nothing_of_a_name_reaches_the_terminal_as_a_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for label in ("RealPhotos", "Pro\x1b]0;owned\x07\rGAN"):
        (tmp_path / "data" / label).mkdir(parents=True)
        picture(len(label)).save(tmp_path / "data" / label / "a.png")
    found = CliRunner().invoke(cli.main, ["scan", "data"])
    assert found.exit_code == 0 and r"Pro\x1b]0;owned\x07\rGAN" in found.output and "\x1b" not in found.output
    (tmp_path / "data" / "Empty\x1b[31m").mkdir()
    refused = CliRunner().invoke(cli.main, ["scan", "data"])
    assert refused.exit_code == 2 and r"Empty\x1b[31m" in refused.stderr and "\x1b" not in refused.output
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / config.CHECKPOINTS["stage1"]).touch()
    (tmp_path / "run" / "model_card_stage1.md").write_text("# A card\n\nof \x1b[1Amine\n")
    card = CliRunner().invoke(cli.main, ["card", "--model", "run"])
    assert card.exit_code == 0 and card.stdout.startswith("# A card\n\nof \\x1b[1Amine\n")


def test_nobody_looks_for_garbage_in_what_torch_imports():
    """Neither while it is imported, with Python's own threshold some 600 times, nor at the end of the process."""
    said = "print(gc.get_freeze_count() > 100_000, sum(of['collections'] for of in gc.get_stats()) < 100)"
    code = f"import atexit, gc; atexit.register(lambda: {said}); import dfd, torch"  # first in, last out
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "True True\n"


def test_lines_are_there_as_they_are_said_though_nobody_watches(tmp_path):
    """Into a pipe Python writes blocks: `make demo > log` would show nothing for minutes."""
    say = "cli.main.command('say')(lambda: print('said')); cli.main(['say'], standalone_mode=False); os._exit(0)"
    own = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", f"import os; from dfd import cli; {say}"]
    ran = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, check=True)
    assert ran.stdout == "said\n"  # not lost with the buffer


@pytest.mark.parametrize(("closed", "shown"), [("2>&-", "0\n1\n"), (">&-", ""), ("<&- >&- 2>&-", "")])
def test_output_that_is_closed_ends_nothing(closed, shown, tmp_path):
    """A daemon has none; a bar, and whatever a child writes, then has somewhere to go."""
    read = "    sys.stdin.buffer.read()" if "<&-" in closed else ""
    lines = ["from dfd import cli", "from dfd.core import bar", "import subprocess, sys", "@cli.main.command('say')"]
    lines += ["def say():", read, "    for number in bar(range(2)):", "        print(number)"]
    lines += ["    open('told', 'w').write(subprocess.run('echo x; echo y >&2', shell=True).returncode * 'x' + 'done')"]
    lines += ["cli.main(['say'], standalone_mode=False)"]
    (tmp_path / "say.py").write_text("\n".join(lines))
    words = ["sh", "-c", f"exec {sys.executable} say.py {closed}"]
    own = os.environ | {"PYTHONPATH": str(config.ROOT)}
    ran = subprocess.run(words, cwd=tmp_path, env=own, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.startswith(shown) and (tmp_path / "told").read_text() == "done"


def test_a_reader_that_has_gone_ends_it_in_silence():
    words = [sys.executable, "-m", "dfd", "card", "--model", str(config.DETECTOR)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141
