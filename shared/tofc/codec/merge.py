"""Merging features: density peaks on K nearest neighbours (DPC-KNN), as TOFC defines it, deterministic.

    features ── pairwise distances ── density ρ ── distance δ to the nearest denser ── ρδ ── centres
             └────────────── every other feature joins its nearest centre ────────────┘ ── plain means

Promises the same clusters for the same features every time: no random numbers, ties by index, float64.
Leaves to the caller how many features are kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tofc.errors import UsageError

#: factor in the exponent of the density; from 1 on, centres crowd into the background and small objects get none
SHARPNESS = 0.3


@dataclass(frozen=True, kw_only=True, eq=False)
class Merged:
    """The result of merging N features into n."""

    centroids: NDArray[np.floating]  # [n, D], the mean of each cluster, in the features' dtype
    centres: NDArray[np.int64]  # [n], ascending indices of the features that are cluster centres
    assignment: NDArray[np.int64]  # [N], each feature's cluster, as an index into `centres`

    def means(self, features: NDArray[Any]) -> NDArray[Any]:
        """Return the means [n, ·] of other features [N, ·] over the same clusters."""
        return _means(features, self.assignment, len(self.centres))


def merge(features: NDArray[np.floating], n: int, k: int = 5) -> Merged:
    """Merge features [N, D] into n clusters (TOFC, arXiv 2503.12926, section on feature merging).

    Squared distances are divided by their mean over all pairs, so that only their ratios count:

    - density ρᵢ = exp(−`SHARPNESS` · mean squared distance to the k nearest other features);
    - δᵢ = distance to the nearest denser feature; the densest gets the largest distance of all.
      Of equally dense features the one with the lower index counts as the denser;
    - centres are the n largest ρδ, ties to the lower index;
    - every other feature joins its nearest centre, ties to the lower index; clusters are plain means.

    n = N returns the features unchanged. Raises `UsageError` for n outside 1..N, k below 1, features
    that are not [N, D] or not finite.
    """
    if features.ndim != 2 or 0 in features.shape:
        raise UsageError(f"features must be [N, D], got shape {features.shape}")
    total = len(features)
    if not 1 <= n <= total:
        raise UsageError(f"n must be 1 to {total}, the number of features, got {n}")
    if k < 1:
        raise UsageError(f"k, the number of neighbours, must be at least 1, got {k}")
    if not np.isfinite(features).all():
        raise UsageError("features hold NaN or infinity: the tower that made them is broken")
    if n == total:
        every = np.arange(total)
        return Merged(centroids=features, centres=every, assignment=every)

    squared = _squared_distances(features)  # [N, N]
    centres = np.sort(_density_peaks(squared, n, min(k, total - 1)))
    assignment = np.argmin(squared[:, centres], axis=1)  # the first, so the lowest, of equals
    assignment[centres] = np.arange(n)  # an equal centre may have a lower index; a centre stays in its own cluster
    return Merged(centroids=_means(features, assignment, n), centres=centres, assignment=assignment)


def _means(features: NDArray[Any], assignment: NDArray[np.int64], n: int) -> NDArray[Any]:
    if n == len(features):
        return features
    means = np.stack([features[assignment == i].mean(axis=0, dtype=np.float64) for i in range(n)])
    return means.astype(features.dtype)


def _squared_distances(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return squared distances [N, N] of [N, D], up to a factor: the same bits from every library and thread count.

    |a|² + |b|² − 2ab is fast, but its rounding depends on the library, which would break ties differently on each
    machine. So the features, less their mean, are first rounded to integers small enough (about 19 bits) for every
    product and sum to stay below 2⁵³: float64 then holds them all exactly, in any order of summation.
    """
    centred = features.astype(np.float64)
    centred -= centred.mean(axis=0)
    size = features.shape[1]
    bits = (51 - size.bit_length()) // 2  # size · 2^(2 bits) ≤ 2^51, and a distance adds up four such terms
    exponent = bits - int(np.frexp(max(centred.max(), -centred.min()))[1])
    whole = np.ldexp(centred, exponent, out=centred)  # in place: allocating costs more than adding
    products = np.rint(whole, out=whole) @ whole.T
    squares = np.diag(products)
    distances: NDArray[np.float64] = squares[:, None] + squares - 2 * products
    return distances


def _density_peaks(squared: NDArray[np.float64], n: int, k: int) -> NDArray[np.int64]:
    """Find the n density peaks by squared distances [N, N]: their indices, best first."""
    total = len(squared)
    others = squared + np.diag(np.full(total, np.inf))
    mean = math.fsum(squared.ravel().tolist()) / total**2 or 1.0  # 0 if all features are equal
    sparsity = np.sort(others, axis=1)[:, :k].sum(axis=1) / (k * mean)
    order = np.argsort(sparsity, kind="stable")  # densest first
    rank = np.empty(total, np.int64)
    rank[order] = np.arange(total)
    denser = rank[None, :] < rank[:, None]
    distance = np.sqrt(squared)
    delta = np.where(denser, distance, np.inf).min(axis=1)
    delta[order[0]] = distance.max()
    with np.errstate(divide="ignore"):  # log 0, of a feature that equals a denser one: it ranks last
        log_score = np.log(delta) - SHARPNESS * sparsity  # orders as ρδ does, but never underflows
    return np.argsort(-log_score, kind="stable")[:n]
