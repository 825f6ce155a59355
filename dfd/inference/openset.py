"""How far an image is from the training images, by the directions of their features. Light to import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from scipy.special import logsumexp, softmax
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

from dfd.inference.decide import logit_columns


@dataclass(frozen=True, eq=False)
class FeatureBank:
    """Training images by the direction of their features; Sun et al. 2022, arXiv:2204.06507.

    An image is strange where few training images are like it, whatever their classes.
    """

    bank: np.ndarray  # (M, D) float32, of length 1
    k: int = 10  # the neighbour that counts; the last one where there are fewer

    @classmethod
    def fit(cls, features: np.ndarray, k: int = 10) -> FeatureBank:
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


DIMENSIONS = 64  # principal components of the features that the distance is taken in, at most


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

    center: np.ndarray  # (D,) mean feature
    components: np.ndarray  # (P, D) orthonormal
    means: np.ndarray  # (K, P)
    precision: np.ndarray  # (P, P) inverse of the covariance within classes

    @classmethod
    def fit(cls, features: np.ndarray, labels: Sequence, dimensions: int = DIMENSIONS) -> Gaussians:
        """Fit on training images.

        Args:
            features: (N, D), of known generators.
            labels: (N,) their classes, names or numbers.
            dimensions: principal components at most; no more than N less the number of classes are kept.

        Raises:
            ValueError: values that are not finite, no more images than classes, or classes whose images are all alike.
        """
        features = finite_features(features)
        names, index = np.unique(np.asarray(labels), return_inverse=True)
        free = len(features) - len(names)
        if len(index) != len(features) or free < 1 or dimensions < 1:
            raise ValueError(f"{len(features)} images, {len(index)} labels, {len(names)} classes: nothing to fit on")
        if np.abs(features - _class_means(features, index)[index]).max() <= 1e-9 * np.abs(features).max():
            raise ValueError("the images of each class have the same features, so their spread is unknown")
        pca = PCA(min(dimensions, free, features.shape[1]), svd_solver="full").fit(features)
        components = pca.components_[pca.explained_variance_ratio_ > 1e-10]
        projected = (features - pca.mean_) @ components.T  # (N, P)
        means = _class_means(projected, index)
        precision = LedoitWolf(assume_centered=True).fit(projected - means[index]).precision_
        return cls(pca.mean_, components, means, precision)

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Mahalanobis distance to the nearest class mean, (N,) from (N, D).

        Raises:
            ValueError: values that are not finite, or another number of features.
        """
        return cdist(self._centered(features) @ self.components.T, self.means, "mahalanobis", VI=self.precision).min(1)

    def outside(self, features: np.ndarray) -> np.ndarray:
        """Length of what the components do not hold, (N,) from (N, D); Wang et al. 2022, arXiv:2203.10807.

        Raises:
            ValueError: as in `distance`.
        """
        centered = self._centered(features)
        return np.linalg.norm(centered - centered @ self.components.T @ self.components, axis=1)

    def _centered(self, features: np.ndarray) -> np.ndarray:
        features = finite_features(features)
        if features.shape[1] != len(self.center):
            raise ValueError(f"fitted on {len(self.center)} features, got {features.shape[1]}")
        return features - self.center


def _class_means(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    return np.stack([values[index == k].mean(0) for k in range(index.max() + 1)])


# name -> (N,) from stage 2's rows and the temperature; three have a column, from `FeatureBank` and `Gaussians`
SCORES: dict[str, Callable[[pd.DataFrame, float], np.ndarray]] = {
    "ood_score": lambda rows, temperature: rows["ood_score"].to_numpy(float),
    "energy": lambda rows, temperature: energy(rows[logit_columns(rows)].to_numpy(float), temperature),
    "confidence": lambda rows, temperature: confidence(rows[logit_columns(rows)].to_numpy(float), temperature),
    "distance": lambda rows, temperature: rows["distance"].to_numpy(float),
    "outside": lambda rows, temperature: rows["outside"].to_numpy(float),
}
MEASURED = ("ood_score", "distance", "outside")  # those that need a column of their own


def unknown_scores(scores: pd.DataFrame, temperature: float, names: Sequence[str] = tuple(SCORES)) -> pd.DataFrame:
    """How unknown each row of stage 2's score table looks: one column per name, on the table's index.

    Args:
        scores: stage 2's rows, with a column for each of MEASURED that is asked for: what `FeatureBank.distance`, and
            the methods of `Gaussians` of the same name, gave.
        temperature: divides the logits.
        names: of SCORES.

    Raises:
        ValueError: an unknown name, or no such column.
    """
    if wrong := sorted(set(names) - set(SCORES)):
        raise ValueError(f"no such score: {', '.join(wrong)}; there are {', '.join(SCORES)}")
    if missing := [name for name in MEASURED if name in names and name not in scores]:
        raise ValueError(f"the score table has no column {missing[0]}; fill it or leave that name out")
    return pd.DataFrame({name: SCORES[name](scores, temperature) for name in names}, index=scores.index)


def fit_threshold(known_scores: np.ndarray, accept: float = 0.95) -> float:
    """The lowest threshold that at least the share `accept` of these images do not exceed.

    Args:
        known_scores: (N,) of validation images of known generators; an image is unknown where its score is above.
        accept: share in (0, 1]; 1 gives the highest score.

    Raises:
        ValueError: no score, one that is not finite, or accept outside (0, 1].
    """
    known_scores = _finite(known_scores)
    if not len(known_scores) or not 0 < accept <= 1:
        raise ValueError(f"a threshold needs scores and a share in (0, 1]; got {len(known_scores)} scores and {accept}")
    needed = int(np.ceil(accept * len(known_scores) - 1e-9))  # 0.07 * 100 is a little more than 7
    return float(np.sort(known_scores)[needed - 1])


def _finite(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=float)
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} of {scores.size} scores are not finite")
    return scores
