"""Data: finding and checking the images of a folder, their groups, splits and sources, and the crops cut from them.

Imports `dfd.config`, `dfd.core`, `dfd.degrade`, and `dfd.models` for the built-in sample's simulators.
"""

from importlib import import_module
from typing import Any

from dfd.data.layouts import ManifestError
from dfd.data.manifest import load, scan, summary

__all__ = ["CarrierBuilder", "GFDTwoViewDataset", "ManifestError", "RealFakeDataset", "load", "scan", "summary"]


# pyright: reportUnsupportedDunderAll=false
def __getattr__(name: str) -> Any:  # torch takes seconds to import, and a scan needs none of it
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("dfd.data.crops"), name)
