"""Pulling the plug: signals, kills, two runs at once; what was done is kept, and the end is as without."""

import os
import signal
import time

import pytest
from nbformat.v4 import new_code_cell

from dfd.core import runs

SAVES = """\
import os, time
print("kernel", os.getpid())
try:
    time.sleep(300)
except KeyboardInterrupt:
    time.sleep(1)
    print("saved", file=open(out + "/saved", "w"))
    raise
"""
DEAF = 'import os, signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print("kernel", os.getpid())'


def kernel_of(process):
    return next(int(line.split()[1]) for line in process.stdout if "kernel" in line)


def gone(pid, within=5):
    """Whether a process ends within seconds."""
    for _ in range(int(within / 0.05)):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_run_lets_the_kernel_save_and_leaves_none(case, number):
    case.write("00_first", new_code_cell(SAVES), new_code_cell('open(out + "/after", "w")'))
    with case.start() as process:
        kernel = kernel_of(process)
        process.send_signal(number)
        rest = process.stdout.read()
    assert process.returncode == 128 + number
    assert "Interrupted. What is done is kept" in rest and "Traceback" not in rest
    assert (case.out / "saved").exists() and not (case.out / "after").exists()
    assert case.record()["00_first"]["status"] == "interrupted"
    assert "kernel" in (case.out / "00_first.ipynb").read_text() and (case.out / "index.html").exists()
    assert gone(kernel, within=0.1)


@pytest.mark.parametrize(
    ("grace", "times"), [pytest.param(60, 2, marks=pytest.mark.slow), pytest.param(0.5, 1, marks=pytest.mark.slow)]
)
def test_a_second_signal_or_the_end_of_the_wait_ends_a_run_at_once(case, grace, times):
    case.write("00_first", new_code_cell(f"{DEAF}; time.sleep(300)"))
    with case.start(f"interruption.GRACE = {grace}") as process:
        kernel = kernel_of(process)
        began = time.monotonic()
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        rest = process.stdout.read()
    assert process.returncode == 130 and time.monotonic() - began < 20
    assert "may finish its step and save" in rest and "Interrupted. What is done is kept" in rest
    assert gone(kernel, within=0.1) and case.record()["00_first"]["status"] == "interrupted"


def test_a_signal_between_cells_is_not_lost(case):
    deaf = f"{DEAF}; time.sleep(2); print('done')"
    case.write("00_first", new_code_cell(deaf), new_code_cell('open(out + "/after", "w")'))
    with case.start() as process:
        kernel_of(process)
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
    assert process.returncode == 143 and not (case.out / "after").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_and_redoes_nothing(case, capsys):
    log = 'print("{}", file=open(out + "/log.txt", "a"))'
    case.write("00_first", new_code_cell(log.format("first")))
    wait = 'import os, time; print("kernel", os.getpid()); time.sleep(300 * (not os.path.exists(out + "/go")))'
    case.write("01_second", new_code_cell(wait), new_code_cell(log.format("second")))
    with case.start() as process:
        kernel = kernel_of(process)
        process.kill()
    assert process.returncode == -9 and gone(kernel), "the kernel outlived its run"
    assert "is at work, or was interrupted" in " ".join((case.out / "index.html").read_text().split())
    whole = {path.name: path.read_bytes() for path in case.out.glob("00_first.*")}
    (case.out / "left.txt.part").write_text("half")
    (case.out / "go").touch()
    case.run(configs={})
    assert "00_first  finished before" in capsys.readouterr().out
    assert (case.out / "log.txt").read_text() == "first\nsecond\n"
    assert whole == {path.name: path.read_bytes() for path in case.out.glob("00_first.*")}
    assert [entry["status"] for entry in case.record().values()] == ["finished", "finished"]
    assert not list(case.out.glob("*.part")) and not (case.out / runs.HOLDER).exists()
