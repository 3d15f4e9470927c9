"""The hyper analysis h_a and the router: components → ẑ and the expert. Only for the encoder, in floats.

    y in steps [n, M] ─ h_a ─ z, rounded ─ ẑ [n, Z]
                      └ router ─ the expert with the highest score [n]

Both results are coded, so any choice decodes. Leaves training to `tofc_lab`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tofc.codec.integer_net import Floats, Ints

if TYPE_CHECKING:
    from tofc.codec.selective_hyperprior.weights import SelectiveHyperpriorWeights


class HyperAnalysis:
    """h_a and the router of one codec. Safe to share between threads."""

    def __init__(self, weights: SelectiveHyperpriorWeights) -> None:
        self._weights, self._limit = weights, weights.config.hyper_range

    def __call__(self, y: Floats, quality: int) -> tuple[Ints, Ints]:
        """Return the expert [n] and ẑ [n, Z] of components [n, M], in steps of this quality."""
        w = self._weights
        # in float64, so that rounding errors of a library rarely change a choice
        hidden = np.maximum(y @ w.h_a_w1[quality].T.astype(np.float64) + w.h_a_b1[quality], 0)
        z = hidden @ w.h_a_w2[quality].T.astype(np.float64) + w.h_a_b2[quality]
        scores = y @ w.router_w[quality].T.astype(np.float64) + w.router_b[quality]
        return scores.argmax(axis=1), np.rint(z).clip(-self._limit, self._limit).astype(np.int64)
