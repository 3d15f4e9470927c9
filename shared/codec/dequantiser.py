"""Quantised components → floats: the only linear map behind the decoder's integers, and what may be put behind it.

    q [n, M] ─ × step ─ synthesis [M, D] ─ + mean ─→ features [n, D]
    q [n, M] ─ × step ─ synthesis and a layer [D, H] in one: [M, H] ─ + mean ─→ rows [n, H]

Promises nothing about the last bit, which no packet depends on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.codec.weights import CodecWeights

Floats = NDArray[np.float32]


class Dequantiser:
    """``step`` [Q, M] of each quality, ``synthesis`` [M, X] and ``mean`` [X]. Safe to share between threads."""

    def __init__(self, step: Floats, synthesis: Floats, mean: Floats) -> None:
        self._step, self._synthesis, self._mean = step, synthesis, mean

    @classmethod
    def of(cls, weights: CodecWeights) -> Dequantiser:
        """To a codec's features."""
        return cls(weights.step, np.ascontiguousarray(weights.synthesis.T), weights.mean)

    def before(self, weight: Floats, bias: Floats | None = None) -> Dequantiser:
        """With a linear layer behind it, ``weight`` [H, X] and ``bias`` [H], as one product: M · H multiplications a
        feature instead of M · X + X · H, a hundredth at the released shapes (M = 64, X = 6144, H = 4096)."""
        mean = self._mean @ weight.T
        return Dequantiser(self._step, self._synthesis @ weight.T, mean if bias is None else mean + bias)

    def __call__(self, q: NDArray[np.integer], quality: int) -> Floats:
        """Quantised components [n, M] → [n, X]."""
        y = q.astype(np.float32) * self._step[quality]
        x: Floats = y @ self._synthesis
        x += self._mean  # in place: new memory costs more than the sums
        return x
