"""The networks G, D, C and V, and the simulators of generators. Builders take plain values, never a config.

May import core; knows neither losses nor degradations, and nothing above.
"""

from dfd.models.backbones import build_backbone, fold_batch_norms, high_pass
from dfd.models.networks import (
    Attribution,
    EncoderClassifier,
    PatchDiscriminator,
    RealFakeClassifier,
    UNetRes,
    VGGPerceptual,
    normalize_residual,
)
from dfd.models.simulators import Simulator

__all__ = [
    "Attribution", "EncoderClassifier", "PatchDiscriminator", "RealFakeClassifier", "Simulator", "UNetRes",
    "VGGPerceptual", "build_backbone", "fold_batch_norms", "high_pass", "normalize_residual",
]  # fmt: skip
