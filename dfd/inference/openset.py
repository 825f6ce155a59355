"""How far an image is from the training images, by its features."""

from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch

from dfd.core.runs import bar

SPANNED = 128  # directions of a Subspace
PARTS = 64  # at most, that sources are left out in to find the limit: each by itself, unless they are more
PER_SOURCE = 64  # images of a source that a Subspace is made of


class FeatureBank(NamedTuple):
    """Training images by the direction of their features; Sun et al. 2022, arXiv:2204.06507.

    An image is out of distribution where few of them are like it. Features not finite or of another size: ValueError.
    """

    features: np.ndarray  # (M, D) float32, of any length
    k: int = 10  # the neighbour that counts; the last one where there are fewer

    def distance(self, features: np.ndarray) -> np.ndarray:
        """One minus the cosine to the k-th nearest training image, (N,) in [0, 2] from (N, D)."""
        from sklearn.neighbors import NearestNeighbors

        nearest = NearestNeighbors(n_neighbors=min(self.k, len(self.features)), metric="cosine")
        return nearest.fit(self.features).kneighbors(np.asarray(features, dtype=np.float32))[0][:, -1].astype(float)


class Subspace(NamedTuple):
    """Main directions of training images' features; what lies beyond them is new. Wang et al. 2022, arXiv:2203.10807.

    It tells pictures that are neither photos nor made by generators, such as text, drawings and noise, from both.
    """

    mean: np.ndarray  # (D,)
    basis: np.ndarray  # (K, D), orthonormal

    @classmethod
    def fit(cls, features: np.ndarray, seed: int = 0) -> Self:
        """Find the SPANNED directions, or half as many as there are rows, in which (M, D) features vary most."""
        from sklearn.decomposition import PCA

        features = np.asarray(features, dtype=np.float32)
        directions = min(SPANNED, len(features) // 2, features.shape[1] // 2)
        pca = PCA(directions, svd_solver="randomized", random_state=seed).fit(features)
        return cls(np.asarray(pca.mean_), np.asarray(pca.components_))

    def project(self, features: np.ndarray) -> np.ndarray:
        """Where (N, D) features lie within the subspace, (N, K)."""
        return (np.asarray(features, dtype=np.float32) - self.mean) @ self.basis.T

    def distance(self, features: np.ndarray) -> np.ndarray:
        """How long the part of (N, D) features is that the subspace does not hold, (N,) from 0 up."""
        whole = np.square(np.asarray(features, dtype=np.float32) - self.mean).sum(1)
        return np.sqrt(np.maximum(whole - np.square(self.project(features)).sum(1), 0)).astype(float)


def fit_subspace(features: np.ndarray, images: pd.DataFrame, accept: float = 0.98) -> dict[str, Any]:
    """What stage 1 tells images by that are unlike all that it learnt from: entries of its checkpoint.

    `features` are (N, V, D), of V views of the rows of `images`, with label, source and path. ood_threshold is the
    distance that the share `accept` of the images of a source stay within, sources alike, when the Subspace is of
    others; feature_bank, (1 + K, D), is mean and basis of all; neighbours, (N, K), is where the first views lie.
    """
    views, flat = features.shape[1], features.reshape(-1, features.shape[-1]).astype(np.float32)
    sources, distance = np.repeat(images["source"].to_numpy(), views), np.zeros(len(flat))
    parts = pd.factorize(sources)[0] % PARTS
    for part in bar(np.unique(parts), desc="unlike images", unit="part"):
        own = parts == part
        distance[own] = Subspace.fit(flat[~own]).distance(flat[own])
    weights = 1 / pd.Series(sources).map(pd.Series(sources).value_counts()).to_numpy()
    threshold, space = np.quantile(distance, accept - 1e-9, weights=weights, method="inverted_cdf"), Subspace.fit(flat)
    basis, places = np.vstack([space.mean, space.basis]), space.project(features[:, 0])
    fitted = {"ood_threshold": float(threshold), "neighbour_names": images[["label", "source", "path"]].values.tolist()}
    return fitted | {"feature_bank": torch.from_numpy(basis).half(), "neighbours": torch.from_numpy(places).half()}
