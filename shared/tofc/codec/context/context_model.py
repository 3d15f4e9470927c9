"""The context model: predicts each number's distribution from the numbers coded before it.

    cells of stage 0 ── slice 0, slice 1, … ──→ q of stage 0 ─ embed ─┐
    cells of stage 1 ── slice 0, slice 1, … ←── neighbouring cells ───┘

The cells of a view are coded as a checkerboard, in two passes (He et al., CVPR 2021): first the anchors, stage 0, then
the other cells, stage 1, whose prediction also depends on the anchors around them. A feature's components are coded in
slices, and each slice depends on those before it (channel-conditional coding, Minnen & Singh, ICIP 2020). The
prediction for a component is a mean, in fractions of a step, and a scale; together they select a stored table.

Promises the same integers on every machine (see `integer_net`). Leaves quantisation to `rdo_quantiser`, entropy coding
to `entropy_model`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tofc.codec.integer_net import ACTIVATION_BITS, WEIGHT_BITS, Floats, Ints, append_bias_unit, clipped_relu
from tofc.codec.neighbourhood import neighbour_indices
from tofc.codec.residuals import mean_and_table

if TYPE_CHECKING:
    from tofc.codec.context.weights import ContextWeights

STAGES = 2  # passes in which a view is coded: the two colours of a checkerboard


def stages(grid: int, cells: Ints) -> Ints:
    """Return the stage [n] of cells [n] given as raster indices: 0 where row plus column is even."""
    found: Ints = (cells // grid + cells % grid) % STAGES
    return found


@dataclass(frozen=True, slots=True, eq=False)
class CodingStep:
    """The numbers that are predicted together: components `first` to `last` − 1 of the features `rows` [n']."""

    rows: Ints
    first: int
    last: int
    mean: Ints  # [n', last − first], whole steps, −R..R
    table: Ints  # [n', last − first], 0..T−1


class ContextModel:
    """The context model of one codec, prepared once. Safe to share between threads.

    Shifts are folded into the weights: dividing a double by a power of two is exact. Each layer has one more unit, the
    bias unit (see `append_bias_unit`).
    """

    def __init__(self, weights: ContextWeights) -> None:
        c = self._config = weights.config
        unit = 2.0**-WEIGHT_BITS
        self._embed = weights.embed_w.T * unit * 2**ACTIVATION_BITS  # [M, C]
        self._embed_b = weights.embed_b * unit  # [Q, C]
        self._around = append_bias_unit(weights.around_w.T * unit)  # [K (C + 1), F + 1]
        self._own = [  # [first, F + 1] for each slice
            append_bias_unit(w[:, :first].T * (unit * 2**ACTIVATION_BITS))
            for w, (first, _) in zip(weights.own_w, c.spans, strict=True)
        ]
        self._own_b = append_bias_unit(weights.own_b * unit, 1.0)  # [Q, stages, S, F + 1]
        mid = weights.mid_w.transpose(0, 2, 1) * unit  # [S, F, F]
        self._mid = [  # [F + 1, F + 1] for each quality and slice
            [
                append_bias_unit(np.concatenate([w, b[None]]), [*np.zeros(len(w)), 1.0])
                for w, b in zip(mid, bias, strict=True)
            ]
            for bias in weights.mid_b * unit
        ]
        # The sums are means in 2^−fraction of a step, and scales as indices.
        shift = np.array([2.0**c.fraction, 1.0])[:, None] * 2.0 ** -(WEIGHT_BITS + ACTIVATION_BITS)
        out = weights.out_w * shift[..., None]  # [2, M, F]
        self._out = [  # [F + 1, 2 L] for each quality and slice of L components
            [
                np.concatenate([np.concatenate(out[:, first:last]).T, np.concatenate(bias[:, first:last])[None]])
                for first, last in c.spans
            ]
            for bias in weights.out_b * shift
        ]

    def coding_steps(self, grid: int, cells: Ints, quality: int, q: Floats) -> Iterator[CodingStep]:
        """Predict the numbers of n features at `cells`, in coding order.

        The caller writes the quantised values of each `CodingStep` into q [n, M] before it asks for the next.
        """
        c, n = self._config, len(cells)
        stage_of, neighbours = stages(grid, cells), neighbour_indices(grid, cells, c.reach)
        # Each feature's embedding, then a 1. Zeros: not coded yet; the last row stands for cells without a feature.
        embedded = np.zeros((n + 1, c.channels + 1))
        for stage in range(STAGES):
            rows = np.flatnonzero(stage_of == stage)
            if not len(rows):
                continue
            bias = self._own_b[quality, stage][:, None]  # [S, 1, F + 1]
            if stage:
                bias = bias + embedded[neighbours[rows]].reshape(len(rows), -1) @ self._around  # [S, n', F + 1]
            for index, (first, last) in enumerate(c.spans):
                hidden = clipped_relu(q[rows, :first] @ self._own[index] + bias[index])
                hidden = clipped_relu(hidden @ self._mid[quality][index])
                yield self._step(rows, first, last, hidden @ self._out[quality][index])
            if stage + 1 < STAGES:
                embedded[rows, :-1] = clipped_relu(q[rows] @ self._embed + self._embed_b[quality])
                embedded[rows, -1] = 1 << ACTIVATION_BITS

    def _step(self, rows: Ints, first: int, last: int, sums: Floats) -> CodingStep:
        """Turn the last layer's sums [n', 2 L], means in fractions of a step and scales, into means and tables."""
        c, size = self._config, last - first
        whole = np.floor(sums).astype(np.int64)
        mean, table = mean_and_table(c, whole[:, :size], whole[:, size:])
        return CodingStep(rows=rows, first=first, last=last, mean=mean, table=table)
