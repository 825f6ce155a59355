"""Names of any script in figures."""

import warnings

import matplotlib.pyplot as plt
import pytest

from dfd.plots import letters, plot_cm

NAMES = ["Style$GAN$2", "生成器", "مولد", "a_b^c \\frac", "🦊"]


def drawn(monkeypatch, letters_known):
    """A figure with NAMES where fonts have these letters."""
    monkeypatch.setattr(letters, "_letters", lambda families: frozenset(letters_known))
    names = ["RealPhotos", *NAMES]
    figure, ax = plt.subplots()
    plot_cm(names, names, names, ax, title="合成 Bilder")
    return figure


def shown(figure):
    """The names of its rows."""
    with warnings.catch_warnings(action="error"):  # matplotlib warns of glyphs that a font lacks
        figure.canvas.draw()
        figure.canvas.draw()
    return [text.get_text() for text in figure.axes[0].get_yticklabels()]


def test_what_no_font_has_is_spelt_with_one_note(closed, monkeypatch):
    figure = drawn(monkeypatch, range(0x3000))  # no Chinese, no emoji
    assert shown(figure) == ["RealPhotos", "Style$GAN$2", "ShengChengQi", "مولد", "a_b^c \\frac", ":fox:"]
    assert figure.axes[0].get_title() == "HeCheng Bilder"
    assert [text.get_text() for text in figure.texts] == [letters.NOTE]


@pytest.mark.filterwarnings("ignore:Glyph")
def test_letters_of_a_font_stay(closed, monkeypatch):
    figure = drawn(monkeypatch, range(0x110000))
    figure.canvas.draw()
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["RealPhotos", *NAMES]
    assert not figure.texts


def test_a_logarithmic_axis_has_its_powers(closed):
    figure, ax = plt.subplots()
    ax.loglog([1e-3, 1], [1, 10])
    ax.set_title("Style$GAN$2")
    figure.canvas.draw()
    assert all(text.get_parse_math() for text in ax.get_xticklabels()) and not ax.title.get_parse_math()


def test_the_fonts_at_hand_are_asked():
    letters._letters.cache_clear()
    assert letters.spell("Größe é ж α −") == "Größe é ж α −"  # DejaVu Sans comes with matplotlib
    assert ord("A") in letters._letters(tuple(plt.rcParams["font.family"]))
