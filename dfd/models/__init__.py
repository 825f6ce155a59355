"""The networks G, D, C and V, and the simulators of generators. Builders take plain values, never a config.

May import core; knows neither losses nor degradations, and nothing above.
"""

# ruff: noqa: F401
from dfd.models.networks import Attribution, PatchDiscriminator, RealFakeClassifier, UNetRes, VGGPerceptual
