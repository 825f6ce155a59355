"""dfd: a laboratory for GAN-image forensics; `Detector` judges images, `scan` checks a folder of them."""

import lazy_loader

__version__ = "0.2.0"
_HOMES = {"inference.detector": ["Detector"], "data.manifest": ["scan"]}
__getattr__, _, __all__ = lazy_loader.attach(__name__, submod_attrs=_HOMES)  # when asked for, not before: torch is slow
