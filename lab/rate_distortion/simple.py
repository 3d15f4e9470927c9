"""Simple codecs of features: what a learned one has to beat.

- principal components of the features, or of what the projector leaves of them (the decoder sees nothing else),
  uniform steps, and the same range coder with one table a component;
- whole features in a few bits each, compressed by Zstandard;
- the features that stand out most, in half precision.

Promises sizes that are kind to them: ideal bits instead of a coder's, two bytes of header as ours have, n and the
positions of merged features as ours cost, nothing for tables.
"""

from __future__ import annotations

from math import comb, log2

import numpy as np
import zstandard
from numpy.typing import NDArray

from lab.nano.answerer import Reduce
from shared.codec.merge import merge

HEADER = 2  # bytes
LEVEL = 19  # of Zstandard


def place_bits(n: int, total: int) -> float:
    """What n features of a grid of ``total`` cells cost beside their values."""
    return 0.0 if n == total else log2(total - 1) + log2(comb(total, n))


class Components:
    """The first ``count`` principal components of features [T, D] as ``measure`` [D, D] sees them, rounded to steps.

    One component's table is the histogram of the rounded training features, each value counted once more.
    """

    def __init__(
        self, features: NDArray[np.float32], measure: NDArray[np.float64], count: int, step: float, most: int = 64
    ) -> None:
        self.mean = features.mean(0, dtype=np.float64)
        centred = features - self.mean
        covariance = centred.T @ centred / len(features)
        power, vectors = np.linalg.eigh(measure @ covariance @ measure.T)
        power, vectors = power[::-1][:count], vectors[:, ::-1][:, :count]
        self.analysis = vectors.T @ measure  # [count, D]
        self.synthesis = covariance @ measure.T @ vectors / power  # [D, count]: least squares
        self.step = step * float(np.sqrt(power[:16].mean()))
        q = self._quantise(features)
        self.low, high = int(q.min()) - 1, int(q.max()) + 1
        counts = np.stack([np.bincount(column - self.low, minlength=high - self.low + 1) for column in q.T]) + 1.0
        self._bits = -np.log2(counts / counts.sum(1, keepdims=True))  # [count, values]

    def _quantise(self, x: NDArray[np.float32]) -> NDArray[np.int64]:
        q: NDArray[np.int64] = np.rint((x - self.mean) @ self.analysis.T / self.step).astype(np.int64)
        return q

    def reduce(self, n: int) -> Reduce:
        """Merged to at most n features."""

        def reduce(view: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64], float]:
            merged = merge(view, min(n, len(view)))
            q = np.clip(self._quantise(merged.centroids), self.low, self.low + self._bits.shape[1] - 1)
            bits = self._bits[np.arange(q.shape[1]), q - self.low].sum() + place_bits(len(q), len(view))
            x = (q * self.step) @ self.synthesis.T + self.mean
            return x.astype(np.float32), merged.centres.astype(np.int64), HEADER + bits / 8

        return reduce


def levels(features: NDArray[np.float32], bits: int, n: int) -> Reduce:
    """Every number of a feature in ``bits`` bits between its own extremes in training, then Zstandard."""
    low, high = np.quantile(features, [0.001, 0.999], axis=0)
    step = np.maximum(high - low, 1e-6) / ((1 << bits) - 1)
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=False)

    def reduce(view: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64], float]:
        merged = merge(view, min(n, len(view)))
        q = np.clip(np.rint((merged.centroids - low) / step), 0, (1 << bits) - 1).astype(np.uint8)
        data = min((compressor.compress(np.ascontiguousarray(one).tobytes()) for one in (q, q.T)), key=len)
        size = HEADER + len(data) + place_bits(len(q), len(view)) / 8
        return (q * step + low).astype(np.float32), merged.centres.astype(np.int64), size

    return reduce


def outstanding(features: NDArray[np.float32], projector: NDArray[np.float64], n: int) -> Reduce:
    """The n features whose projection is farthest from the mean feature's, in half precision; no others are sent."""
    mean = features.mean(0)

    def reduce(view: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64], float]:
        far = np.linalg.norm((view - mean) @ projector.T, axis=1)
        cells = np.sort(np.argsort(-far, kind="stable")[: min(n, len(view))]).astype(np.int64)
        kept = view[cells].astype(np.float16)
        return kept.astype(np.float32), cells, HEADER + kept.nbytes + place_bits(len(cells), len(view)) / 8

    return reduce
