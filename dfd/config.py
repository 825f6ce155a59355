"""One frozen dataclass per notebook: its fields are that notebook's papermill parameters."""

from __future__ import annotations

import ast
import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE if (PACKAGE / "notebooks").exists() else PACKAGE.parent  # a wheel carries its notebooks inside
REAL = "RealPhotos"  # the folder of the photographs, and their label
CHECKPOINTS = {"stage1": "best_real_fake_model.pt", "stage2": "best_gfd2_model.pt"}  # in the run folder
CROP_MODES = ("five", "grid", "random")


class ConfigError(ValueError):
    """A parameter is misspelt, of the wrong type or out of range."""


@dataclass(frozen=True, repr=False)
class Shared:
    """What every notebook needs to know."""

    data: str = "data/sample"  # folder with RealPhotos/ and one folder per generator
    out: str = "reports/demo"  # run folder: manifest, checkpoints, score tables, reports
    seed: int = 0  # one seed for splits, weights, crops and degradations

    def __post_init__(self):
        for name in ("data", "out"):
            given = str(getattr(self, name))
            object.__setattr__(self, name, given if os.path.isabs(given) else os.path.relpath(resolve(given)))
        hints = get_type_hints(type(self))
        for field in fields(self):
            object.__setattr__(self, field.name, _typed(field.name, getattr(self, field.name), hints[field.name]))
        self.check()

    def __repr__(self) -> str:
        lines = (f"    {field.name}={getattr(self, field.name)!r}," for field in fields(self))
        return "\n".join((f"{type(self).__name__}(", *lines, ")"))

    def check(self) -> None:
        """Raise ConfigError where a value makes no sense."""

    def _need(self, condition: bool, text: str) -> None:
        if not condition:
            raise ConfigError(text)


@dataclass(frozen=True, repr=False)
class Eda(Shared):
    """Notebook 00: scan the folder, split it by group, and audit it."""

    val_fraction: float = 0.2  # share of the groups held out to choose epoch and threshold
    test_fraction: float = 0.2  # share of the groups held out for the final numbers
    group_by: str = ""  # column of provenance.csv, whole values of which make the test split; empty: off
    hold_out: tuple[str, ...] = ()  # the values that make the test split; empty: chosen to meet test_fraction
    examples: int = 6  # pictures per class in the example grid

    def check(self) -> None:
        self._need(0 < self.val_fraction < 1, f"val_fraction must lie in (0, 1), got {self.val_fraction}")
        self._need(0 < self.test_fraction < 1, f"test_fraction must lie in (0, 1), got {self.test_fraction}")
        self._need(self.val_fraction + self.test_fraction < 1, "val_fraction + test_fraction must leave room to train")
        self._need(bool(self.group_by) or not self.hold_out, "hold_out needs group_by, the column its names come from")


@dataclass(frozen=True, repr=False)
class Training(Shared):
    """What both stages share; see Stage1 and Stage2 for their defaults."""

    crop_size: int = 128  # side of the square crop, pixels
    crops: int = 5  # crops per image when scoring; never a resize
    crop_mode: str = "five"  # where they lie: five (centre, corners, then a grid), grid or random
    equalise: bool = True  # same crop and same last codec for every class
    equalise_quality: int = 90  # Pillow quality of that codec (JPEG, 4:2:0)
    degrade: bool = True  # JPEG, blur and rescaling in training
    num_epochs: int = 10
    batch_size: int = 32
    images_per_epoch: int = 0  # balanced draws per epoch; 0: as many as there are training images
    lr_gc: float = 1e-3  # AdamW learning rate of generator and classifier
    lr_d: float = 2e-3  # AdamW learning rate of the discriminator
    weight_decay: float = 1e-4
    ema: float = 0.99  # decay of the moving average of the weights, which is what is kept; 0: no average
    patience: int = 4  # epochs without a better validation score before stopping
    minutes: float = 0.0  # stop training after the epoch that passes this; 0: no limit
    checkpoint_minutes: float = 5.0  # between states to go on from within an epoch; 0: only after each epoch
    workers: int = -1  # loader processes; -1: one for each core, at most 8; 0: the training process loads
    decoded_gb: float = 1.0  # memory for decoded training images, which the loaders share; 0: none are kept
    resume: bool = True  # go on from the last checkpoint of the same configuration
    track: str = "auto"  # where the epochs are logged: tensorboard, mlflow or none; auto: tensorboard

    def check(self) -> None:
        self._need(self.crop_size >= 32, f"crop_size must be at least 32, got {self.crop_size}")
        self._need(self.crop_size % 8 == 0, f"crop_size must be a multiple of 8, got {self.crop_size}")
        self._need(1 <= self.equalise_quality <= 95, f"equalise_quality must be 1 to 95, got {self.equalise_quality}")
        for name in ("crops", "num_epochs", "batch_size", "patience"):
            self._need(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("images_per_epoch", "minutes", "checkpoint_minutes", "decoded_gb", "weight_decay"):
            self._not_negative(name)
        self._need(self.workers >= -1, f"workers must be -1 or more, got {self.workers}")
        for name in ("lr_gc", "lr_d"):
            self._need(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        self._need(0 <= self.ema < 1, f"ema must be in [0, 1), got {self.ema}")
        self._one_of("crop_mode", CROP_MODES)
        self._one_of("track", ("auto", "tensorboard", "mlflow", "none"))

    def _not_negative(self, name: str) -> None:
        self._need(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")

    def _patches_fit(self) -> None:
        layers = self.discriminator_layers
        fits = layers >= 1 and 2 ** (layers + 2) <= self.crop_size
        self._need(fits, f"discriminator_layers must be at least 1 and fit crop_size, got {layers}")

    def _one_of(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        self._need(value in choices, f"{name} must be {' or '.join(choices)}, got {value}")


@dataclass(frozen=True, repr=False)
class Stage1(Training):
    """Notebook 01: train the real/fake detector against a launderer of fakes."""

    backbone: str = "resnet50"  # any timm name
    pretrained: bool = True  # ImageNet weights where they can be had
    representation: str = "highpass"  # what the backbone sees: rgb, highpass or npr
    stem_stride: int = 0  # stride of the first convolution; 1 keeps pixel-level traces, 0 leaves it as it is
    loss: str = "bce"  # bce or focal
    label_smoothing: float = 0.05
    adversarial: bool = True  # train against a launderer and a PatchGAN discriminator
    adversarial_every: int = 4  # batches of the detector, and of the discriminator, for one of the launderer
    adversarial_loss: str = "hinge"  # hinge or nonsaturating
    adversarial_weight: float = 1.0  # launderer: pass for a photo before the discriminator
    evasion_weight: float = 0.3  # launderer: pass for a photo before the detector
    perceptual_weight: float = 10.0  # launderer: keep the content, in VGG16's features; 0 leaves the term out
    r1_weight: float = 0.0  # discriminator: R1 gradient penalty, beside its spectral norm
    laundered_weight: float = 0.5  # detector: laundered fakes, beside 1 for the batch
    launderer_width: int = 8  # channels of the launderer's first level
    launderer_bound: float = 0.03  # largest change of a pixel, in units of the [0, 1] range
    discriminator_layers: int = 3  # strided layers; 3 see patches of 70 x 70 pixels, 2 of 34 x 34
    ablate: bool = False  # also train the detector with one part left out or changed at a time, and compare

    def check(self) -> None:
        super().check()
        self._one_of("representation", ("rgb", "highpass", "npr"))
        self._one_of("loss", ("bce", "focal"))
        self._one_of("adversarial_loss", ("hinge", "nonsaturating"))
        self._need(0 <= self.label_smoothing < 0.5, f"label_smoothing must be in [0, 0.5), got {self.label_smoothing}")
        self._need(0 < self.launderer_bound <= 1, f"launderer_bound must be in (0, 1], got {self.launderer_bound}")
        self._need(self.launderer_width >= 4, f"launderer_width must be at least 4, got {self.launderer_width}")
        self._need(0 <= self.stem_stride <= 4, f"stem_stride must be 0 to 4, got {self.stem_stride}")
        self._need(self.adversarial_every >= 1, f"adversarial_every must be at least 1, got {self.adversarial_every}")
        self._patches_fit()
        for name in ("adversarial", "evasion", "perceptual", "r1", "laundered"):
            self._not_negative(f"{name}_weight")


@dataclass(frozen=True, repr=False)
class Stage2(Training):
    """Notebook 02: train the residual extractor and the classifier that names the generator."""

    backbone: str = "tf_efficientnet_lite0"  # any timm name
    pretrained: bool = True
    extractor: str = "unet"  # what the classifier sees: the unet's residual, or the baselines highpass and rgb
    unet_width: int = 16  # channels of the UNet's first level
    residual_bound: float = 0.1  # largest absolute residual, in units of the [0, 1] range
    label_smoothing: float = 0.05
    joint: bool = True  # extractor and classifier learn in the same step; false: in turns, carried_every batches each
    carried_every: int = 4  # batches for one in which fingerprints are put on carriers
    carried_weight: float = 0.5  # name the generator of a photo with its fingerprint put on
    adversarial_weight: float = 0.1  # such a photo passes for one before the PatchGAN discriminator
    adversarial_loss: str = "hinge"  # hinge or nonsaturating
    discriminator_layers: int = 3  # strided layers; 3 see patches of 70 x 70 pixels, 2 of 34 x 34
    perceptual_weight: float = 1.0  # and keeps its content, in VGG16's features
    consistency_weight: float = 0.5  # two degraded views of one fake get the same answer
    coverage: float = 0.9  # promise of the conformal prediction sets
    accept: float = 0.95  # share of the validation fakes of known generators that are not called unknown
    ablate: bool = False  # also train with one loss left out at a time, and the baselines, and compare
    leave_out: bool = False  # also train without each generator in turn, and see whether it is called unknown

    def check(self) -> None:
        super().check()
        self._one_of("extractor", ("unet", "highpass", "rgb"))
        self._one_of("adversarial_loss", ("hinge", "nonsaturating"))
        self._need(self.unet_width >= 4, f"unet_width must be at least 4, got {self.unet_width}")
        self._need(0 < self.residual_bound <= 1, f"residual_bound must be in (0, 1], got {self.residual_bound}")
        self._need(0 <= self.label_smoothing < 0.5, f"label_smoothing must be in [0, 0.5), got {self.label_smoothing}")
        self._need(self.carried_every >= 1, f"carried_every must be at least 1, got {self.carried_every}")
        self._patches_fit()
        for name in ("carried", "adversarial", "perceptual", "consistency"):
            self._not_negative(f"{name}_weight")
        for name in ("coverage", "accept"):
            self._need(0 < getattr(self, name) < 1, f"{name} must lie in (0, 1), got {getattr(self, name)}")


@dataclass(frozen=True, repr=False)
class Robustness(Shared):
    """Notebook 03: both stages on every test image under each condition of a grid."""

    conditions: tuple[str, ...] = (
        "jpeg 100", "jpeg 95", "jpeg 90", "jpeg 85", "jpeg 75", "jpeg 65", "jpeg 50", "jpeg 40", "jpeg 30",
        "webp 90", "webp 75", "webp 50", "double_jpeg 90", "double_jpeg 75", "double_jpeg 50",
        "blur 0.5", "blur 1", "blur 2", "noise 0.01", "noise 0.02", "noise 0.05",
        "rescale 0.75 bicubic", "rescale 0.5 bicubic", "rescale 1.5 bicubic", "rescale 2 bicubic",
        "rescale 0.75 lanczos", "rescale 0.5 lanczos", "rescale 1.5 bilinear", "rescale 2 bilinear",
        "rescale 0.5 nearest", "resample 0.8 bilinear", "resample 0.65 bilinear", "resample 0.5 bilinear",
        "crop 0.75", "crop 0.5", "gamma 0.7", "gamma 0.5", "gamma 1.4", "gamma 2",
        "social 85", "social 70", "social 75 factor=0.5",
        "rescale 0.75 bicubic + jpeg 75", "blur 1 + jpeg 75", "noise 0.02 + jpeg 75", "resample 0.8 bilinear + webp 75",
    )  # fmt: skip  # a chain each, see dfd.degrade.registry; the images as they are come first, unsaid
    crops: int = 5
    accuracy: float = 0.7  # the level of each operator is looked for at which a stage falls below this

    def check(self) -> None:
        self._need(self.crops >= 1, f"crops must be at least 1, got {self.crops}")
        self._need(0 < self.accuracy < 1, f"accuracy is a share in (0, 1), got {self.accuracy}")


@dataclass(frozen=True, repr=False)
class ErrorAnalysis(Shared):
    """Notebook 04: where both stages fail and what these images have in common, from the score tables and features."""

    split: str = "test"  # whose images are analysed, test or val
    worst: int = 8  # surest mistakes shown as pictures, per stage
    uncertain: int = 4  # least certain images shown as pictures, per stage
    alpha: float = 0.01  # chance that a slice is reported where there is none
    shown: int = 4  # mistakes shown beside their neighbours, per stage
    suspects_shown: int = 12  # suspected label errors shown as pictures

    def check(self) -> None:
        for name in ("worst", "uncertain", "shown", "suspects_shown"):
            self._need(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        self._need(self.split in ("val", "test"), f"split must be val or test, got {self.split}")
        self._need(0.001 <= self.alpha < 1, f"alpha must lie in [0.001, 1), got {self.alpha}")


@dataclass(frozen=True, repr=False)
class Probe(Shared):
    """Notebook 05: one image, both stages' answer, and what it rests on."""

    examples: int = 4  # built-in images offered beside the upload
    fpr: float = 0.0  # threshold that calls at most this share of validation photos generated; 0: the run's own
    static: bool = False  # show the examples without widgets, as `run` does

    def check(self) -> None:
        self._need(self.examples >= 0, f"examples must not be negative, got {self.examples}")
        self._need(0 <= self.fpr < 1, f"fpr must be a share in [0, 1), got {self.fpr}")


NOTEBOOKS: dict[str, type[Shared]] = {
    "00_eda": Eda,
    "01_stage1_real_fake": Stage1,
    "02_stage2_attribution": Stage2,
    "03_robustness": Robustness,
    "04_error_analysis": ErrorAnalysis,
    "05_probe": Probe,
}


def resolve(path: str) -> Path:
    """Make a path absolute: relative to the working directory, or to the project when a notebook runs in place."""
    given = Path(path).expanduser()
    if given.is_absolute():
        return given
    return (ROOT if Path.cwd() == ROOT / "notebooks" else Path.cwd()) / given


def from_notebook(cls: type[Shared], names: dict[str, Any]) -> Shared:
    """Build a config from the notebook's globals: the parameters cell, as its author or papermill left it.

    Raises:
        ConfigError: a value out of range, or a parameter that the config does not have.
    """
    known = {field.name for field in fields(cls)}
    for name in sorted(typed_parameters(names["In"][:-1] if "In" in names else []) - known):
        raise ConfigError(unknown_parameter(name, known))
    return cls(**{name: names[name] for name in known if name in names})


def typed_parameters(cells: Sequence[str]) -> set[str]:
    """The names in the latest cells that only assign constants: the parameters cell, and papermill's after it.

    Args:
        cells: what a kernel has run, oldest first; names that other cells left behind do not count.
    """
    found: set[str] = set()
    for source in reversed(cells):
        try:
            body = ast.parse(source).body
            for statement in body:
                ast.literal_eval(statement.value)
            names = {target.id for statement in body for target in statement.targets}
        except (SyntaxError, ValueError, AttributeError):
            names = set()
        if found and not names:
            break
        found |= names
    return found


def unknown_parameter(name: str, known: set[str]) -> str:
    """The message for a misspelt parameter, with the nearest valid name."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"unknown parameter {name!r}{hint} Valid names: {', '.join(sorted(known))}"


def _typed(name: str, value: Any, kind: Any) -> Any:
    """Check a value against its field's type; lists become tuples and whole numbers floats where asked."""
    text = str(kind).replace("<class '", "").replace("'>", "")
    if text.startswith("tuple") and isinstance(value, list | tuple):
        if all(type(item) is get_args(kind)[0] for item in value):
            return tuple(value)
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif kind is str and isinstance(value, str | os.PathLike):
        return str(value)
    elif kind in (int, bool) and type(value) is kind:
        return value
    raise ConfigError(f"{name} must be of type {text}, got {value!r}")


# What a profile changes, by notebook; the rest keeps its default. The built-in data is small and all PNG; quick is
# sized for about 4,000 images of 256 px on two cores; full wants a GPU. Both small ones take EfficientNet-Lite0 in
# place of ResNet50: pip installs its ImageNet weights, so that it starts from them without a network too.
PROFILES: dict[str, dict[str, dict[str, Any]]] = {
    "demo": {
        "01_stage1_real_fake": {
            "backbone": "tf_efficientnet_lite0", "crop_size": 64, "num_epochs": 5, "images_per_epoch": 1280,
            "equalise_quality": 95, "adversarial_every": 8,
        },
        "02_stage2_attribution": {
            "crop_size": 96, "num_epochs": 6, "images_per_epoch": 640, "equalise_quality": 95, "unet_width": 8,
            "carried_every": 8,
        },
        "03_robustness": {
            "conditions": (
                "jpeg 95", "jpeg 75", "jpeg 50", "webp 75", "double_jpeg 75", "blur 0.5", "blur 1", "noise 0.02",
                "rescale 0.75 bicubic", "rescale 0.5 bicubic", "rescale 1.5 bicubic", "resample 0.8 bilinear",
                "crop 0.75", "gamma 0.7", "social 75", "rescale 0.75 bicubic + jpeg 75",
            ),
            "crops": 2,
        },
    },
    "quick": {
        "01_stage1_real_fake": {
            "backbone": "tf_efficientnet_lite0", "crop_size": 96, "num_epochs": 8, "images_per_epoch": 2400,
            "adversarial_every": 8,
        },
        "02_stage2_attribution": {"crop_size": 96, "num_epochs": 6, "unet_width": 8, "carried_every": 8},
        "03_robustness": {"crops": 3},
    },
    "full": {
        "01_stage1_real_fake": {"num_epochs": 40, "patience": 8},
        "02_stage2_attribution": {"num_epochs": 40, "patience": 8},
    },
}  # fmt: skip


def profile(name: str, stem: str) -> dict[str, Any]:
    """The parameters that a profile sets for one notebook."""
    if name not in PROFILES:
        raise ConfigError(f"unknown profile {name!r}; choose one of {', '.join(PROFILES)}")
    return dict(PROFILES[name].get(stem, {}))
