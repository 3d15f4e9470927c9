"""The context model: what the coder expects of each number, from numbers that were coded before it.

    cells of stage 0 ── slice 0, slice 1, … ──→ q of stage 0 ─ embed ─┐
    cells of stage 1 ── slice 0, slice 1, … ←── cells around it ──────┘

The cells of a view are a checkerboard: those of stage 0 first, then the others, which know their neighbours
(the two-pass context of He et al., CVPR 2021). A feature's components come in slices, each of which knows those
before it (channel-conditional coding, Minnen & Singh, ICIP 2020). What is expected of a component is a mean,
in fractions of a step, and a scale; together they name a stored table.

Promises the same integers on every machine: weights and inputs are integers, every sum is one below 2⁵³, which float64
holds exactly in whatever order it is added up, and shifts are floors of products with powers of two. Leaves to
``codec`` what is quantised, and to ``payload`` the coder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.codec.weights import ACTIVATION_BITS, ACTIVATION_MAX, STAGES, WEIGHT_BITS, CodecWeights

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def stages(grid: int, cells: Ints) -> Ints:
    """Raster indices of cells [n] → the stage of each [n]: 0 where row plus column is even."""
    found: Ints = (cells // grid + cells % grid) % STAGES
    return found


def around(grid: int, cells: Ints, reach: int) -> Ints:
    """Which of the cells [n] lie around each: [n, (2 reach + 1)² − 1] indices into them, n where there is none.

    In raster order of the offset, from (−reach, −reach) to (reach, reach), without (0, 0).

    >>> around(3, np.array([0, 4, 5]), 1).tolist()
    [[3, 3, 3, 3, 3, 3, 3, 1], [0, 3, 3, 3, 2, 3, 3, 3], [3, 3, 3, 1, 3, 3, 3, 3]]
    """
    n, wide = len(cells), grid + 2 * reach
    table = np.full(wide * wide, n, np.int64)  # of a grid with an empty border, so that no offset leaves it
    at = (cells // grid + reach) * wide + cells % grid + reach
    table[at] = np.arange(n)
    row, column = np.divmod(np.arange((2 * reach + 1) ** 2), 2 * reach + 1)
    offsets = np.delete((row - reach) * wide + column - reach, len(row) // 2)
    found: Ints = table[at[:, None] + offsets]
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """Numbers that are coded together: components ``first`` to ``last`` − 1 of the features ``rows`` [R]."""

    rows: Ints
    first: int
    last: int
    mean: Ints  # [R, last − first], whole steps, −R..R
    table: Ints  # [R, last − first], 0..T−1


class Context:
    """The context model of one codec, prepared once. Safe to share between threads."""

    def __init__(self, weights: CodecWeights) -> None:
        c = self._config = weights.config
        self._embed = _wide(weights.embed_w.T)  # [M, C]
        self._around = _wide(weights.around_w.T)  # [K (C + 1), F]
        self._mid = [_wide(w.T) for w in weights.mid_w]  # [F, F] each
        out = weights.out_w.astype(np.float64)  # [2, M, F]
        self._out = [np.concatenate([*out[:, first:last]]).T.copy() for first, last in c.spans]  # [F, 2 L] each
        # What the numbers of a slice add to the hidden units of all slices behind it: [L, (S − s − 1) F] each.
        own = weights.own_w.astype(np.float64) * 2**ACTIVATION_BITS  # [S, F, M], of whole steps
        self._own = [
            np.ascontiguousarray(own[index + 1 :, :, first:last].reshape(-1, last - first).T)
            for index, (first, last) in enumerate(c.spans)
        ]
        self._embed_b = weights.embed_b.astype(np.float64)  # [Q, C]
        self._own_b = weights.own_b.astype(np.float64)  # [Q, stages, S, F]
        self._mid_b = weights.mid_b.astype(np.float64)  # [Q, S, F]
        bias = weights.out_b.astype(np.float64)  # [Q, 2, M]
        self._out_b = [bias[:, :, first:last].reshape(len(bias), -1) for first, last in c.spans]  # [Q, 2 L] each

    def steps(self, grid: int, cells: Ints, quality: int, q: Floats) -> Iterator[Step]:
        """What is expected of each number of n features at ``cells``, in coding order.

        Whoever iterates writes the whole steps of each ``Step`` into q [n, M] before the next is asked for.
        """
        c, n = self._config, len(cells)
        stage, near = stages(grid, cells), around(grid, cells, c.reach)
        known = np.zeros((n + 1, c.channels + 1))  # embedded features; zeros for those to come, and where there is none
        for number in range(STAGES):
            rows = np.flatnonzero(stage == number)
            if not len(rows):
                continue
            hidden = np.empty((len(rows), len(c.spans), c.context_hidden))
            hidden[:] = self._own_b[quality, number]
            if number:
                hidden += (known[near[rows]].reshape(len(rows), -1) @ self._around)[:, None]
            for index, (first, last) in enumerate(c.spans):
                middle = _active(hidden[:, index]) @ self._mid[index] + self._mid_b[quality, index]
                found = _active(middle) @ self._out[index] + self._out_b[index][quality]
                yield self._step(rows, first, last, found)
                if last < c.components:
                    more = q[rows, first:last] @ self._own[index]
                    hidden[:, index + 1 :] += more.reshape(len(rows), -1, c.context_hidden)
            if number + 1 < STAGES:
                known[rows, :-1] = _active(q[rows] @ self._embed * 2**ACTIVATION_BITS + self._embed_b[quality])
                known[rows, -1] = 1 << ACTIVATION_BITS

    def _step(self, rows: Ints, first: int, last: int, found: Floats) -> Step:
        """From the last layer's sums [R, 2 L]: first where the means are, then how wide the scales."""
        c, size, unit = self._config, last - first, WEIGHT_BITS + ACTIVATION_BITS
        place = np.floor(found[:, :size] * 2.0 ** (c.fraction - unit))
        mean = np.floor(place * 2.0**-c.fraction)
        left = place - mean * 2**c.fraction
        scale = np.floor(found[:, size:] * 2.0**-unit).clip(0, (c.tables >> c.fraction) - 1)
        return Step(
            rows=rows,
            first=first,
            last=last,
            mean=mean.clip(-c.residual_range, c.residual_range).astype(np.int64),
            table=(scale * 2**c.fraction + left).astype(np.int64),
        )


def _wide(weights: NDArray[np.integer]) -> Floats:
    return np.ascontiguousarray(weights, np.float64)


def _active(sums: Floats) -> Floats:
    """Sums of weights times activations → activations."""
    return np.floor(sums * 2.0**-WEIGHT_BITS).clip(0, ACTIVATION_MAX)
