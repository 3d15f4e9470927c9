"""Logits → counts out of 2²⁴, in integers: a softmax that is the same on every machine.

    logits [n, K] ─ largest − logit ─ exp2 [L] ─→ weights ─ running sums W ─→ cumulative counts k + W (2²⁴ − K) / W_K

Promises cumulative counts from 0 to 2²⁴, at least one count for every symbol, and no float in them. Leaves the logits
to `context_model`.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate

import numpy as np

from tofc.codec.index.logits import Logits
from tofc.codec.integer_net import Ints
from tofc.codec.range_coder import COUNT_BITS

WEIGHT_MAX = 1 << 20  # of a symbol: the sum of all, times 2²⁴, is then below 2⁶³
_BLOCK = 64  # symbols whose weights are added at once


def weights_of(logits: Logits, exp2: Ints) -> Ints:
    """Return the weights [n, K] of symbols with whole logits [n, K], by the table `exp2` [L]."""
    below = (np.maximum.reduce(logits, axis=1, keepdims=True) - logits).astype(np.intp)
    return exp2.take(below, mode="clip")


def spans_of(weights: Ints, symbols: Ints) -> tuple[Ints, Ints]:
    """Return the counts before the symbols [n], and their own, by the weights [n, K] of all.

    >>> first, count = spans_of(np.array([[3, 1, 0]] * 3), np.arange(3))
    >>> first.tolist(), count.tolist()
    ([0, 12582910, 16777215], [12582910, 4194305, 1])
    """
    n, size = weights.shape
    starts = np.arange(n) * size
    before, rest = np.add.reduceat(weights.ravel(), np.column_stack([starts, starts + symbols]).ravel()).reshape(n, 2).T
    before *= symbols > 0  # `reduceat` does not know empty sums
    spread, total = (1 << COUNT_BITS) - size, before + rest
    first = symbols + before * spread // total
    return first, symbols + 1 + (before + weights[np.arange(n), symbols]) * spread // total - first


class Counts:
    """The cumulative counts of K symbols by their weights [K], computed only where they are asked for.

    >>> Counts(np.array([3, 1, 0])).find(12582910)
    (1, 12582910, 4194305)
    """

    def __init__(self, weights: Ints) -> None:
        self._weights = weights
        self._spread = (1 << COUNT_BITS) - len(weights)
        blocks = np.add.reduceat(weights, _starts(len(weights)))
        self._before = list(accumulate(blocks.tolist(), initial=0))  # the sums of weights before each block, and of all

    def find(self, count: int) -> tuple[int, int, int]:
        """Return the symbol that has a count, from 0 to 2²⁴ − 1, the counts before it, and its own."""
        block = self._last(count, self._before[:-1], 0, _BLOCK)
        start = block * _BLOCK
        sums = list(accumulate(self._weights[start : start + _BLOCK].tolist(), initial=self._before[block]))
        at = self._last(count, sums[:-1], start, 1)
        first = self._upto(start + at, sums[at])
        return start + at, first, self._upto(start + at + 1, sums[at + 1]) - first

    def _last(self, count: int, sums: list[int], start: int, step: int) -> int:
        """Return the last place whose counts are at most `count`; place i has start + i · step symbols before it."""
        # Without the count that each symbol has beside its weight, it would be this place; rarely it is earlier.
        at = bisect_right(sums, ((count - start + 1) * self._before[-1] - 1) // self._spread) - 1
        if self._upto(start + at * step, sums[at]) > count:
            at = bisect_right(range(at), count, key=lambda i: self._upto(start + i * step, sums[i])) - 1
        return at

    def _upto(self, symbols: int, weight: int) -> int:
        """Return the counts of the first symbols, by the sum of their weights."""
        found: int = symbols + weight * self._spread // self._before[-1]
        return found


@lru_cache(maxsize=16)
def _starts(size: int) -> Ints:
    """Return the first symbol of each block."""
    return np.arange(0, size, _BLOCK)
