"""The last layer of the context model: codebook rows as output weights, in float32 wherever that is exact.

    v [n', M + E] ─ · codebook rows [K, M + E] ─ + bias ─ >> ─→ logits [n', K]

It has most of the context model's weights, so that reading them takes most of the time: half of it if they are float32.

Promises the same integers on every machine, whichever type is used. Leaves v to `context_model`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tofc.codec.integer_net import ACTIVATION_BITS, Floats

CODE_BITS = 6  # of the numbers in the codebook, after the binary point
QUERY_MAX = 32767  # of the numbers that are multiplied with the codebook
FLOAT32_EXACT = 1 << 24  # whole numbers up to this are exact in float32
UNPACKED = 1_000_000  # multiplications; for larger products BLAS copies the matrix first, which takes longer than them

#: whole numbers
Logits = NDArray[np.float32] | NDArray[np.float64]


class OutputWeights:
    """The output weights of one stage. A sum is a logit with CODE_BITS + ACTIVATION_BITS after the binary point."""

    def __init__(self, rows: Floats, bias: NDArray[np.int32], logit_bits: int) -> None:
        """Prepare codebook rows [K, M + E] and biases [Q, K]."""
        shift = 2.0 ** (logit_bits - CODE_BITS - ACTIVATION_BITS)
        self._weights = np.ascontiguousarray(rows.T * shift, np.float32)  # [M + E, K]
        self._bias = bias * shift
        self._bias32 = self._bias.astype(np.float32)
        # By Cauchy and Schwarz no sum of products, of whichever of them, exceeds |v| · |row|.
        room = FLOAT32_EXACT - float(np.abs(bias.astype(np.float64)).max())
        longest = max(1.0, float((rows**2).sum(axis=1).max()) ** 0.5)
        # Rounding down adds at most 1 to each number, and the sum of squares is rounded too.
        most = min(QUERY_MAX, room / longest) - rows.shape[1] ** 0.5 - 1
        self._most = most**2 if most > 0 else -1.0  # of |v|², for float32

    def logits(self, query: Floats, quality: int) -> Logits:
        """Return the logits [n', K] of `query` [n', M + E], which is rounded down."""
        sums: Logits
        if np.vdot(query, query) <= self._most:
            sums = _product(np.floor(query).astype(np.float32), self._weights)
            sums += self._bias32[quality]
        else:
            sums = np.floor(query).clip(-QUERY_MAX, QUERY_MAX) @ self._weights.astype(np.float64)
            sums += self._bias[quality]
        np.floor(sums, out=sums)
        return sums


def _product(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return left @ right, a few rows of `left` at a time if `right` is large."""
    rows = max(1, UNPACKED // right.size)
    if len(left) <= rows:
        return left @ right
    return np.concatenate([left[at : at + rows] @ right for at in range(0, len(left), rows)])
