"""The networks: UNetRes, EncoderClassifier, RealFakeClassifier. Their builders take plain values, never a config."""

from dfd.models.classifier import EncoderClassifier, RealFakeClassifier
from dfd.models.generator import Attribution, UNetRes, normalize_residual

__all__ = ["Attribution", "EncoderClassifier", "RealFakeClassifier", "UNetRes", "normalize_residual"]
