"""The status line, on a terminal and in a log."""

import io
import os
import sys

import matplotlib.pyplot as plt
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell

from dfd.core import runs


class Terminal(io.StringIO):
    def isatty(self):
        return True


def notebook(shown):
    shown.start("01_x", 3)
    shown.cell(new_markdown_cell("text\n\n## Training ##"), 0)
    shown.cell(new_code_cell("# not a heading"), 1)
    shown.printed.write("epoch 1\nepo")
    shown.bars.write("\r 10%|#\x1b[A\r 20%|##\n")
    shown.printed.write("ch 2\n")
    shown.done("finished")


def test_a_log_gets_a_line_a_section_and_what_is_printed_but_no_bars():
    stream = io.StringIO()
    notebook(runs.Progress(stream))
    assert stream.getvalue().splitlines() == [
        "01_x  starting",
        "01_x  cell 1/3  Training  0:00",
        "  epoch 1",
        "  epoch 2",
        "01_x  finished",
    ]


def test_a_terminal_rewrites_one_line_that_fits(monkeypatch):
    monkeypatch.setattr(runs.shutil, "get_terminal_size", lambda: os.terminal_size((40, 24)))
    stream = Terminal()
    notebook(runs.Progress(stream))
    lines = stream.getvalue().split("\n")
    assert [line.split("\r\x1b[K")[-1] for line in lines] == [
        "01_x  starting",
        "  epoch 1",
        "  epoch 2",
        "01_x  finished",
        "",
    ]
    shown = [text for line in lines for text in line.split("\r\x1b[K")]
    assert "01_x  cell 2/3  Training  0:00  20%|##" in shown and max(map(len, shown)) < 40


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


def test_a_live_picture_is_shown_once_and_then_drawn_anew(monkeypatch):
    shown = []

    class Handle:
        def update(self, figure, metadata):
            shown.append(("update", figure, metadata["alt"]))

    def display(figure, display_id, metadata):
        shown.append(("display", figure, metadata["alt"]))
        return Handle()

    live = runs.Live("losses")
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    live.show(lambda: pytest.fail("nothing is drawn outside of a notebook"))
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    monkeypatch.setattr("IPython.display.display", display)
    figures = [plt.figure() for _ in range(3)]
    for figure in figures:
        live.show(lambda figure=figure: figure)
    assert shown == [
        (call, figure, "losses") for call, figure in zip(("display", "update", "update"), figures, strict=True)
    ]
    assert not set(plt.get_fignums()) & {figure.number for figure in figures}
