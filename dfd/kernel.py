"""The Jupyter kernel that reports run in: always the interpreter that runs this."""

import sys

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

from dfd.progress import HEADLESS


class ThisPython(AsyncKernelManager):
    """Starts `sys.executable`, whatever the installed kernel specs called "python3" point to."""

    transport = "tcp" if sys.platform == "win32" else "ipc"  # no port that other users of the machine could read

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python", env={HEADLESS: "1"})
