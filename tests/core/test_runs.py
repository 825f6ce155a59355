"""What surrounds work in a run folder: its lock, signals, bars, and the state of the data."""

import errno
import io
import os
import signal
import subprocess
import sys
import time

import pytest

from dfd.core import runs
from dfd.data import layouts

HOLD = "import sys, time; from dfd.core import runs\nwith runs.run_lock({!r}):\n    print('in', flush=True); {}"


def holding(folder, then="time.sleep(300)"):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(str(folder), then)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "in\n"
    return process


def test_commands_are_told_as_the_shells_of_windows_take_them():
    script = "import sys, importlib; from dfd.core import runs; sys.platform = 'win32'; importlib.reload(runs)\n"
    script += "print(runs.command_line([r'reports\\mine']), runs.command_line([r'my runs\\one', '-p', 'x', '[1]']))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert answer == 'reports\\mine "my runs\\one" -p x [1]\n'


def test_processes_that_a_killed_run_leaves_do_not_hold_its_folder(tmp_path):
    with holding(tmp_path, "import os; os.fork() or print(os.getpid(), flush=True); time.sleep(300)") as process:
        child = int(process.stdout.readline())
        process.kill()
        process.wait()
        try:
            with runs.run_lock(tmp_path):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_cores_are_those_that_a_container_leaves(monkeypatch):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # joblib's own limit, which it takes like those of a cgroup
    assert runs.cores() == 1


def test_a_folder_that_cannot_be_written_is_named():
    with pytest.raises(OSError, match="cannot be written, or is held by another program"), runs.run_lock("/sys"):
        pass


TRAINING = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.mark.parametrize("variables", [{"DFD_HEADLESS": "1"}, TRAINING])
def test_kernels_of_a_run_and_helpers_of_a_training_work_under_its_lock(variables, tmp_path, monkeypatch):
    with holding(tmp_path) as process:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with runs.run_lock(tmp_path, shared=True):
            if "RANK" in variables:
                with pytest.raises(runs.InUse), runs.run_lock(tmp_path):  # `score` is no training
                    pass
            process.kill()


@pytest.mark.parametrize("left", [{"RANK": "1"}, {"WORLD_SIZE": "2"}, {**TRAINING, "MASTER_PORT": None}])
def test_what_another_training_left_in_the_environment_counts_for_nothing(left, tmp_path, monkeypatch, capsys):
    for name, value in left.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    with holding(tmp_path) as process:
        with pytest.raises(runs.InUse), runs.run_lock(tmp_path, shared=True):
            pass
        process.kill()
    assert "in the environment without" in capsys.readouterr().err and "WORLD_SIZE" not in os.environ
    assert runs.is_main_process() and not capsys.readouterr().err


@pytest.mark.parametrize("code", ["ENOSYS", "ENOLCK", "EOPNOTSUPP", "EINVAL"])
def test_a_file_system_without_locks_is_said_and_worked_on(code, tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", flock)
    with runs.run_lock(tmp_path):
        assert "has no locks" in capsys.readouterr().out and (tmp_path / runs.HOLDER).exists()


def test_waiting_is_said_when_it_lasts(monkeypatch, capsys):
    monkeypatch.setattr(runs, "PATIENCE", 0.05)
    with runs.waiting("the others"):
        time.sleep(0.3)
    monkeypatch.setattr(runs, "PATIENCE", 5)
    with runs.waiting("nobody"):
        pass
    assert capsys.readouterr().err == "waiting for the others\n"


def test_the_first_signal_waits_for_the_step_and_the_second_does_not(capsys):
    before = [signal.getsignal(number) for number in runs.SIGNALS]
    with runs.deferred("one moment") as stop:
        assert stop.number == 0
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == signal.SIGTERM and capsys.readouterr().out == "one moment\n"
        with pytest.raises(runs.Interrupted) as ended:
            signal.raise_signal(signal.SIGINT)
        assert ended.value.code == 143
    assert [signal.getsignal(number) for number in runs.SIGNALS] == before


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_gone_however_it_ends(tmp_path):
    with holding(tmp_path) as process:
        with (
            pytest.raises(runs.InUse, match=rf"{tmp_path} is in use by process {process.pid} on .* since"),
            runs.run_lock(tmp_path),
        ):
            pytest.fail("two runs in one folder")
        process.kill()
    (tmp_path / "left.txt.part").write_text("half")
    with runs.run_lock(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / runs.HOLDER).read_text()
        assert not list(tmp_path.glob("*.part"))
        with runs.run_lock(tmp_path / "ablation"):
            pass  # a training inside the run
    assert not (tmp_path / runs.HOLDER).exists()


def test_a_fingerprint_changes_with_names_sizes_and_times_only(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"1")
    (tmp_path / "dangling").symlink_to("nowhere")
    seen = [layouts.fingerprint(tmp_path), layouts.fingerprint(tmp_path)]
    assert len(set(seen)) == 1
    (tmp_path / "a" / "x.png").write_bytes(b"12")
    seen.append(layouts.fingerprint(tmp_path))
    (tmp_path / "a" / "x.png").rename(tmp_path / "a" / "y.png")
    seen.append(layouts.fingerprint(tmp_path))
    assert len(set(seen)) == 3


def test_fingerprint_sees_behind_links_and_survives_loops(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ProGAN").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    before = layouts.fingerprint(tmp_path / "data")
    (tmp_path / "elsewhere" / "new.png").write_bytes(b"x")
    assert layouts.fingerprint(tmp_path / "data") != before


def test_fingerprint_changes_with_a_provenance_table_above_the_folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.png").write_bytes(b"x")
    before = layouts.fingerprint(tmp_path / "data")
    (tmp_path / "provenance.csv").write_text("file,source\nx.png,a\n")
    assert layouts.fingerprint(tmp_path / "data") != before


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (75.4, "1:15"), (3599.6, "1:00:00"), (3675, "1:01:15")])
def test_elapsed(seconds, text):
    assert runs.elapsed(seconds) == text


@pytest.mark.parametrize(
    ("modules", "environment", "stream"),
    [({"ipykernel": io}, {}, "out"), ({"ipykernel": io}, {runs.HEADLESS: "1"}, "err"), ({}, {}, "err")],
)
def test_bars_go_where_they_look_well(modules, environment, stream, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv(runs.HEADLESS, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert list(runs.bar(range(3), desc="work")) == [0, 1, 2]
    written = capsys.readouterr()._asdict()
    assert "work" in written.pop(stream) and not any(written.values())
