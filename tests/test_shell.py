"""Failing shell commands and magics fail their cell."""

import pytest
from IPython.core.interactiveshell import InteractiveShell

from dfd import shell


@pytest.fixture(scope="module")
def ipython(tmp_path_factory):
    """An IPython with the extension, as in the kernels of `run`."""
    found = InteractiveShell(ipython_dir=str(tmp_path_factory.mktemp("ipython")))
    found.history_manager.enabled = False
    found.shown = []
    found._showtraceback = lambda kind, error, lines: found.shown.append(f"{kind.__name__}: {error}")
    shell.load_ipython_extension(found)
    yield found
    found.history_manager.end_session()


@pytest.mark.parametrize(
    ("cell", "error"),
    [
        ("!false", "CommandFailed: `false` ended with exit status 1; append `|| true` where that may be"),
        ("!true; exit 7", "CommandFailed: `true; exit 7` ended with exit status 7"),
        ("lines = !echo out; false", "CommandFailed: `echo out; false` ended with exit status 1"),
        ("%sx false", "CommandFailed: `false` ended"),
        ("!!false", "CommandFailed: `false` ended"),
        ("!sleep 0 &", "OSError: Background processes not supported"),
        ("lines = !sleep 0 &", "OSError: Background processes not supported"),
        ("%%bash\nfalse", "CalledProcessError: "),
        ("%run missing.py", "Exception: File `'missing.py'` not found"),
        ("%nosuch", "UsageError: Line magic function `%nosuch` not found"),
        ("%%nosuch\n1", "UsageError: Cell magic `%%nosuch` not found"),
    ],
)
def test_a_failure_is_an_error_of_the_cell(ipython, cell, error, capfd):
    ipython.shown.clear()
    result = ipython.run_cell(f"{cell}")
    assert not result.success and len(ipython.shown) == 1 and ipython.shown[0].startswith(error)


@pytest.mark.parametrize(
    "cell",
    [
        "!true",
        "!false || true",
        "n = 3\nlines = !echo $n {n + 1}; echo two\nassert lines == ['3 4', 'two'] and lines.n == '3 4\\ntwo'",
        "def f():\n    k = 7\n    lines = !echo $k\n    return lines\nassert f() == ['7']",
        "def f():\n    k = 7\n    !test $k = 7\nf()",
        "command = 7\n!test $command = 7",
        "command = 7\nlines = !echo $command\nassert lines == ['7']",
        "lines = !printf 'caf\\351'\nassert lines == ['caf\ufffd']",
        "_exit_code = 1\n!true\nassert _exit_code == 0",
        "import os\nlines = !echo $$0\nassert lines == [os.environ.get('SHELL', '/bin/sh')]",
        "found = get_ipython().getoutput('echo one', split=False)\nassert found == 'one\\n'",
    ],
)
def test_what_succeeds_goes_on_as_before(ipython, cell, capfd):
    ipython.shown.clear()
    assert ipython.run_cell(cell).success and not ipython.shown
