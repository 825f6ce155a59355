"""The networks G, D, C and V, and the simulators of generators. Builders take plain values, never a config.

May import core and config; knows neither losses nor degradations, and nothing above.
"""

from dfd.models.networks import Attribution, EncoderClassifier, PatchDiscriminator, RealFakeClassifier, UNetRes
from dfd.models.networks import VGGPerceptual, normalize_residual
