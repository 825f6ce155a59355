"""The registry in use: chains of degradations, the grammar of notebook 03's grid, and draws for training.

Training, sweep, audit and probe read the same DEGRADATIONS, so that a level means the same everywhere. A chain is a
list of steps, (operator, level) or (operator, level, options), applied in that order.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dfd.degrade.operators import DEGRADATIONS, Degradation, as_float, check_range

Step = tuple[str, float] | tuple[str, float, dict]
AS_IT_IS = "as it is"  # the name of the images without degradation
SPARE = 16  # pixels beyond the smallest side that are degraded too, so that codec grids and borders fall anywhere


def at_level(images: Tensor, degradation: str, level: float, **options: Any) -> Tensor:
    """Apply one named degradation to (B, 3, H, W) images in [0, 1]; "none" gives them back.

    An unknown name, or a level that the operator refuses, is a ValueError.
    """
    return images if degradation == "none" else _known(degradation).operator(images, level, **options)


def compose(images: Tensor, chain: Iterable[Step]) -> Tensor:
    """Apply the steps of a chain, as `at_level` does, one after another; an empty chain gives the images back."""
    for name, level, *options in chain:
        images = at_level(images, name, level, **(options[0] if options else {}))
    return images


def describe(chain: Iterable[Step]) -> str:
    """A chain in words for a caption; JPEG is 4:2:0 where nothing else is said.

    >>> describe([("jpeg", 85), ("rescale", 0.71), ("jpeg", 62, {"subsampling": "4:4:4"})])
    'JPEG 85 · rescale 0.71 bicubic · JPEG 62 4:4:4'
    """
    words = []
    for name, level, *options in chain:
        if name != "none":
            degradation = _known(name)
            defaults = {key: part.default for key, part in inspect.signature(degradation.operator).parameters.items()}
            values = defaults | (options[0] if options else {}) | {"level": level}
            words.append(degradation.text.format(**values).removesuffix(" 4:2:0"))
    return " · ".join(words) or "unchanged"


def _known(name: str) -> Degradation:
    if name not in DEGRADATIONS:
        raise ValueError(f"unknown degradation {name!r}; choose one of none, {', '.join(DEGRADATIONS)}")
    return DEGRADATIONS[name]


class Condition(NamedTuple):
    """One cell of the grid."""

    name: str  # the chain in the grammar
    chain: tuple[tuple[str, float, dict], ...]  # for compose
    degradation: str  # for the score tables: the name without the last step's level
    level: float  # of the last step; 0 for none


def parse(text: str) -> Condition:
    """Read one condition, steps with + between them. A kernel that is not named is bicubic; chroma is 4:2:0.

    >>> parse("rescale 0.5 + jpeg 80 4:4:4").degradation
    'rescale 0.5 bicubic + jpeg 4:4:4'

    An unknown operator or option, and a level that is missing or out of range, are a ValueError.
    """
    chain = tuple(_step(part.split(), text) for part in text.split("+"))
    words = []
    for kind, _, options in chain:
        shown = [value if isinstance(value, str) else f"{key}={value:g}" for key, value in options.items()]
        words.append(" ".join([kind, *shown]))
    names = [name(step, level) for step, (_, level, _) in zip(words, chain, strict=True)]
    return Condition(" + ".join(names), chain, " + ".join([*names[:-1], words[-1]]), chain[-1][1])


def parse_all(texts: Iterable[str]) -> list[Condition]:
    """Read a grid, as `parse` does; the images as they are come first, though they are not written down."""
    conditions: dict[str, Condition] = {}
    for condition in map(parse, texts):
        if condition.name in conditions:
            raise ValueError(f"{condition.name!r} is in the grid twice")
        conditions[condition.name] = condition
    if not conditions:
        raise ValueError("a grid needs at least one condition, such as 'jpeg 75'")
    return [Condition(AS_IT_IS, (), "none", 0.0), *conditions.values()]


def name(degradation: str, level: float) -> str:
    """The condition that a score table's row belongs to, in the grammar."""
    if degradation == "none":
        return AS_IT_IS
    *before, last = degradation.split(" + ")
    operator, *words = last.split()
    return " + ".join([*before, " ".join([operator, f"{level:g}", *words])])


def last_operator(degradation: str) -> str:
    """The operator at the end of a chain: "rescale 0.5 bicubic + jpeg" gives jpeg."""
    return degradation.split(" + ")[-1].split()[0]


def _step(words: list[str], text: str) -> tuple[str, float, dict]:
    """Read one step: operator, level, options as arguments."""
    if len(words) < 2:
        raise ValueError(f"{text!r}: each step is an operator and a level, such as 'jpeg 75'; got {' '.join(words)!r}")
    name, number, *rest = words
    if name not in DEGRADATIONS:
        raise ValueError(f"{text!r}: unknown operator {name!r}; choose one of {', '.join(DEGRADATIONS)}")
    rule = DEGRADATIONS[name]
    takes: dict[str, str] = {}  # a word, or "key=…" for a number -> option
    for key, values in rule.options.items():
        takes |= dict.fromkeys(values if isinstance(values[0], str) else [f"{key}=…"], key)
    options: dict[str, str | float] = {"kernel": "bicubic"} if "kernel" in rule.options else {}
    for word in rest:
        key, sign, value = word.partition("=")
        option = takes.get(f"{key}=…" if sign else word)
        if option is None:
            raise ValueError(f"{text!r}: {name} has no option {word!r}; it takes {', '.join(takes) or 'none'}")
        options[option] = _number(value, rule.options[option], f"{text!r}: {option}") if sign else word
    return name, _number(number, rule.range, f"{text!r}: the level of {name}"), options


def _number(text: str, limits: tuple[float, float], what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{what} must be a number, got {text!r}") from None
    check_range(what, value, limits)
    return value


@dataclass(frozen=True, kw_only=True)
class RandomDegrade:
    """Draw a chain of degradations for one training image, in the order in which images meet them on their way.

    Any picture may have been a JPEG; then come crop, rescale, blur, gamma and noise, and a social chain or a codec.
    Draws come from torch's global generator; `dfd.data.crops.Seeded` makes them repeatable.

    Where `smallest` is given, rescale, crop and social stop at that side, in pixels: padding would mark the class whose
    images happen to be small. A random window is cut first, so large that the chain leaves that side and SPARE pixels.
    """

    p_history: float = 0.2  # an earlier JPEG
    p_crop: float = 0.1
    p_rescale: float = 0.2
    p_blur: float = 0.15
    p_gamma: float = 0.05
    p_noise: float = 0.1
    p_social: float = 0.05  # ends in a social chain
    p_codec: float = 0.6  # ends in a codec, where it does not end in a social chain
    p_double: float = 0.15  # share of those codecs that are JPEG twice
    p_webp: float = 0.2  # share of the others that are WebP; the rest are JPEG
    p_full_chroma: float = 0.3  # share of JPEGs, outside social chains, with 4:4:4; the rest have 4:2:0
    history_qualities: tuple[int, int] = (60, 95)
    fractions: tuple[float, float] = (0.8, 1.0)  # of each side, for crop; the place is uniform
    factors: tuple[float, float] = (0.6, 1.4)  # of rescale, log-uniform
    kernels: tuple[str, ...] = ("bilinear", "bicubic", "lanczos")  # nearest, and box enlarging, leave GAN-like traces
    sigmas: tuple[float, float] = (0.2, 1.5)  # of blur, pixels
    gammas: tuple[float, float] = (0.7, 1.4)  # exponents, log-uniform
    noises: tuple[float, float] = (0.003, 0.02)  # in units of the [0, 1] range
    qualities: tuple[int, int] = (40, 95)  # of codecs, both passes where there are two
    social_factors: tuple[float, float] = (0.5, 1.0)  # log-uniform
    social_qualities: tuple[int, int] = (60, 90)
    smallest: int = 0  # pixels

    def __call__(self, images: Tensor) -> Tensor:
        """Degrade (B, 3, H, W) images in [0, 1] in one way; H and W may change, uint8 stays until float is needed."""
        chain = self.draw()
        if self.smallest:
            factors = [how.get("factor", level) for name, level, how in chain if name in ("rescale", "crop", "social")]
            shrinkage = min(accumulate(factors, operator.mul, initial=1.0))  # where the image is at its smallest
            side = math.ceil((self.smallest + SPARE) / shrinkage)
            top, left = (_whole((0, max(length - side, 0))) for length in images.shape[-2:])
            images = images[..., top : top + side, left : left + side]
        for name, level, options in chain:
            images = images if DEGRADATIONS[name].eight_bit else as_float(images)
            least = min(1.0, self.smallest / min(images.shape[-2:]))
            if name in ("rescale", "crop"):
                level = max(level, least)
            elif name == "social":
                options = options | {"factor": max(options["factor"], least)}
            images = compose(images, [(name, level, options)])
        return images

    def draw(self) -> list[tuple[str, float, dict]]:
        """One chain: (operator, level, options) in the order of application; empty for an untouched image."""
        chain = []
        if _uniform() < self.p_history:
            chain.append(("jpeg", _whole(self.history_qualities), self._subsampling()))
        if _uniform() < self.p_crop:
            chain.append(("crop", _uniform(*self.fractions), {"position": (_uniform(), _uniform())}))
        if _uniform() < self.p_rescale:
            kernel = self.kernels[_whole((0, len(self.kernels) - 1))]
            chain.append(("rescale", _log_uniform(*self.factors), {"kernel": kernel}))
        if _uniform() < self.p_blur:
            chain.append(("blur", _uniform(*self.sigmas), {}))
        if _uniform() < self.p_gamma:
            chain.append(("gamma", _log_uniform(*self.gammas), {}))
        if _uniform() < self.p_noise:
            chain.append(("noise", _uniform(*self.noises), {}))
        if _uniform() < self.p_social:
            chain.append(("social", _whole(self.social_qualities), {"factor": _log_uniform(*self.social_factors)}))
        elif _uniform() < self.p_codec:
            quality = _whole(self.qualities)
            if _uniform() < self.p_double:
                passes = {"first": _whole(self.qualities), "shift": _whole((0, 15))}
                chain.append(("double_jpeg", quality, passes | self._subsampling()))
            elif _uniform() < self.p_webp:
                chain.append(("webp", quality, {}))
            else:
                chain.append(("jpeg", quality, self._subsampling()))
        return chain

    def _subsampling(self) -> dict[str, str]:
        return {"subsampling": "4:4:4" if _uniform() < self.p_full_chroma else "4:2:0"}


def _whole(bounds: tuple[int, int]) -> int:
    return int(torch.randint(bounds[0], bounds[1] + 1, ()))


def _uniform(low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand(()))


def _log_uniform(low: float, high: float) -> float:
    return math.exp(_uniform(math.log(low), math.log(high)))
