"""The networks G, D, C and V. Their builders take plain values, never a config."""

from dfd.models.classifier import EncoderClassifier, RealFakeClassifier
from dfd.models.discriminator import PatchDiscriminator
from dfd.models.folding import folded
from dfd.models.generator import Attribution, UNetRes, normalize_residual
from dfd.models.perceptual import VGGPerceptual

__all__ = [
    "Attribution",
    "EncoderClassifier",
    "PatchDiscriminator",
    "RealFakeClassifier",
    "UNetRes",
    "VGGPerceptual",
    "folded",
    "normalize_residual",
]
