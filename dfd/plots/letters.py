"""Names of any script in figures: in a font that has it, or spelt in Latin letters with a note."""

from functools import cache
from typing import Any

import matplotlib.pyplot as plt
from anyascii import anyascii
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text

WIDE = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei", "Droid Sans Fallback")
WIDE += ("Microsoft YaHei", "PingFang SC", "Hiragino Sans", "Malgun Gothic", "Arial Unicode MS", "Unifont")
NOTE = "some names are spelt in Latin letters: no font here has theirs"


def install() -> None:
    """Let all figures that pyplot makes from now on show names as they are, dollars too, with any font there is."""
    known = fontManager.get_font_names()
    families = [name for name in plt.rcParams["font.family"] if name not in WIDE]
    plt.rcParams["font.family"] = [*families, *(name for name in WIDE if name in known)]
    plt.rcParams["text.parse_math"] = False
    plt.rcParams["figure.hooks"] = list(dict.fromkeys([*plt.rcParams["figure.hooks"], f"{__name__}:watch"]))


def watch(figure: Figure) -> None:
    """Spell the figure's texts before it is laid out and drawn; matplotlib calls this for each new figure."""
    draw = figure.draw

    def spelt(renderer: Any) -> None:
        spell_texts(figure)
        draw(renderer)

    figure.draw = spelt


def spell_texts(figure: Figure) -> None:
    """Spell what no font can show, and say so in a corner."""
    changed = False
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        texts = [text.get_text() for text in axis.get_ticklabels()]
        if texts != [spell(text) for text in texts]:  # made anew at each drawing, from what the axis knows
            axis.set_ticks(axis.get_ticklocs(), [spell(text) for text in texts])
            changed = True
    for text in figure.findobj(Text):
        text.set_parse_math(text.get_parse_math() or "\\mathdefault" in text.get_text())  # of a logarithmic axis
        if (spelt := spell(text.get_text())) != text.get_text():
            text.set_text(spelt)
            changed = True
    if changed and not any(text.get_text() == NOTE for text in figure.texts):
        figure.text(0.995, 0.005, NOTE, ha="right", va="bottom", fontsize=7, color="0.4")


def spell(text: str) -> str:
    """The text, with the letters that no font of the figures has in Latin ones."""
    if text.isascii():
        return text
    known = _letters(tuple(plt.rcParams["font.family"]))
    return "".join(letter if ord(letter) in known or letter == "\n" else anyascii(letter) or "?" for letter in text)


@cache
def _letters(families: tuple[str, ...]) -> frozenset[int]:
    """The letters of these fonts, by their numbers."""
    paths = {findfont(FontProperties(family=[name])) for name in families}
    return frozenset(code for path in paths for code in get_font(path).get_charmap())
