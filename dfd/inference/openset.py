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

    An image is out of distribution where few training images are like it, whatever their classes. Features that are not
    finite, or of another size, are a ValueError.
    """

    features: np.ndarray  # (M, D) float32, of length 1
    k: int = 10  # the neighbour that counts; the last one where there are fewer

    @classmethod
    def fit(cls, features: np.ndarray, k: int = 10) -> FeatureBank:
        """Keep (M, D) features of training images."""
        return cls(np.asarray(normalize(np.asarray(features, dtype=float)), dtype=np.float32), k)

    @cached_property
    def _neighbours(self) -> NearestNeighbors:
        return NearestNeighbors(n_neighbors=min(self.k, len(self.features)), metric="cosine").fit(self.features)

    def distance(self, features: np.ndarray) -> np.ndarray:
        """One minus the cosine to the k-th nearest training image, (N,) in [0, 2] from (N, D)."""
        return self._neighbours.kneighbors(np.asarray(features, dtype=np.float32))[0][:, -1].astype(float)
