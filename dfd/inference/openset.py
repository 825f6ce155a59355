"""How far an image is from the training images, by its logits or its features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from scipy.special import logsumexp, softmax
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from dfd.inference.decide import logit_columns


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


def energy(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Minus the log-sum-exp of logits / temperature, (N,) from (N, K); Liu et al. 2020, arXiv:2010.03759.

    The paper multiplies by the temperature as well, which leaves the order of the images as it is.
    """
    return -logsumexp(np.asarray(logits, float) / temperature, axis=1)


def confidence(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Minus the largest probability, (N,) in [-1, 0) from (N, K); Hendrycks and Gimpel 2017, arXiv:1610.02136."""
    return -softmax(np.asarray(logits, float) / temperature, axis=1).max(1)


@dataclass(frozen=True, eq=False)
class Gaussians:
    """One Gaussian per known class, with one covariance for all; Lee et al. 2018, arXiv:1807.03888.

    Some 200 images do not say how 1280 features vary together. So the distance is taken in the first principal
    components, P of them, with a covariance that is shrunk (Ledoit and Wolf 2004). It cannot see what an unknown
    generator changes outside them; `outside` sees that alone. In one sum the noise of one may hide the other.
    """

    pca: PCA  # of the features (D)
    components: np.ndarray  # (P, D) orthonormal
    means: np.ndarray  # (K, P)
    precision: np.ndarray  # (P, P) inverse of the covariance within classes

    @classmethod
    def fit(cls, features: np.ndarray, labels: Sequence, dimensions: int = 64) -> Gaussians:
        """Fit on features (N, D) and classes (N,); no more components than N less the number of classes are kept."""
        features = _finite(features)
        names, index = np.unique(np.asarray(labels), return_inverse=True)
        free = len(features) - len(names)
        if len(index) != len(features) or free < 1 or dimensions < 1:
            raise ValueError(f"{len(features)} images, {len(index)} labels, {len(names)} classes: nothing to fit on")
        if np.abs(features - _class_means(features, index)[index]).max() <= 1e-9 * np.abs(features).max():
            raise ValueError("the images of each class have the same features, so their spread is unknown")
        pca = PCA(min(dimensions, free, features.shape[1]), svd_solver="full").fit(features)
        components = np.asarray(pca.components_)[np.asarray(pca.explained_variance_ratio_) > 1e-10]
        projected = (features - pca.mean_) @ components.T  # (N, P)
        means = _class_means(projected, index)
        spread = LedoitWolf(assume_centered=True).fit(projected - means[index])
        return cls(pca, components, means, np.asarray(spread.precision_))

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Mahalanobis distance to the nearest class mean, (N,) from (N, D)."""
        return cdist(self._centered(features) @ self.components.T, self.means, "mahalanobis", VI=self.precision).min(1)

    def outside(self, features: np.ndarray) -> np.ndarray:
        """Length of what the components do not hold, (N,) from (N, D); Wang et al. 2022, arXiv:2203.10807."""
        centered = self._centered(features)
        return np.linalg.norm(centered - centered @ self.components.T @ self.components, axis=1)

    def _centered(self, features: np.ndarray) -> np.ndarray:
        return _finite(features, len(self.pca.mean_)) - self.pca.mean_


def _class_means(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    return np.stack([values[index == k].mean(0) for k in range(index.max() + 1)])


MEASURED = ("ood_score", "distance", "outside")  # columns: `FeatureBank.distance`, and the methods of `Gaussians`
OF_LOGITS: dict[str, Callable] = {"energy": energy, "confidence": confidence}
SCORES = ("ood_score", "energy", "confidence", "distance", "outside")


def unknown_scores(scores: pd.DataFrame, temperature: float, names: Sequence[str] = SCORES) -> pd.DataFrame:
    """How unknown each row of stage 2's score table looks: one column for each of these SCORES, on its index.

    The rows need a column for each of MEASURED that is asked for.
    """
    if wrong := sorted(set(names) - set(SCORES)):
        raise ValueError(f"no such score: {', '.join(wrong)}; there are {', '.join(SCORES)}")
    if missing := [name for name in names if name in MEASURED and name not in scores]:
        raise ValueError(f"the score table has no column {missing[0]}; fill it or leave that name out")
    logits = scores[logit_columns(scores)].to_numpy(float)
    values = {
        name: OF_LOGITS[name](logits, temperature) if name in OF_LOGITS else scores[name].to_numpy(float)
        for name in names
    }
    return pd.DataFrame(values, index=scores.index)
