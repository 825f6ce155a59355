"""Failing shell commands and magics fail their cell: an IPython extension for the kernels of `run`.

IPython prints what went wrong in `!command`, `%pip` or a misspelt magic, and goes on; so would a whole report.
"""

from __future__ import annotations

import os
import subprocess

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils import process
from IPython.utils.text import LSString, SList


class CommandFailed(RuntimeError):
    """A shell command ended with an exit status other than 0."""


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Hold commands to their exit status, and give wrong magics an error of their own."""

    def system(command: str) -> None:
        text = expanded(command)
        status = shell.user_ns["_exit_code"] = process.system(text)
        _need_success(text, status)

    def getoutput(command: str, split: bool = True, depth: int = 0) -> SList | LSString:
        text = expanded(command, depth)
        done = subprocess.run(
            text, shell=True, executable=os.environ.get("SHELL") or None, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if done.returncode:
            print(done.stdout, end="")
        _need_success(text, done.returncode)
        return SList(done.stdout.splitlines()) if split else LSString(done.stdout)

    def expanded(command: str, depth: int = 0) -> str:
        if command.rstrip().endswith("&"):
            raise OSError("Background processes not supported.")  # IPython's own words
        return shell.var_expand(command, depth=depth + 2)  # the caller's caller: the cell, or a function of it

    shell.system, shell.getoutput = system, getoutput
    shell.set_custom_exc((UsageError,), _show)


def _need_success(command: str, status: int) -> None:
    if status:
        how = f"was ended by signal {-status}" if status < 0 else f"ended with exit status {status}"
        raise CommandFailed(f"`{command}` {how}; append `|| true` where that may be")


def _show(shell: InteractiveShell, kind: type, error: UsageError, trace, tb_offset=None) -> list[str]:
    """Show a wrong magic as any other error; IPython would print one line and leave the cell without it."""
    lines = [f"{kind.__name__}: {error}"]
    shell._showtraceback(kind, error, lines)
    return lines
