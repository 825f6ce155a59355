"""dfd: a laboratory for GAN-image forensics; `Detector` judges images, `scan` checks a folder of them."""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"
__all__ = ["Detector", "scan"]  # imported when asked for, not before: they bring torch
_HOMES = {"Detector": "dfd.inference.detector", "scan": "dfd.data.manifest"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
