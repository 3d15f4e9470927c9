"""Simple codecs of features, which a learned one must beat.

- principal components of the features, or of their projections (the decoder sees nothing else), uniform steps, and the
  same range coder with one table per component;
- whole features in a few bits per number, compressed by Zstandard;
- the most unusual features, in half precision.

Promises sizes that favour them: ideal bits instead of a coder's output, and nothing for tables. As for ours, a packet's
header of two bytes, the number n of merged features and their positions are counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, log2
from typing import Self

import numpy as np
import zstandard
from numpy.typing import NDArray

from tofc.codec.merge import merge
from tofc_lab.nano.answerer import Reduce
from tofc_lab.nano.costs import IdealCost

LEVEL = 19  # of Zstandard


def place_bits(n: int, total: int) -> float:
    """Return the bits of n and of the positions of n features on a grid of `total` cells."""
    return 0.0 if n == total else log2(total - 1) + log2(comb(total, n))


@dataclass(frozen=True, kw_only=True, eq=False)
class Components:
    """Principal components of features, rounded to steps; `fit` computes them."""

    mean: NDArray[np.float64]  # [D]
    analysis: NDArray[np.float64]  # [count, D]
    synthesis: NDArray[np.float64]  # [D, count]
    step: float
    low: int  # the value of the tables' first column
    bits: NDArray[np.float64]  # [count, values]

    @classmethod
    def fit(cls, features: NDArray[np.float32], measure: NDArray[np.float64], count: int, step: float) -> Self:
        """Compute the first `count` components of features [T, D] with errors weighed by `measure` [D, D].

        The table of a component is the histogram of its rounded training values, with 1 added to each count.
        """
        mean = features.mean(0, dtype=np.float64)
        centred = features - mean
        covariance = centred.T @ centred / len(features)
        power, vectors = np.linalg.eigh(measure @ covariance @ measure.T)
        power, vectors = power[::-1][:count], vectors[:, ::-1][:, :count]
        analysis = vectors.T @ measure
        length = step * float(np.sqrt(power[:16].mean()))
        q = _quantise(features, mean, analysis, length)
        low, high = int(q.min()) - 1, int(q.max()) + 1
        counts = np.stack([np.bincount(column - low, minlength=high - low + 1) for column in q.T]) + 1.0
        return cls(
            mean=mean,
            analysis=analysis,
            synthesis=covariance @ measure.T @ vectors / power,  # least squares
            step=length,
            low=low,
            bits=-np.log2(counts / counts.sum(1, keepdims=True)),
        )

    def reduce(self, n: int) -> Reduce:
        """Return a function that merges a view to at most n features and codes them."""

        def reduce(view: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64], IdealCost]:
            merged = merge(view, min(n, len(view)))
            q = _quantise(merged.centroids, self.mean, self.analysis, self.step)
            q = np.clip(q, self.low, self.low + self.bits.shape[1] - 1)
            bits = self.bits[np.arange(q.shape[1]), q - self.low].sum() + place_bits(len(q), len(view))
            x = (q * self.step) @ self.synthesis.T + self.mean
            return x.astype(np.float32), merged.centres.astype(np.int64), IdealCost(float(bits))

        return reduce


def _quantise(
    x: NDArray[np.float32], mean: NDArray[np.float64], analysis: NDArray[np.float64], step: float
) -> NDArray[np.int64]:
    q: NDArray[np.int64] = np.rint((x - mean) @ analysis.T / step).astype(np.int64)
    return q


def levels(features: NDArray[np.float32], bits: int, n: int) -> Reduce:
    """Return a function that stores every number in `bits` bits, between its extremes in training, with Zstandard."""
    low, high = np.quantile(features, [0.001, 0.999], axis=0)
    step = np.maximum(high - low, 1e-6) / ((1 << bits) - 1)
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=False)

    def reduce(view: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64], IdealCost]:
        merged = merge(view, min(n, len(view)))
        q = np.clip(np.rint((merged.centroids - low) / step), 0, (1 << bits) - 1).astype(np.uint8)
        data = min((compressor.compress(np.ascontiguousarray(one).tobytes()) for one in (q, q.T)), key=len)
        cost = IdealCost(8 * len(data) + place_bits(len(q), len(view)))
        return (q * step + low).astype(np.float32), merged.centres.astype(np.int64), cost

    return reduce


def outstanding(features: NDArray[np.float32], projector: NDArray[np.float64], n: int) -> Reduce:
    """Return a function that keeps the n features whose projections are farthest from the mean, in half precision."""
    mean = features.mean(0)

    def reduce(view: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64], IdealCost]:
        far = np.linalg.norm((view - mean) @ projector.T, axis=1)
        cells = np.sort(np.argsort(-far, kind="stable")[: min(n, len(view))]).astype(np.int64)
        kept = view[cells].astype(np.float16)
        return kept.astype(np.float32), cells, IdealCost(8 * kept.nbytes + place_bits(len(cells), len(view)))

    return reduce
