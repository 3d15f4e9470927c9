"""The hyper synthesis h_s of each expert: ẑ → the distribution of every component.

    ẑ [n, Z] ─ h_s of the feature's expert: Z → F → 2 M ─ mean, in fractions of a step, and scale ─→ stored table

Promises the same integers on every machine (see `integer_net`). Leaves the choice of expert and ẑ to `hyper_analysis`,
entropy coding to `entropy_model`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tofc.codec.integer_net import ACTIVATION_BITS, WEIGHT_BITS, Floats, Ints, clipped_relu
from tofc.codec.residuals import mean_and_table

if TYPE_CHECKING:
    from tofc.codec.selective_hyperprior.weights import SelectiveHyperpriorWeights

OUT_WEIGHT_BITS = 7  # after the binary point of the last layer's weights, which are int8


class HyperSynthesis:
    """The experts of one codec. Safe to share between threads."""

    def __init__(self, weights: SelectiveHyperpriorWeights) -> None:
        self._weights, self._config = weights, weights.config

    def __call__(self, experts: Ints, z: Ints, quality: int) -> tuple[Ints, Ints]:
        """Predict the components of features from their experts [n] and ẑ [n, Z].

        Returns their means in whole steps, −R..R, and their tables, 0..T−1, both [n, M].
        """
        c = self._config
        sums = np.empty((len(z), 2, c.components))
        for expert in np.unique(experts).tolist():
            rows = np.flatnonzero(experts == expert)
            sums[rows] = self._sums(z[rows].astype(np.float64), expert, quality)
        sums[:, 0] *= 2.0**c.fraction
        whole = np.floor(sums, out=sums).astype(np.int64)
        return mean_and_table(c, whole[:, 0], whole[:, 1])

    def _sums(self, z: Floats, expert: int, quality: int) -> Floats:
        """Return means in steps and scale indices [n', 2, M], not rounded, of features with one expert."""
        w = self._weights
        # Converted here: all experts in doubles would take several times the memory of the file.
        w1, b1 = w.h_s_w1[quality, expert].astype(np.float64), w.h_s_b1[quality, expert]
        w2, b2 = w.h_s_w2[quality, expert].astype(np.float64), w.h_s_b2[quality, expert]
        hidden = clipped_relu((z * 2**ACTIVATION_BITS @ w1.T + b1) * 2.0**-WEIGHT_BITS)
        sums = hidden @ w2.reshape(-1, w2.shape[-1]).T + b2.ravel()
        found: Floats = sums.reshape(len(z), *b2.shape) * 2.0 ** -(OUT_WEIGHT_BITS + ACTIVATION_BITS)
        return found
