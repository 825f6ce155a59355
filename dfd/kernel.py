"""The Jupyter kernel that reports run in, always the interpreter that runs this, and how notebooks are written."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any, ClassVar

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from papermill.iorw import LocalHandler

from dfd.atomic import whole
from dfd.progress import HEADLESS


class ThisPython(AsyncKernelManager):
    """Starts `sys.executable`, whatever the installed kernel specs called "python3" point to.

    `process` is the kernel that was started last, which may have ended.
    """

    transport = "tcp" if sys.platform == "win32" else "ipc"  # no port that other users of the machine could read
    process: ClassVar[subprocess.Popen | None] = None

    def _ip_default(self) -> str:
        """Where its sockets lie: a folder of its own, or two kernels that start at once could take the same names."""
        if self.transport != "ipc":
            return super()._ip_default()
        folder = tempfile.mkdtemp(prefix="dfd-kernel-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return str(Path(folder) / "socket")

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--ext=dfd.shell"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python", env={HEADLESS: "1"})

    async def start_kernel(self, **options: Any) -> None:
        """Start the process and remember it."""
        await super().start_kernel(**options)
        ThisPython.process = self.provisioner.process


class WholeFiles(LocalHandler):
    """Papermill's way of writing a notebook, every few seconds, with nothing lost by a kill in the middle."""

    def write(self, buf: str, path: str) -> None:
        """Write the notebook."""
        with whole(path) as draft:
            draft.write_text(buf, "utf-8")


def interrupt() -> bool:
    """Press Ctrl-C in the kernel and what it started; False where none runs."""
    process = ThisPython.process
    if process is None or process.poll() is not None:
        return False
    os.killpg(process.pid, signal.SIGINT)  # jupyter_client gives a kernel a session of its own
    return True


def how_it_ended() -> str:
    """Why the process of the last kernel is no more."""
    status = ThisPython.process.poll()
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        return f"was killed by {name}" + ("; most often memory ran out" if name == "SIGKILL" else "")
    return "died" if status is None else f"died with exit status {status}"
