"""Integers → floats: the components that they stand for, and synthesis, a linear map, alone or fused with a layer.

    q [n, ·] ─ values ─ ŷ [n, M] ─ synthesis [M, D] ─ + mean ─→ features [n, D]
    q [n, ·] ─ values ─ ŷ [n, M] ─ synthesis and the layer [D, H], fused: [M, H] ─ + mean ─→ rows [n, H]

Does not promise the same last bit on every machine: no packet depends on it. Leaves the exact integers to `codec`, and
what they stand for to the entropy model.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
#: (q [n, ·], quality) → ŷ [n, M]
Values = Callable[[NDArray[np.integer], int], Float32]


class Dequantiser:
    """A map from q [n, ·] to X numbers for each feature. Safe to share between threads.

    `synthesis` is [M, X], or None where components are the features themselves (X = M); `mean` is [X].
    """

    def __init__(self, values: Values, synthesis: Float32 | None, mean: Float32) -> None:
        self._values, self._synthesis, self._mean = values, synthesis, mean

    def fused_with(self, weight: Float32, bias: Float32 | None = None) -> Dequantiser:
        """Return this map followed by a linear layer, `weight` [H, X] and `bias` [H], as one map.

        It takes M · H multiplications for each feature instead of M · X + X · H: about a hundredth at the
        released shapes (M = 64, X = 6144, H = 4096).
        """
        mean = self._mean @ weight.T
        fused = weight.T if self._synthesis is None else self._synthesis @ weight.T
        return Dequantiser(self._values, fused, mean if bias is None else mean + bias)

    def __call__(self, q: NDArray[np.integer], quality: int) -> Float32:
        """Map integers [n, ·] to [n, X]."""
        y = self._values(q, quality)
        x: Float32 = y.copy() if self._synthesis is None else y @ self._synthesis
        x += self._mean  # in place: allocating costs more than adding
        return x
