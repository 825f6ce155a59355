"""One frozen model per notebook: its fields are that notebook's papermill parameters. It imports nothing of dfd."""

import ast
import difflib
import json
import operator
import os
from collections.abc import Iterable, Mapping
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE if (PACKAGE / "notebooks").exists() else PACKAGE.parent  # a wheel carries its notebooks inside
REAL = "RealPhotos"  # the folder of the photographs, and their label
CHECKPOINTS = {"stage1": "best_real_fake_model.pt", "stage2": "best_gfd2_model.pt"}  # in the run folder
CLIPS = ("clip", "clip-tuned")  # backbones that are not timm's names: as OpenAI made it, and tuned for what ships
CropMode = Literal["five", "grid", "random"]
CROP_MODES = get_args(CropMode)
DETECTOR = ROOT / "data" / "detector"  # the heads that ship: Detector.load() without a run folder
SHIPPED = {"stage1": "stage1.safetensors", "stage2": "stage2.safetensors"}
ADAPTER = DETECTOR / "adapter.safetensors"  # what clip-tuned adds to CLIP's matrices
SUMS = "SHA256SUMS"  # of these files, beside them
Profile = Literal["demo", "quick", "full", "clip"]
PROFILES = get_args(Profile)  # configs/*.yaml
CONDITIONS = tuple((PACKAGE / "templates" / "conditions.txt").read_text("utf-8").splitlines())

Count = Annotated[int, Field(ge=1)]
Quality = Annotated[int, Field(ge=1, le=95)]  # Pillow's, of a JPEG
Weight = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]  # neither none nor all


def _texts(value: Any) -> Any:
    """Several texts as the command line writes them: `a,b`, or `["a, b"]` where they hold commas themselves."""
    if isinstance(value, str):
        return json.loads(value) if value.startswith("[") else [*filter(None, map(str.strip, value.split(",")))]
    return value


Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]
Place = Annotated[  # from the working directory; absolute ones stay
    str, BeforeValidator(lambda path: os.path.normpath(path) if os.path.isabs(path) else os.path.relpath(resolve(path)))
]


class ConfigError(ValueError):
    """A parameter is misspelt, of the wrong type or out of range."""


class Shared(BaseModel):
    """What every notebook needs to know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    data: Place = "data/sample"  # folder with RealPhotos/ and one folder per generator
    out: Place = "reports/demo"  # run folder: manifest, checkpoints, score tables, reports
    seed: int = Field(0, ge=0, lt=2**32)  # one seed for splits, weights, crops and degradations

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            wrong, known = error.errors()[0], type(self).model_fields
            name = ".".join(map(str, wrong["loc"]))
            text = wrong["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            is_unknown = wrong["type"] == "extra_forbidden"
            text = unknown_parameter(name, known) if is_unknown else f"{name} {text}, got {wrong['input']!r}"
            raise ConfigError(text) from None

    def __repr__(self) -> str:
        return "\n".join((f"{type(self).__name__}(", *(f"    {name}={value!r}," for name, value in self), ")"))


class Eda(Shared):
    """Notebook 00: scan the folder, split it by group, and audit it."""

    val_fraction: Share = 0.2  # of the images, in whole groups: to choose epoch and threshold
    test_fraction: Share = 0.2  # of the images, in whole groups: for the final numbers
    group_by: str = ""  # column of provenance.csv, whole values of which make the test split; empty: off
    hold_out: Texts = ()  # the values that make the test split; group_by needs them
    examples: Count = 6  # pictures per class in the example grid


class Training(Shared):
    """What both stages share, and its defaults."""

    crop_size: int = Field(128, ge=32, le=2048, multiple_of=8)  # side of the crop, pixels; above 224 CLIP shrinks it
    crops: Count = 5  # crops per image when scoring; never a resize
    crop_mode: CropMode = "five"  # where they lie: five (centre, corners, then a grid), grid or random
    equalise: bool = True  # same last codec for every class
    equalise_quality: Quality = 90  # of that codec (JPEG, 4:2:0)
    degrade: bool = True  # JPEG, blur and rescaling in training; clip: of random_views alone
    num_epochs: Count = 10
    batch_size: int = Field(32, ge=2)  # photos and fakes in turn
    images_per_epoch: int = Field(0, ge=0)  # balanced draws per epoch; 0: as many as there are training images
    lr_gc: Rate = 2e-4  # AdamW learning rate of generator and classifier
    lr_d: Rate = 1e-3  # AdamW learning rate of the discriminator
    weight_decay: Weight = 1e-4
    ema: float = Field(0.99, ge=0, lt=1)  # decay of the moving average of the weights, which is what is kept; 0: off
    patience: Count = 4  # epochs without a better validation score before stopping
    checkpoint_minutes: float = Field(5.0, ge=0)  # between states to go on from; 0: only after each epoch
    workers: int = Field(-1, ge=-1)  # loader processes; -1: one for each core, at most 8; 0: the training process loads
    resume: bool = True  # go on from the last checkpoint of the same configuration
    track: Literal["tensorboard", "mlflow", "none"] = "tensorboard"  # where epochs are logged
    pretrained: bool = True  # ImageNet weights of backbone, discriminator and VGG16 where they can be had
    label_smoothing: float = Field(0.05, ge=0, lt=0.5)
    random_views: Count = 1  # clip: randomly degraded views of each image in the feature bank, beside the fixed ones
    shrinkage: Rate = 0.1  # clip: added to the covariance of the features behind the head
    hold_outs: int = Field(40, ge=0)  # clip: draws that leave out one source of each label, behind the thresholds
    ablate: bool = False  # also train with one part left out or changed at a time, and compare


class Stage1(Training):
    """Notebook 01: train the real/fake detector against a launderer of fakes."""

    backbone: str = "resnet50"  # a convolutional timm name, or clip, or clip-tuned: heads on its features
    representation: Literal["rgb", "highpass"] = "highpass"  # what the backbone sees
    adversarial: bool = True  # train against a launderer and a PatchGAN discriminator
    adversarial_every: Count = 4  # batches of the detector, and of the discriminator, for one of the launderer
    adversarial_weight: Weight = 1.0  # launderer: pass for a photo before the discriminator
    evasion_weight: Weight = 0.3  # launderer: pass for a photo before the detector
    perceptual_weight: Weight = 0.5  # launderer: keep the content, in VGG16's features; 0 leaves the term out
    laundered_weight: Weight = 0.5  # detector: laundered fakes, beside 1 for the batch
    launderer_width: int = Field(8, ge=4, multiple_of=4)  # channels of the launderer's first level
    launderer_bound: float = Field(0.03, gt=0, le=1)  # largest change of a pixel, in units of the [0, 1] range


class Stage2(Training):
    """Notebook 02: train the residual extractor and the classifier that names the generator."""

    backbone: str = "tf_efficientnet_lite0"  # a convolutional timm name, or clip, clip-tuned, which need no extractor
    extractor: Literal["unet", "highpass", "rgb"] = "unet"  # the unet's residual, or the baselines highpass and rgb
    unet_width: int = Field(16, ge=4, le=512, multiple_of=4)  # channels of the UNet's first level
    residual_bound: float = Field(0.1, gt=0, le=1)  # largest absolute residual, in units of the [0, 1] range
    carried_every: Count = 4  # batches for one in which fingerprints are put on carriers
    carried_weight: Weight = 0.5  # name the generator of a photo with its fingerprint put on
    adversarial_weight: Weight = 0.1  # such a photo passes for one before the PatchGAN discriminator
    perceptual_weight: Weight = 0.05  # and keeps its content, in VGG16's features
    consistency_weight: Weight = 0.5  # two degraded views of one fake get the same answer
    shrinkage: Rate = 8.0  # clip: as in Training; names of unseen sources gain by more of it, real or fake does not
    coverage: Share = 0.9  # promise of the conformal prediction sets
    accept: Share = 0.95  # of the validation fakes of known generators, those that are not called unknown
    leave_out: bool = False  # also train without each generator in turn, and see whether it is called unknown


class Robustness(Shared):
    """Notebook 03: both stages on every test image under each condition of a grid."""

    removal_steps: int = Field(100, ge=0)  # of a launderer that works against stage 1; 0: no attacks
    conditions: Texts = CONDITIONS  # a chain each, see dfd.degrade.registry; the images as they are come first, unsaid
    crops: Count = 5


class ErrorAnalysis(Shared):
    """Notebook 04: where both stages fail and what these images have in common, from the score tables and features."""

    split: Literal["val", "test"] = "test"  # whose images are analysed
    worst: Count = 8  # surest mistakes shown as pictures, per stage
    uncertain: Count = 4  # least certain images shown as pictures, per stage
    alpha: float = Field(0.01, ge=0.001, lt=1)  # chance that a slice is reported where there is none
    suspects_shown: Count = 12  # suspected label errors shown as pictures


class Probe(Shared):
    """Notebook 05: one image, both stages' answer, and what it rests on."""

    model: Literal["auto", "shipped", "run"] = "auto"  # whose answer; auto: what ships, in reports the run's own
    examples: int = Field(4, ge=0)  # images offered beside the upload: of the test split, or built in
    fpr: float = Field(0.0, ge=0, lt=1)  # the threshold calls at most this share of photos fake; 0: the run's own
    static: bool = False  # show the examples without widgets, as `run` does


class OwnData(Shared):
    """Notebook 06: from a folder of one's own to a report, a comparison and a case; it runs the others."""

    out: Place = "reports/own"
    profile: Profile = "demo"
    hold_out: Texts = ()  # sources of provenance.csv that make the test split; none: a share of the images
    notebooks: Texts = ("00", "01", "02")  # what runs first
    settings: dict[str, Any] = {}  # parameters beside the profile's
    change: dict[str, Any] = {"01.degrade": False}  # what the second run does otherwise
    again: Texts = ("00", "01")  # what runs the second time
    images: Count = 8  # of each class judged by the detector that ships, and in all put into the case


NOTEBOOKS: dict[str, type[Shared]] = {
    "00_eda": Eda, "01_stage1_real_fake": Stage1, "02_stage2_attribution": Stage2, "03_robustness": Robustness,
    "04_error_analysis": ErrorAnalysis, "05_probe": Probe, "06_your_own_data": OwnData}  # fmt: skip
GUIDE = "06_your_own_data"  # runs the others, so that `run` does not run it
SECTIONS = {model: stem[3:] for stem, model in NOTEBOOKS.items()}  # of configs/*.yaml: the notebook without its number


def resolve(path: str | os.PathLike) -> Path:
    """Make a path absolute: relative to the working directory, or in the folder of the notebooks to the one above."""
    here = Path.cwd()
    in_place = here.name == "notebooks" and (here / "00_eda.ipynb").exists()
    return (here.parent if in_place else here) / Path(path).expanduser()


def profile(name: str, stem: str) -> dict[str, Any]:
    """The parameters that a profile, configs/<name>.yaml, sets for one notebook; the rest keeps its default."""
    if name not in PROFILES:
        raise ConfigError(f"unknown profile {name!r}; choose one of {', '.join(PROFILES)}")
    return yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text("utf-8")).get(stem[3:], {})


def plan(stems: Iterable[str], configs: Mapping[str, type[Shared]], shared: Mapping[str, Any], profile_name: str,
         parameters: Mapping[str, Any]) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Which parameters each notebook is given: the shared ones, the profile's, then those of the command line.

    A ConfigError names a parameter that no notebook has, or a value of the wrong type or out of range.
    """
    models = {stem: configs.get(stem, Shared) for stem in stems}
    given = {stem: dict(shared) | profile(profile_name, stem) for stem in models}
    for name, value in sorted(parameters.items(), key=lambda item: "." in item[0]):  # a notebook's own go last
        number, _, field = name.rpartition(".")
        if field in shared:
            raise ConfigError(f"set {field} with --{field}, once for all notebooks")
        if not (matches := [s for s in models if field in models[s].model_fields and number in ("", s, s[:2])]):
            every = {field for model in models.values() for field in model.model_fields}
            raise ConfigError(unknown_parameter(name, every))
        for stem in matches:
            given[stem][field] = value
    return {stem: model(**given[stem]).model_dump(exclude_unset=True) | dict(shared) for stem, model in models.items()}


def from_notebook(model: type[Shared], names: dict[str, Any]) -> Shared:
    """Build a config from the notebook's globals: the parameters cell, as its author or papermill left it.

    What papermill injects by name goes before a profile's section (`-f configs/quick.yaml`), that before the cell.
    """
    known, section = model.model_fields, SECTIONS.get(model, "")
    values = {name: names[name] for name in known if name in names}
    cells = dropwhile(operator.not_, map(constants, reversed(names.get("In", [])[:-1])))  # what a kernel has run
    for cell in reversed(list(takewhile(bool, cells))):  # neighbours: parameters, then what is injected
        for name in sorted(cell.keys() - known.keys() - set(SECTIONS.values())):
            raise ConfigError(unknown_parameter(name, known))
        values |= cell.get(section, {}) | {name: names.get(name, cell[name]) for name in cell if name in known}
    return model(**values)


def constants(source: str) -> dict[str, Any]:
    """What a cell assigns that does nothing but assign constants; nothing of another."""
    try:
        body: list[Any] = ast.parse(source).body
        return {target.id: ast.literal_eval(line.value) for line in body for target in line.targets}
    except (SyntaxError, ValueError, AttributeError):  # a statement of another kind
        return {}


def unknown_parameter(name: str, known: Iterable[str]) -> str:
    """The message for a misspelt parameter, with the nearest valid name."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"unknown parameter {name!r}{hint} Valid names: {', '.join(sorted(known))}"
