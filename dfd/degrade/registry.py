"""The registry in use: chains of degradations, the grammar of notebook 03's grid, and draws for training.

Training, sweep, audit and probe read the same DEGRADATIONS. A chain is a list of steps, (operator, level, options).
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dfd.degrade.operators import DEGRADATIONS, Degradation, check, check_images

Step = tuple[str, float, dict]
AS_IT_IS = "as it is"  # the name of the images without degradation
CLEAN = 0.5  # share of the training draws that are left alone: with fewer, what is learnt is the degradation
SPARE = 16  # pixels beyond the smallest side that are degraded too, so that codec grids and borders fall anywhere


def compose(images: Tensor, chain: Iterable[Step] | str) -> Tensor:
    """Apply steps, or the text of a chain, to (B, 3, H, W) images in [0, 1]; the step "none", or none, changes nothing.

    An unknown name, a level or an option beyond the table's ranges, and other images are a ValueError.
    """
    check_images(images)
    for name, level, options in parse(chain).chain if isinstance(chain, str) else chain:
        if name != "none":
            images = _row(name, level, options).operator(images, level, **options)
    return images


def _row(name: str, level: float, options: dict[str, Any]) -> Degradation:
    """The table's row for a step, whose level and options are within its ranges; the neutral level always is."""
    if name not in DEGRADATIONS:
        raise ValueError(f"unknown degradation {name!r}; choose one of {', '.join(DEGRADATIONS)}")
    row = DEGRADATIONS[name]
    if level != row.neutral:
        check(f"the level of {name}", level, row.range)
    for key in row.options.keys() & options.keys():
        check(key, options[key], row.options[key])
    return row


class Condition(NamedTuple):
    """One cell of the grid."""

    name: str  # the chain in the grammar
    chain: tuple[Step, ...]  # for compose
    degradation: str  # for the score tables: the name without the last step's level
    level: float  # of the last step; 0 for none


def parse(text: str) -> Condition:
    """Read one condition, steps with + between them. A kernel that is not named is bicubic; chroma is 4:2:0.

    An unknown operator or option, and a level that is missing or out of range, are a ValueError.
    """
    try:
        chain = tuple(_step(part.split()) for part in text.split("+"))
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    words = []
    for kind, _, options in chain:
        shown = [value if isinstance(value, str) else f"{key}={value:g}" for key, value in options.items()]
        words.append(" ".join([kind, *shown]))
    names = [name(step, level) for step, (_, level, _) in zip(words, chain, strict=True)]
    return Condition(" + ".join(names), chain, " + ".join([*names[:-1], words[-1]]), chain[-1][1])


def parse_all(texts: Iterable[str]) -> list[Condition]:
    """Read a grid, as `parse` does; the images as they are come first, though they are not written down."""
    conditions = [parse(text) for text in texts]
    names = [condition.name for condition in conditions]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"a grid needs conditions, such as 'jpeg 75', none of them twice; got {names}")
    return [Condition(AS_IT_IS, (), "none", 0.0), *conditions]


def name(degradation: str, level: float) -> str:
    """The condition that a score table's row belongs to, in the grammar."""
    named = re.sub(r"\w+(?=[^+]*$)", rf"\g<0> {level:g}", degradation, count=1)  # the first word after the last +
    return AS_IT_IS if degradation == "none" else named


def _step(words: list[str]) -> Step:
    """Read one step: operator, level, options as arguments."""
    if len(words) < 2:
        raise ValueError(f"each step is an operator and a level, such as 'jpeg 75'; got {' '.join(words)!r}")
    name, level, *rest = words
    takes = _row(name, float(level), {}).options
    options: dict[str, Any] = {"kernel": "bicubic"} if "kernel" in takes else {}
    for word in rest:  # of the words that an option may be, or key=number
        key, sign, value = word.partition("=")
        key = key if sign else next((key for key, choices in takes.items() if word in choices), "")
        if key not in takes:
            raise ValueError(f"{name} has no option {word!r}; it takes {dict(takes) or 'none'}")
        options[key] = float(value) if sign else word
    _row(name, float(level), options)
    return name, float(level), options


@dataclass(frozen=True, kw_only=True)
class RandomDegrade:
    """Draw a chain of degradations for one training image, in the order in which images meet them on their way.

    Draws come from torch's global generator; `dfd.data.crops.Seeded` makes them repeatable. Where `smallest` is given,
    rescale, crop and social stop at that side, in pixels: padding would mark the class whose images happen to be small.
    A random window is cut first, so large that the chain leaves that side and SPARE pixels.
    """

    p_clean: float = 0.0  # left as it is
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
    smallest: int = 0  # pixels

    def __call__(self, images: Tensor) -> Tensor:
        """Degrade (B, 3, H, W) images in [0, 1] in one way; H and W may change, uint8 stays until float is needed."""
        chain = self.draw()
        if self.smallest:
            factors = [how.get("factor", level) for name, level, how in chain if name in ("rescale", "crop", "social")]
            shrinkage = min(accumulate(factors, lambda a, b: a * b, initial=1.0))  # where the image is at its smallest
            side = math.ceil((self.smallest + SPARE) / shrinkage)
            top, left = (_whole(0, max(length - side, 0)) for length in images.shape[-2:])
            images = images[..., top : top + side, left : left + side]
        for name, level, options in chain:
            least = min(1.0, self.smallest / min(images.shape[-2:]))
            if name in ("rescale", "crop"):
                level = max(level, least)
            elif name == "social":
                options = options | {"factor": max(options["factor"], least)}
            images = compose(images, [(name, level, options)])
        return images

    def draw(self) -> list[Step]:
        """One chain: (operator, level, options) in the order of application; empty for an untouched image."""
        if self.p_clean and _uniform() < self.p_clean:
            return []
        chain: list[Step] = [("jpeg", _whole(60, 95), self._chroma())] if _uniform() < self.p_history else []
        if _uniform() < self.p_crop:
            chain.append(("crop", _uniform(0.8, 1), {"position": (_uniform(), _uniform())}))
        if _uniform() < self.p_rescale:
            kernel = ("bilinear", "bicubic", "lanczos")[_whole(0, 2)]  # nearest leaves traces like a generator's
            chain.append(("rescale", _log_uniform(0.6, 1.4), {"kernel": kernel}))
        chain += [("blur", _uniform(0.2, 1.5), {})] if _uniform() < self.p_blur else []
        chain += [("gamma", _log_uniform(0.7, 1.4), {})] if _uniform() < self.p_gamma else []
        chain += [("noise", _uniform(0.003, 0.02), {})] if _uniform() < self.p_noise else []
        if _uniform() < self.p_social:
            chain.append(("social", _whole(60, 90), {"factor": _log_uniform(0.5, 1)}))
        elif _uniform() < self.p_codec:
            quality = _whole(40, 95)
            if _uniform() < self.p_double:
                first = {"first": _whole(40, 95), "shift": _whole(0, 15)}
                chain.append(("double_jpeg", quality, first | self._chroma()))
            elif _uniform() < self.p_webp:
                chain.append(("webp", quality, {}))
            else:
                chain.append(("jpeg", quality, self._chroma()))
        return chain

    def _chroma(self) -> dict[str, str]:
        return {"subsampling": "4:4:4" if _uniform() < self.p_full_chroma else "4:2:0"}


def _whole(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))


def _uniform(low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand(()))


def _log_uniform(low: float, high: float) -> float:
    return math.exp(_uniform(math.log(low), math.log(high)))
