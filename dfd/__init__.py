"""dfd: a laboratory for GAN-image forensics; `Detector` judges images, `scan` checks a folder of them."""

import atexit
import gc
import sys

if sys.argv[0] == "-m" and not sys.flags.safe_path:  # `python -m dfd`: else a click.py beside the images would run
    del sys.path[0]
import lazy_loader

gc.set_threshold(50_000)  # what torch imports stays: a fifth of a start went into looking for garbage in it,
atexit.register(gc.freeze)  # and a fifth into looking once more at the end
__version__ = "0.2.0"
_HOMES = {"inference.detector": ["Detector"], "data.manifest": ["scan"]}  # when asked for: torch is slow
__getattr__, _, __all__ = lazy_loader.attach(__name__, submod_attrs=_HOMES)
