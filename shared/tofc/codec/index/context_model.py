"""The context model of indices: predicts each index from those coded before it, in integers.

    embeddings of the neighbours in earlier waves ─┐
    mean embedding of all features in earlier waves ┼─ h ─ h' ─ v [M + E] ─ · codebook row k ─ + bias k ─→ logit of k
    the cell's place, the stages before ───────────┘

The codebook serves three times: a row's first M numbers are the codeword, and the whole row, with E learned numbers, is
the input of the embedding and the output weights of its index. So an index that was rare in training is predicted
like those with similar codewords (weight tying, Press and Wolf 2017).

Promises the same integers on every machine (see `integer_net`). Leaves choosing indices to `chooser`, entropy coding to
`entropy_model`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tofc.codec.index.waves import earlier_neighbours, waves
from tofc.codec.integer_net import ACTIVATION_BITS, WEIGHT_BITS, Floats, Ints, append_bias_unit, clipped_relu

if TYPE_CHECKING:
    from tofc.codec.index.weights import IndexWeights

CODE_BITS = 6  # of the numbers in the codebook, after the binary point
QUERY_MAX = 32767  # of the numbers that are multiplied with the codebook


@dataclass(frozen=True, slots=True, eq=False)
class Wave:
    """Cells that are predicted together, and what is known of their surroundings."""

    rows: Ints  # [n'] indices of features
    around: Floats  # [n', F + 1], the part of the first sums that depends on surroundings and place


class IndexContextModel:
    """The context model of one codec, prepared once. Safe to share between threads.

    Shifts are folded into the weights: dividing a double by a power of two is exact. Hidden layers have one more unit,
    the bias unit (see `append_bias_unit`).
    """

    def __init__(self, weights: IndexWeights) -> None:
        c = self._config = weights.config
        unit = 2.0**-WEIGHT_BITS
        ends = np.cumsum(c.codewords)
        self.spans = list(zip((ends - c.codewords).tolist(), ends.tolist(), strict=True))
        rows = weights.codebook.astype(np.float64)
        code_unit = 2.0 ** (ACTIVATION_BITS - CODE_BITS)
        #: what each index of a stage adds to the sums of its feature's embedding, [K, C] for each stage
        self._embed = [
            rows[first:last] @ w.T * (unit * code_unit)
            for (first, last), w in zip(self.spans, weights.embed_w.astype(np.float64), strict=True)
        ]
        self._embed_b = weights.embed_b * unit  # [Q, C]
        self._around = append_bias_unit(weights.around_w.T * unit)  # [K_n (C + 1), F + 1]
        self._before = append_bias_unit(weights.before_w.T * unit)  # [C + 1, F + 1]
        self._own = [append_bias_unit(w.T * unit) for w in weights.own_w]  # [C, F + 1] for each later stage
        self._first_b = append_bias_unit(weights.first_b * unit, 1.0)  # [Q, S, F + 1]
        self._place = {side: append_bias_unit(table * unit) for side, table in weights.place.items()}  # [G², F + 1]
        self._mid = [  # [F + 1, F + 1] for each quality and stage
            [
                append_bias_unit(np.concatenate([w.T * unit, b[None]]), [*np.zeros(len(w)), 1.0])
                for w, b in zip(weights.mid_w, bias, strict=True)
            ]
            for bias in weights.mid_b * unit
        ]
        self._out = [  # [F + 1, M + E] for each quality and stage
            [np.concatenate([w.T * unit, b[None]]) for w, b in zip(weights.out_w, bias, strict=True)]
            for bias in weights.out_b * unit
        ]
        # A sum is a logit with CODE_BITS + ACTIVATION_BITS after the binary point.
        shift = 2.0 ** (c.logit_bits - CODE_BITS - ACTIVATION_BITS)
        self._codes = [np.ascontiguousarray(rows[first:last].T) * shift for first, last in self.spans]  # [M + E, K]
        self._code_b = weights.code_b * shift  # [Q, Σ K]

    def coding_waves(self, grid: int, cells: Ints, quality: int, q: Ints) -> Iterator[Wave]:
        """Yield the waves of features at `cells` [n] in coding order.

        The caller writes the indices of each wave into q [n, S] before it asks for the next.
        """
        c, n = self._config, len(cells)
        neighbours = earlier_neighbours(grid, cells, c.reach)
        place = self._place.get(grid)
        # Each feature's embedding, then a 1. Zeros: not coded yet; the last row stands for cells without a feature.
        known = np.zeros((n + 1, c.channels + 1))
        total, count = np.zeros(c.channels), 0
        for rows in waves(grid, cells):
            around = known[neighbours[rows]].reshape(len(rows), -1) @ self._around
            if count:
                around += np.append(np.floor(total / count), 1 << ACTIVATION_BITS) @ self._before
            if place is not None:
                around += place[cells[rows]]
            yield Wave(rows, around)
            embedded = self.embed(q[rows].T, quality)
            known[rows, :-1], known[rows, -1] = embedded, 1 << ACTIVATION_BITS
            total, count = total + embedded.sum(axis=0), count + len(rows)

    def embed(self, stages: Sequence[Ints] | Ints, quality: int) -> Floats:
        """Return the embeddings [n, C] of features whose first stages have these indices, [n] for each stage."""
        sums = self._embed_b[quality] + sum(table[index] for table, index in zip(self._embed, stages, strict=False))
        return clipped_relu(sums)

    def logits(self, stage: int, around: Floats, own: Floats | None, quality: int) -> Floats:
        """Return the logits [n', K] of a stage's indices, in whole units of 2^−`logit_bits` bits.

        `around` is `Wave.around`; `own` [n', C] are the embeddings of the stages before, None for the first.
        """
        sums = around + self._first_b[quality, stage]
        if own is not None:
            sums += own @ self._own[stage - 1]
        query = clipped_relu(clipped_relu(sums) @ self._mid[quality][stage]) @ self._out[quality][stage]
        np.floor(query, out=query)
        np.minimum(np.maximum(query, -QUERY_MAX, out=query), QUERY_MAX, out=query)
        first, last = self.spans[stage]
        sums = query @ self._codes[stage] + self._code_b[quality, first:last]
        found: Floats = np.floor(sums, out=sums)
        return found
