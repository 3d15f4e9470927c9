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

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from tofc.codec.index.logits import CODE_BITS, Logits, OutputWeights
from tofc.codec.index.waves import earlier_neighbours, waves
from tofc.codec.integer_net import ACTIVATION_BITS, WEIGHT_BITS, Floats, Ints, append_bias_unit, clipped_relu

if TYPE_CHECKING:
    from tofc.codec.index.weights import IndexWeights


class IndexContextModel:
    """The context model of one codec, prepared once. Safe to share between threads.

    Shifts are folded into the weights: dividing a double by a power of two is exact. Hidden layers and embeddings have
    one more unit, the bias unit (see `append_bias_unit`); an embedding's also says that there is a feature.
    """

    def __init__(self, weights: IndexWeights) -> None:
        c = self._config = weights.config
        unit, one = 2.0**-WEIGHT_BITS, 1 << ACTIVATION_BITS
        ends = np.cumsum(c.codewords).tolist()
        spans = list(zip([0, *ends], ends, strict=False))
        rows = weights.codebook.astype(np.float64)
        code_unit = 2.0 ** (ACTIVATION_BITS - CODE_BITS)
        #: what each index of a stage adds to the sums of its feature's embedding, [K, C + 1] for each stage
        self.embed_w = [
            append_bias_unit(rows[first:last] @ w.T * (unit * code_unit))
            for (first, last), w in zip(spans, weights.embed_w.astype(np.float64), strict=True)
        ]
        #: and what all of them begin with
        self.embed_b = append_bias_unit(weights.embed_b * unit, float(one))  # [Q, C + 1]
        around_w = np.concatenate([weights.around_w, weights.before_w], axis=1)
        self._around = append_bias_unit(around_w.T * unit)  # [(K_n + 1) (C + 1), F + 1]
        first_b = weights.first_b.astype(np.float64)
        self._first_b = append_bias_unit(first_b[:, 0] * unit, 1.0)  # [Q, F + 1], of the first stage
        self._place = {side: append_bias_unit(table * unit) for side, table in weights.place.items()}  # [G², F + 1]
        self._own = [  # [C + 1, F + 1] for each quality and later stage, with what its bias is above the first stage's
            [
                append_bias_unit(np.concatenate([w.T, b[None] / one]) * unit)
                for w, b in zip(weights.own_w, biases[1:] - biases[0], strict=True)
            ]
            for biases in first_b
        ]
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
        self._codes = [
            OutputWeights(rows[first:last], weights.code_b[:, first:last], c.logit_bits) for first, last in spans
        ]

    def view(self, grid: int, cells: Ints, quality: int) -> PartlyCodedView:
        """Return a view of features at `cells` [n], of which none is coded yet."""
        order, ends = waves(grid, cells)
        cells = cells[order]
        base = self._place[grid][cells] if grid in self._place else np.zeros((len(cells), 1))
        neighbours = earlier_neighbours(grid, cells, self._config.reach)
        return PartlyCodedView(order, ends, neighbours, self._around, base + self._first_b[quality])

    def logits(self, stage: int, around: Floats, own: Floats | None, quality: int) -> Logits:
        """Return the logits [n', K] of a stage's indices, in whole units of 2^−`logit_bits` bits.

        `around` is what `PartlyCodedView.around` returns; `own` [n', C + 1] are the embeddings of the stages before,
        None for the first.
        """
        sums = around if own is None else around + own @ self._own[quality][stage - 1]
        query = clipped_relu(clipped_relu(sums) @ self._mid[quality][stage]) @ self._out[quality][stage]
        return self._codes[stage].logits(query, quality)


class PartlyCodedView:
    """The features of a view in coding order, and what the next wave of them is predicted from."""

    def __init__(self, order: Ints, ends: list[int], neighbours: Ints, weights: Floats, base: Floats) -> None:
        n = len(order)
        #: rows of the view's features in coding order [n]
        self.order = order
        #: the waves, as spans of `order`
        self.waves = [slice(first, end) for first, end in pairwise([0, *ends])]
        # Embeddings in coding order, zeros for those to come; zeros for cells without a feature; the mean of all.
        self._known = np.zeros((n + 2, len(weights) // (neighbours.shape[1] + 1)))
        self._neighbours = np.column_stack([neighbours, np.full(n, n + 1)])  # [n, K_n + 1]
        self._weights, self._base = weights, base
        self._total = np.zeros(self._known.shape[1])

    def around(self, wave: slice) -> Floats:
        """Return the part of a wave's first sums [n', F + 1] that depends on surroundings and place."""
        seen = self._known[self._neighbours[wave]]  # [n', K_n + 1, C + 1]
        sums: Floats = seen.reshape(len(seen), -1) @ self._weights
        sums += self._base[wave]
        return sums

    def add(self, wave: slice, embedded: Floats) -> None:
        """Take the embeddings [n', C + 1] of a wave, all of whose indices are known."""
        self._known[wave] = embedded
        self._total += np.add.reduce(embedded)
        np.floor(self._total / wave.stop, out=self._known[-1])

    def places(self, stages: int) -> Ints:
        """Return where in the sequence of all symbols each stage of each feature is: [n, S], in coding order."""
        spans = [(wave.start, wave.stop - wave.start) for wave in self.waves]
        first, size = np.array([span for span in spans for _ in range(span[1])]).T[..., None]
        found: Ints = first * (stages - 1) + np.arange(len(self.order))[:, None] + size * np.arange(stages)
        return found
