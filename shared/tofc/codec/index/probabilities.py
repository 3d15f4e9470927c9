"""Logits → counts out of 2²⁴, in integers: a softmax that is the same on every machine.

    logits [n, K] ─ largest − logit ─ exp2 [L] ─→ weights ─ running sums W ─→ cumulative counts k + W (2²⁴ − K) / W_K

Promises cumulative counts from 0 to 2²⁴, at least one count for every symbol, and no float. Leaves the logits to
`context_model`.
"""

from __future__ import annotations

import numpy as np

from tofc.codec.integer_net import Floats, Ints
from tofc.codec.range_coder import COUNT_BITS

WEIGHT_MAX = 1 << 20  # of a symbol: the sum of all, times 2²⁴, is then below 2⁶³


def weights_of(logits: Floats, exp2: Ints) -> Ints:
    """Return the weights [n, K] of symbols with whole logits [n, K], by the table `exp2` [L]."""
    below = (logits.max(axis=1, keepdims=True) - logits).astype(np.int64)
    found: Ints = exp2[np.minimum(below, len(exp2) - 1)]
    return found


def cumulative(weights: Ints) -> Ints:
    """Return the cumulative counts [n, K + 1] of symbols with these weights [n, K].

    >>> cumulative(np.array([[3, 1, 0]])).tolist()
    [[0, 12582910, 16777215, 16777216]]
    """
    n, size = weights.shape
    counts = np.zeros((n, size + 1), np.int64)
    sums = np.cumsum(weights, axis=1, out=counts[:, 1:])
    total = sums[:, -1:].copy()
    sums *= (1 << COUNT_BITS) - size
    sums //= total
    sums += np.arange(1, size + 1)
    return counts
