"""The grid of conditions that notebook 03 puts every test image through, written in a small grammar.

A condition is a chain of steps with " + " between them; a step is an operator, its level and, where wanted, options:
"jpeg 75", "jpeg 90 4:4:4", "rescale 0.5 lanczos + jpeg 80", "double_jpeg 75 first=95 shift=3". Operators and levels are
those of `dfd.degrade`, and one more: "resample 0.8 bilinear" shrinks to 0.8 and enlarges back, as a screenshot does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

KERNELS = ("nearest", "bilinear", "bicubic", "box", "lanczos")
SUBSAMPLING = ("4:4:4", "4:2:2", "4:2:0")
AS_IT_IS = "as it is"  # the name of the images without degradation
CODECS = ("jpeg", "double_jpeg", "webp", "social")


@dataclass(frozen=True)
class Rule:
    """What may follow an operator's name."""

    low: float  # of the level
    high: float
    axis: str  # the level in words, for an axis
    whole: bool = False  # only whole numbers
    falls: bool = False  # lower levels are worse; without, higher ones
    centre: float | None = None  # the level that changes nothing, where both directions from it are worse
    words: tuple[tuple[str, tuple[str, ...]], ...] = ()  # option -> what it may be
    numbers: tuple[tuple[str, tuple[float, float]], ...] = ()  # option -> its range


_CHROMA = (("subsampling", SUBSAMPLING),)
_KERNEL = (("kernel", KERNELS),)
_PASSES = (("first", (1, 100)), ("shift", (0, 15)))
RULES = {
    "jpeg": Rule(1, 100, "JPEG quality (Pillow)", True, True, words=_CHROMA),
    "double_jpeg": Rule(1, 100, "quality of the second JPEG", True, True, words=_CHROMA, numbers=_PASSES),
    "webp": Rule(1, 100, "WebP quality (Pillow)", True, True),
    "blur": Rule(0.05, 50, "sigma of the blur, pixels"),
    "rescale": Rule(0.05, 8, "new side / old side", centre=1.0, words=_KERNEL),
    "resample": Rule(0.05, 1, "smaller side / old side", falls=True, words=_KERNEL),
    "noise": Rule(0.0001, 1, "sigma of the noise, share of white"),
    "gamma": Rule(0.1, 10, "exponent", centre=1.0),
    "crop": Rule(0.05, 1, "share of each side that is kept", falls=True),
    "social": Rule(1, 100, "JPEG quality after shrinking", True, True, numbers=(("factor", (0.05, 1)),)),
}


class GridError(ValueError):
    """A condition that is not understood; the text says what is."""


@dataclass(frozen=True)
class Condition:
    """One cell of the grid."""

    name: str  # the chain in the grammar
    chain: tuple[tuple[str, float, dict], ...] = field(hash=False)  # for dfd.degrade.compose
    degradation: str  # for the score tables: the name without the last step's level
    level: float  # of the last step; 0 for none


NONE = Condition(AS_IT_IS, (), "none", 0.0)


def parse(text: str) -> Condition:
    """Read one condition.

    A kernel that is not named is bicubic, the usual one; chroma is 4:2:0.

    Raises:
        GridError: an unknown operator or option, or a level that is missing or out of range; the text shows the
            condition and what would be right.
    """
    steps, chain = [], []
    for part in text.split("+"):
        operator, level, words, options = _step(part.split(), text)
        steps.append((operator, level, words))
        if operator == "resample":
            chain += [("rescale", level, options), ("rescale", 1 / level, options)]
        else:
            chain.append((operator, level, options))
    whole = [" ".join([operator, f"{level:g}", *words]) for operator, level, words in steps]
    operator, level, words = steps[-1]
    return Condition(" + ".join(whole), tuple(chain), " + ".join([*whole[:-1], " ".join([operator, *words])]), level)


def parse_all(texts: Iterable[str]) -> list[Condition]:
    """Read a grid; the images as they are come first, though they are not written down.

    Raises:
        GridError: see parse; also an empty grid, and a condition that is there twice.
    """
    found: dict[str, Condition] = {}
    for one in map(parse, texts):
        if one.name in found:
            raise GridError(f"{one.name!r} is in the grid twice")
        found[one.name] = one
    if not found:
        raise GridError("a grid needs at least one condition, such as 'jpeg 75'")
    return [NONE, *found.values()]


def name(degradation: str, level: float) -> str:
    """The condition that a score table's row belongs to, in the grammar."""
    if degradation == "none":
        return AS_IT_IS
    *before, last = degradation.split(" + ")
    operator, *words = last.split()
    return " + ".join([*before, " ".join([operator, f"{level:g}", *words])])


def family(degradation: str, level: float) -> tuple[str, float]:
    """The series of levels that a condition belongs to, and how far along it is: larger is worse.

    Rescaling and gamma are two series each, one for either direction.
    """
    rule = RULES[last_operator(degradation)]
    if rule.centre is None:
        return degradation, -level if rule.falls else level
    return f"{degradation}, {'below' if level < rule.centre else 'above'} 1", abs(math.log(level / rule.centre))


def last_operator(degradation: str) -> str:
    """The operator at the end of a chain: "rescale 0.5 bicubic + jpeg" gives jpeg."""
    return degradation.split(" + ")[-1].split()[0]


def _step(words: list[str], text: str) -> tuple[str, float, list[str], dict]:
    """One step: operator, level, its options as words in a fixed order, and as arguments."""
    if len(words) < 2:
        raise GridError(f"{text!r}: each step is an operator and a level, such as 'jpeg 75'; got {' '.join(words)!r}")
    operator, number, *rest = words
    if operator not in RULES:
        raise GridError(f"{text!r}: unknown operator {operator!r}; choose one of {', '.join(RULES)}")
    rule = RULES[operator]
    level = _number(number, (rule.low, rule.high), rule.whole, f"{text!r}: the level of {operator}")
    given: dict[str, str | float] = {"kernel": "bicubic"} if rule.words == _KERNEL else {}
    for word in rest:
        key, _, value = word.partition("=")
        option = next((option for option, choices in rule.words if word in choices), None)
        limits = dict(rule.numbers).get(key)
        if option:
            given[option] = word
        elif limits:
            whole = key in dict(_PASSES)
            given[key] = _number(value, limits, whole, f"{text!r}: {key}")
        else:
            known = [one for _, choices in rule.words for one in choices] + [f"{key}=…" for key, _ in rule.numbers]
            remedy = f"it takes {', '.join(known)}" if known else "it takes none"
            raise GridError(f"{text!r}: {operator} has no option {word!r}; {remedy}")
    shown = [value if isinstance(value, str) else f"{key}={value:g}" for key, value in given.items()]
    return operator, level, shown, given


def _number(text: str, limits: tuple[float, float], whole: bool, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise GridError(f"{what} must be a number, got {text!r}") from None
    if not limits[0] <= value <= limits[1] or whole and value != int(value):
        raise GridError(f"{what} must be {limits[0]:g} to {limits[1]:g}{', a whole number' * whole}, got {text}")
    return value
