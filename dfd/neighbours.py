"""How far an image is from the training images, by the directions of their features. Light to import."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Training images by the direction of their features; Sun et al. 2022, arXiv:2204.06507.

    An image is strange where few training images are like it, whatever their classes.
    """

    bank: np.ndarray  # (M, D) float32, of length 1
    k: int = 10  # the neighbour that counts; the last one where there are fewer

    @classmethod
    def fit(cls, features: np.ndarray, k: int = 10) -> Neighbours:
        """Keep (M, D) features of training images.

        Raises:
            ValueError: no image, values that are not finite, or k below 1.
        """
        features = finite_features(features)
        if not len(features) or k < 1:
            raise ValueError(f"neighbours need images and k of 1 or more; got {len(features)} images and k = {k}")
        return cls(_directions(features), k)

    def distance(self, features: np.ndarray) -> np.ndarray:
        """One minus the cosine to the k-th nearest training image, (N,) in [0, 2] from (N, D).

        Raises:
            ValueError: values that are not finite, or another number of features.
        """
        features = finite_features(features)
        if features.shape[1] != self.bank.shape[1]:
            raise ValueError(f"fitted on {self.bank.shape[1]} features, got {features.shape[1]}")
        far, last = 1 - _directions(features) @ self.bank.T, min(self.k, len(self.bank)) - 1
        return np.clip(np.partition(far, last, axis=1)[:, last], 0, 2).astype(float)


def _directions(features: np.ndarray) -> np.ndarray:
    return (features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def finite_features(features: np.ndarray) -> np.ndarray:
    """(N, D) in float64.

    Raises:
        ValueError: another shape, or a value that is not finite.
    """
    features = np.asarray(features, dtype=float)
    if features.ndim != 2 or not np.isfinite(features).all():
        raise ValueError(f"features are finite and (N, D); got {features.shape} or a value that is not finite")
    return features
