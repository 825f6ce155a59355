"""Data: finding and checking the images of a folder, their groups, splits and sources, and the crops cut from them.

Imports `dfd.config`, `dfd.core`, `dfd.degrade`, and `dfd.models` for the built-in sample's simulators.
"""

import lazy_loader

_HOMES = {"layouts": ["ManifestError"], "manifest": ["load", "scan", "summary"]}
_HOMES |= {"crops": ["CarrierBuilder", "GFDTwoViewDataset", "RealFakeDataset"]}
__getattr__, _, __all__ = lazy_loader.attach(__name__, submod_attrs=_HOMES)  # a scan needs no torch, which is slow
