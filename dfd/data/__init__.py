"""Data: finding and checking the images of a folder, their groups, splits and sources, and the crops cut from them.

Imports `dfd.config`, `dfd.core`, `dfd.degrade`, and `dfd.models` for the built-in sample's simulators.
"""

from dfd.data.crops import CarrierBuilder, EpochSampler, GFDTwoViewDataset, RealFakeDataset
from dfd.data.layouts import ManifestError
from dfd.data.manifest import load, scan, summary

__all__ = [
    "CarrierBuilder", "EpochSampler", "GFDTwoViewDataset", "ManifestError", "RealFakeDataset", "load", "scan",
    "summary",
]  # fmt: skip
