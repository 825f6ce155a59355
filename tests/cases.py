"""Folders of tiny notebooks, to run."""

import json
import subprocess
import sys
from dataclasses import dataclass

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from dfd import config
from dfd.reports import runner

PARAMETERS = 'data = "data/sample"\nout = "reports/demo"\nseed = 0\nepochs = 1\n'


class Tiny(config.Shared):
    epochs: config.Count = 1
    rate: float = 0.1
    name: str = "a"
    careful: bool = True
    levels: config.Texts = ("1", "2")


@dataclass
class Case:
    """A folder with notebooks, and where their run goes."""

    folder: object
    data: object
    out: object

    def write(self, stem, *cells):
        parameters = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
        title = new_markdown_cell(f"# {stem} · Does it run?\n\nHow *well*?\nReally.\n\nReads.")
        nbformat.write(new_notebook(cells=[title, parameters, *cells]), self.folder / f"{stem}.ipynb")

    def run(self, **options):
        configs = {path.stem: Tiny for path in self.folder.glob("*.ipynb")}
        return runner.run(str(self.data), str(self.out), folder=self.folder, **{"configs": configs, **options})

    def record(self):
        return json.loads((self.out / "config.json").read_text())["notebooks"]

    def start(self, setup=""):
        """Run in a process of its own, as the command line does; it prints what it has to say."""
        script = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            f"from dfd.core import runs as interruption\nfrom dfd.reports import runner as report\n{setup}\n"
            f"try: report.run({str(self.data)!r}, {str(self.out)!r}, folder={str(self.folder)!r}, configs={{}})\n"
            "except (report.RunError, interruption.InUse) as error: print(error); sys.exit(getattr(error, 'code', 2))"
        )
        return subprocess.Popen(
            [sys.executable, "-u", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
