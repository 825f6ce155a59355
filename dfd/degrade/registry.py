"""Degradations by name and level, chains of them, and RandomDegrade, which draws chains for training.

The operators themselves are in `dfd.degrade.operators`. Training, the robustness sweep and the probe use the same ones, so
that a level means the same everywhere. A chain is a list of steps: (operator, level) or (operator, level, options).
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from itertools import accumulate

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from dfd.degrade.operators import (
    EIGHT_BIT,
    KERNELS,
    as_float,
    crop,
    double_jpeg,
    gamma,
    gaussian_blur,
    jpeg,
    noise,
    rescale,
    webp,
)

# Longest side in pixels and JPEG quality. Imitations in round numbers, not what a platform is known to do today.
SOCIAL_PRESETS = {"large": (2048, 85), "message": (1600, 70), "feed": (1080, 75), "thumbnail": (320, 70)}


def social(images: Tensor, quality: int, factor: float = 0.7) -> Tensor:
    """Imitate an upload to a social network: shrink by a factor (bicubic, antialiased), then JPEG 4:2:0.

    The factor is relative, so that the chain does something to small images too; `social_preset` limits the longest
    side, as platforms do.

    Args:
        images: (B, 3, H, W) in [0, 1].
        quality: Pillow quality of the JPEG, 1 (worst) to 100.
        factor: new side over old side, above 0, at most 1.

    Returns:
        (B, 3, round(H * factor), round(W * factor)) in [0, 1].

    Raises:
        ValueError: values outside [0, 1], a wrong shape or quality, or a factor that does not shrink.
    """
    if not 0 < factor <= 1:
        raise ValueError(f"social only shrinks: factor must be above 0 and at most 1, got {factor}")
    return jpeg(rescale(images, factor, "bicubic"), quality, "4:2:0")


def social_preset(images: Tensor, preset: str) -> Tensor:
    """The social chain with a limit on the longest side; smaller images keep their size and get the JPEG only.

    Args:
        images: (B, 3, H, W) in [0, 1].
        preset: a name in SOCIAL_PRESETS.

    Returns:
        (B, 3, H', W') in [0, 1], the longer of H' and W' at most the preset's.

    Raises:
        ValueError: an unknown preset, values outside [0, 1], or a wrong shape.
    """
    if preset not in SOCIAL_PRESETS:
        raise ValueError(f"unknown social preset {preset!r}; choose one of {', '.join(SOCIAL_PRESETS)}")
    longest, quality = SOCIAL_PRESETS[preset]
    return social(images, quality, min(1.0, longest / max(images.shape[-2:])))


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "jpeg": jpeg,
    "double_jpeg": double_jpeg,
    "webp": webp,
    "blur": gaussian_blur,
    "rescale": rescale,
    "noise": noise,
    "gamma": gamma,
    "crop": crop,
    "social": social,
}
_TEXT = {
    "jpeg": "JPEG {level:.0f} {subsampling}",
    "double_jpeg": "JPEG {first:.0f}, shift {shift}, JPEG {level:.0f} {subsampling}",
    "webp": "WebP {level:.0f}",
    "blur": "blur {level:.2f} px",
    "rescale": "rescale {level:.2f} {kernel}",
    "noise": "noise {level:.3f}",
    "gamma": "gamma {level:.2f}",
    "crop": "crop {level:.2f}",
    "social": "social {factor:.2f}, JPEG {level:.0f}",
}
Step = tuple[str, float] | tuple[str, float, dict]
SPARE = 16  # pixels beyond the smallest side that are degraded too, so that codec grids and borders fall anywhere


def at_level(images: Tensor, degradation: str, level: float, **options) -> Tensor:
    """Apply one named degradation at a fixed level; "none" gives the images back.

    Args:
        images: (B, 3, H, W) in [0, 1].
        degradation: none, or a name in OPERATORS.
        level: quality for jpeg and webp, of the last JPEG for double_jpeg (after one at 90, grids 4 pixels apart) and
            social (after shrinking to 0.7); sigma for blur and noise; factor for rescale; exponent for gamma; share
            of each side for crop, centred.
        options: the operator's other arguments, such as subsampling or kernel.

    Raises:
        ValueError: an unknown name, or a level that the operator refuses.
    """
    return images if degradation == "none" else _operator(degradation)(images, level, **options)


def compose(images: Tensor, chain: Iterable[Step]) -> Tensor:
    """Apply the steps of a chain one after another; an empty chain gives the images back.

    Args:
        images: (B, 3, H, W) in [0, 1].
        chain: (operator, level) or (operator, level, options), names and levels as in at_level.

    Raises:
        ValueError: an unknown name, or a level that its operator refuses.
    """
    for name, level, *options in chain:
        images = at_level(images, name, level, **(options[0] if options else {}))
    return images


def describe(chain: Iterable[Step]) -> str:
    """A chain in words for a caption: "JPEG 85 · rescale 0.71 bicubic · JPEG 62 4:4:4".

    JPEG is 4:2:0 where nothing else is said; where a crop lies is left out; an empty chain is "unchanged".

    Raises:
        ValueError: an unknown name.
    """
    words = []
    for name, level, *options in chain:
        if name != "none":
            arguments = inspect.signature(_operator(name)).parameters.values()
            values = {one.name: one.default for one in arguments} | (options[0] if options else {})
            words.append(_TEXT[name].format(level=level, **values).removesuffix(" 4:2:0"))
    return " · ".join(words) or "unchanged"


def _operator(name: str) -> Callable[..., Tensor]:
    if name not in OPERATORS:
        raise ValueError(f"unknown degradation {name!r}; choose one of none, {', '.join(OPERATORS)}")
    return OPERATORS[name]


_BOUNDS = {
    "history_qualities": (1, 95),
    "fractions": (0.01, 1),
    "factors": (0.01, 100),
    "sigmas": (0, math.inf),
    "gammas": (0.01, 100),
    "noises": (0, math.inf),
    "qualities": (1, 95),
    "social_factors": (0.01, 1),
    "social_qualities": (1, 95),
}


@dataclass(frozen=True, kw_only=True)
class RandomDegrade:
    """Draw a chain of degradations for one training image, in the order in which images meet them on their way.

    An earlier JPEG first, because any picture may have been one; crop, rescale, blur, gamma and noise; then a social
    chain, or one codec. Each step has its own probability and a range of levels. Draws come from torch's global
    generator; `datasets.Seeded` makes them repeatable.

    Where `smallest` is given, rescale, crop and social stop at that side, in pixels: what is cut to it afterwards needs
    no padding, which would mark the class whose images happen to be small. A window is then cut first, at random, as
    large as the chain needs to leave that side and SPARE pixels more: the rest would be degraded in vain.

    Raises:
        ValueError: a probability outside 0 to 1, a range that is empty or that its operator refuses, a strange kernel.
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

    def __post_init__(self):
        for spec in fields(self):
            value = getattr(self, spec.name)
            if spec.name.startswith("p_") and not 0 <= value <= 1:
                raise ValueError(f"{spec.name} must be a probability, 0 to 1, got {value}")
        for name, (least, most) in _BOUNDS.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(f"{name} must be (low, high) within {least} to {most}, got ({low}, {high})")
        if not self.kernels or not set(self.kernels) <= set(KERNELS):
            raise ValueError(f"kernels must be some of {', '.join(KERNELS)}, got {self.kernels}")

    def __call__(self, images: Tensor) -> Tensor:
        """Degrade (B, 3, H, W) images in [0, 1], all in the same way; H and W may change.

        uint8 images stay so until a step needs float.
        """
        chain = self.draw()
        if self.smallest:
            images = _cut(images, math.ceil((self.smallest + SPARE) / _shrinkage(chain)))
        for name, level, options in chain:
            images = images if name in EIGHT_BIT else as_float(images)
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
        if _chance(self.p_history):
            chain.append(("jpeg", _whole(self.history_qualities), self._subsampling()))
        if _chance(self.p_crop):
            chain.append(("crop", _uniform(*self.fractions), {"position": (_uniform(), _uniform())}))
        if _chance(self.p_rescale):
            kernel = self.kernels[_whole((0, len(self.kernels) - 1))]
            chain.append(("rescale", _log_uniform(*self.factors), {"kernel": kernel}))
        if _chance(self.p_blur):
            chain.append(("blur", _uniform(*self.sigmas), {}))
        if _chance(self.p_gamma):
            chain.append(("gamma", _log_uniform(*self.gammas), {}))
        if _chance(self.p_noise):
            chain.append(("noise", _uniform(*self.noises), {}))
        if _chance(self.p_social):
            chain.append(("social", _whole(self.social_qualities), {"factor": _log_uniform(*self.social_factors)}))
        elif _chance(self.p_codec):
            chain.append(self._codec())
        return chain

    def _codec(self) -> tuple[str, float, dict]:
        quality = _whole(self.qualities)
        if _chance(self.p_double):
            options = {"first": _whole(self.qualities), "shift": _whole((0, 15))}
            return "double_jpeg", quality, options | self._subsampling()
        if _chance(self.p_webp):
            return "webp", quality, {}
        return "jpeg", quality, self._subsampling()

    def _subsampling(self) -> dict:
        return {"subsampling": "4:4:4" if _chance(self.p_full_chroma) else "4:2:0"}


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB PIL image as a (1, 3, H, W) tensor in [0, 1]."""
    return TF.to_dtype(TF.pil_to_tensor(image), torch.float32, scale=True).unsqueeze(0)


def _shrinkage(chain: list[tuple[str, float, dict]]) -> float:
    """New side over old side where a drawn chain has the image at its smallest; at most 1."""
    factors = [options.get("factor", level) for name, level, options in chain if name in ("rescale", "crop", "social")]
    return min(accumulate(factors, operator.mul, initial=1.0))


def _cut(images: Tensor, side: int) -> Tensor:
    top, left = (_whole((0, max(length - side, 0))) for length in images.shape[-2:])
    return images[..., top : top + side, left : left + side]


def _chance(probability: float) -> bool:
    return _uniform() < probability


def _whole(bounds: tuple[int, int]) -> int:
    return int(torch.randint(bounds[0], bounds[1] + 1, ()))


def _uniform(low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand(()))


def _log_uniform(low: float, high: float) -> float:
    return math.exp(_uniform(math.log(low), math.log(high)))


GRID_KERNELS = ("nearest", "bilinear", "bicubic", "box", "lanczos")
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
_KERNEL = (("kernel", GRID_KERNELS),)
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
    chain: tuple[tuple[str, float, dict], ...] = field(hash=False)  # for dfd.degrade.registry.compose
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
