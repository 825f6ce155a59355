"""How far an image is from the training images, by its features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize


@dataclass(frozen=True, eq=False)
class FeatureBank:
    """Training images by the direction of their features; Sun et al. 2022, arXiv:2204.06507.

    An image is out of distribution where few training images are like it, whatever their classes.
    """

    features: np.ndarray  # (M, D) float32, of length 1
    k: int = 10  # the neighbour that counts; the last one where there are fewer

    @classmethod
    def fit(cls, features: np.ndarray, k: int = 10) -> FeatureBank:
        """Keep (M, D) features of training images."""
        features = _finite(features)
        if not len(features) or k < 1:
            raise ValueError(f"neighbours need images and k of 1 or more; got {len(features)} images and k = {k}")
        return cls(np.asarray(normalize(features), dtype=np.float32), k)

    @cached_property
    def _neighbours(self) -> NearestNeighbors:
        return NearestNeighbors(n_neighbors=min(self.k, len(self.features)), metric="cosine").fit(self.features)

    def distance(self, features: np.ndarray) -> np.ndarray:
        """One minus the cosine to the k-th nearest training image, (N,) in [0, 2] from (N, D)."""
        features = _finite(features, self.features.shape[1]).astype(np.float32)
        return self._neighbours.kneighbors(features)[0][:, -1].astype(float) if len(features) else np.zeros(0)


def _finite(features: np.ndarray, size: int | None = None) -> np.ndarray:
    """(N, D) in float64; a ValueError for another shape, or a value that is not finite."""
    features = np.asarray(features, dtype=float)
    if features.ndim != 2 or not np.isfinite(features).all():
        raise ValueError(f"features are finite and (N, D); got {features.shape} or a value that is not finite")
    if size is not None and features.shape[1] != size:
        raise ValueError(f"fitted on {size} features, got {features.shape[1]}")
    return features
