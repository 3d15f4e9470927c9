"""Probabilities of residuals under a distribution: what the tables of components start from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

FRACTION = 3  # bits: a predicted mean is a multiple of an eighth of a step
SMOOTHING = 200.0  # weight of the trained distribution against counted symbols, in counts

Floats = NDArray[np.float64]


def residual_probabilities(cdf: Callable[[Floats], Floats], scales: Floats, limit: int) -> Floats:
    """Return P [scales · 2^FRACTION, 2 R + 1] of whole residuals −R..R, R = `limit`, by scale and fraction of the mean.

    `cdf` is the cumulative distribution at scale 1; `scales` [·] are in steps.
    """
    fraction = np.arange(1 << FRACTION)[:, None] / (1 << FRACTION) - 0.5  # of a step, which rounding the mean leaves
    edges = np.arange(-limit, limit + 2) - 0.5
    below = cdf((edges - fraction) / scales[:, None, None])
    below[..., 0], below[..., -1] = 0.0, 1.0
    tables: Floats = np.diff(below, axis=-1).reshape(len(scales) << FRACTION, -1)
    return tables
