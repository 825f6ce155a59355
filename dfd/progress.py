"""What shows that long work goes on: progress bars, a live figure, and one status line for a running notebook."""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_TEXT = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b\x0c\x0e-\x1f]")  # colours, cursor moves, control codes


HEADLESS = "DFD_HEADLESS"  # set for the kernels of `run`


def bar(iterable: Iterable, **options: Any):
    """A tqdm bar that goes when it is done; takes tqdm's options.

    On stderr, where `run` picks it up; in JupyterLab on stdout, where it leaves no red strip behind.
    """
    from tqdm import tqdm

    by_hand = "ipykernel" in sys.modules and HEADLESS not in os.environ
    return tqdm(iterable, leave=False, file=sys.stdout if by_hand else sys.stderr, **options)


class Live:
    """One picture in a notebook's output, drawn anew in place; in JupyterLab, and headless too. Nothing elsewhere.

    Args:
        alt: what it shows, for those who cannot see it; kept in the output's metadata.
    """

    def __init__(self, alt: str):
        self.handle, self.metadata = None, {"alt": alt}

    def show(self, draw: Callable[[], Figure]) -> None:
        """Draw and show; the figure is closed afterwards, so that the cell does not show it again."""
        if "ipykernel" not in sys.modules:
            return
        import matplotlib.pyplot as plt
        from IPython.display import display

        figure = draw()
        if self.handle is None:
            self.handle = display(figure, display_id=True, metadata=self.metadata)
        else:
            self.handle.update(figure, metadata=self.metadata)
        plt.close(figure)


class Progress:
    """Shows notebook, cell, section and elapsed time: rewritten in place on a terminal, a line a section elsewhere."""

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stdout
        self.terminal = self.stream.isatty()
        self.stem = self.last = ""
        self.lock = threading.RLock()
        self.printed, self.bars = _Lines(self.line), _Lines(self.tail)  # where papermill sends stdout and stderr

    def start(self, stem: str, cells: int) -> None:
        self.stem, self.cells, self.number, self.section, self.began = stem, cells, 0, "", time.monotonic()
        self.line(f"{stem}  starting")
        if self.terminal:
            threading.Thread(target=self._tick, daemon=True).start()

    def cell(self, cell: dict, cell_index: int) -> None:
        """Show the cell about to run; nbclient's `on_cell_start`."""
        self.number = cell_index + 1
        heading = first_heading(cell.source) if cell.cell_type == "markdown" else ""
        if heading and heading != self.section:
            self.section = heading
            if not self.terminal:
                self.line(self.status())
        self.tail("")

    def status(self) -> str:
        where = f"{self.stem}  cell {self.number}/{self.cells}"
        return "  ".join(part for part in (where, self.section, elapsed(time.monotonic() - self.began)) if part)

    def tail(self, text: str) -> None:
        """Show the status with the last words of a progress bar; on a terminal only."""
        with self.lock:
            self.last = text.strip()
            if self.terminal and self.stem:
                width = shutil.get_terminal_size().columns - 1
                self.stream.write(f"\r\x1b[K{(self.status() + '  ' + self.last)[:width]}")
                self.stream.flush()

    def line(self, text: str) -> None:
        """Print a line that stays."""
        with self.lock:
            self.stream.write(("\r\x1b[K" if self.terminal else "") + text + "\n")
            self.stream.flush()
            self.tail("")

    def done(self, text: str) -> None:
        stem, self.stem = self.stem, ""
        self.line(f"{stem}  {text}")

    def _tick(self) -> None:
        """Keep the clock of a long cell going."""
        stem = self.stem
        while self.stem == stem:
            time.sleep(1)
            self.tail(self.last)


class _Lines(io.TextIOBase):
    """A file that hands on each whole line, without control codes; a carriage return ends one too."""

    def __init__(self, show):
        self.show, self.rest = show, ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).replace("\r", "\n").split("\n")
        for line in lines:
            if clean := NOT_TEXT.sub("", line).rstrip():
                self.show("  " + clean)
        return len(text)


def first_heading(markdown: str) -> str:
    """The first heading's words, or an empty string."""
    found = re.search(r"^#+\s+(.+?)\s*#*$", markdown, re.MULTILINE)
    return found.group(1) if found else ""


def elapsed(seconds: float) -> str:
    """75 -> '1:15'; 3675 -> '1:01:15'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def size(count: int) -> str:
    """Bytes as a person reads them: 900 B, 12 kB, 3.4 MB."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.0f} kB" if count < 1_000_000 else f"{count / 1e6:.1f} MB"
