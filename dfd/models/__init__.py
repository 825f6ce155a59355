"""The networks G, D, C and V, and the simulators of generators. Builders take plain values, never a config.

May import core; knows neither losses nor degradations, and nothing above.
"""

# ruff: noqa: F401
from dfd.models.backbones import build_backbone, fold_batch_norms, high_pass
from dfd.models.networks import Attribution, PatchDiscriminator, RealFakeClassifier, UNetRes, VGGPerceptual
from dfd.models.simulators import Simulator
