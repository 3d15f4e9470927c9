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
    """The context model of one codec, prepared once. Safe to share between threads.

    Shifts are in the weights already: dividing by a power of two changes no digit of a double. And each layer has a
    unit more, which is always 1, so that the next layer's biases are weights too: at this size calls cost more than
    sums.
    """

    def __init__(self, weights: CodecWeights) -> None:
        c = self._config = weights.config
        unit = 2.0**-WEIGHT_BITS
        self._embed = weights.embed_w.T * unit * 2**ACTIVATION_BITS  # [M, C]
        self._embed_b = weights.embed_b * unit  # [Q, C]
        self._around = _with_one(weights.around_w.T * unit)  # [K (C + 1), F + 1]
        self._own = [  # [first, F + 1] each
            _with_one(w[:, :first].T * (unit * 2**ACTIVATION_BITS))
            for w, (first, _) in zip(weights.own_w, c.spans, strict=True)
        ]
        self._own_b = _with_one(weights.own_b * unit, 1.0)  # [Q, stages, S, F + 1]
        mid = weights.mid_w.transpose(0, 2, 1) * unit  # [S, F, F]
        self._mid = [  # [F + 1, F + 1] each, of a quality and a slice
            [_with_one(np.concatenate([w, b[None]]), [*np.zeros(len(w)), 1.0]) for w, b in zip(mid, bias, strict=True)]
            for bias in weights.mid_b * unit
        ]
        # Means to fractions of a step, scales to whole ones.
        shift = np.array([2.0**c.fraction, 1.0])[:, None] * 2.0 ** -(WEIGHT_BITS + ACTIVATION_BITS)
        out = weights.out_w * shift[..., None]  # [2, M, F]
        self._out = [  # [F + 1, 2 L] each, of a quality and a slice
            [
                np.concatenate([np.concatenate(out[:, first:last]).T, np.concatenate(bias[:, first:last])[None]])
                for first, last in c.spans
            ]
            for bias in weights.out_b * shift
        ]

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
            outside = self._own_b[quality, number][:, None]  # [S, 1 or R, F + 1]
            if number:
                outside = outside + known[near[rows]].reshape(len(rows), -1) @ self._around
            for index, (first, last) in enumerate(c.spans):
                hidden = _active(q[rows, :first] @ self._own[index] + outside[index])
                hidden = _active(hidden @ self._mid[quality][index])
                yield self._step(rows, first, last, hidden @ self._out[quality][index])
            if number + 1 < STAGES:
                known[rows, :-1] = _active(q[rows] @ self._embed + self._embed_b[quality])
                known[rows, -1] = 1 << ACTIVATION_BITS

    def _step(self, rows: Ints, first: int, last: int, found: Floats) -> Step:
        """From the last layer's sums [R, 2 L]: where the means are, in fractions of a step, and the scales."""
        c, size = self._config, last - first
        whole = np.floor(found).astype(np.int64)
        place, scale = whole[:, :size], whole[:, size:]
        mean, left = place >> c.fraction, place & (1 << c.fraction) - 1
        return Step(
            rows=rows,
            first=first,
            last=last,
            mean=np.minimum(np.maximum(mean, -c.residual_range), c.residual_range),
            table=np.minimum(np.maximum(scale, 0), (c.tables >> c.fraction) - 1) << c.fraction | left,
        )


def _with_one(matrix: NDArray[np.floating], last: float | list[float] = 0.0) -> Floats:
    """A column more."""
    more = np.empty((*matrix.shape[:-1], 1))
    more[..., 0] = last
    return np.concatenate([matrix, more], axis=-1)


def _active(sums: Floats) -> Floats:
    """Sums of weights times activations → activations, in place."""
    np.floor(sums, out=sums)
    return np.minimum(np.maximum(sums, 0, out=sums), ACTIVATION_MAX, out=sums)  # without the checks of clip
