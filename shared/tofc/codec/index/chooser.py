"""The choice of indices by rate and distortion: components → indices. Only for the encoder, which may use floats.

    cost of index k = squared distance to its codeword + λ · bits of k in its context

Entropy-constrained vector quantisation (Chou, Lookabaugh and Gray 1989), with the bits of the context model. Residual
stages are searched with a beam: a codeword that is not the nearest may leave a cheaper residual. Promises the cheapest
of what the beam holds, feature by feature in coding order. Leaves λ to whoever trains the codec.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tofc.codec.index.context_model import IndexContextModel, Wave
from tofc.codec.integer_net import Floats, Ints

if TYPE_CHECKING:
    from tofc.codec.index.weights import IndexWeights

BEAM = 4  # choices of the stages before that are kept for each feature


class IndexChooser:
    """Chooses the indices of one codec. Safe to share between threads."""

    def __init__(self, weights: IndexWeights, context: IndexContextModel) -> None:
        self._context = context
        self._lambda = weights.bit_price.astype(np.float64)  # [Q]
        self._bit = 2.0**-weights.config.logit_bits
        self._codewords = weights.codewords()
        self._squares = [(table**2).sum(axis=1) for table in self._codewords]

    def choose(self, y: Floats, wave: Wave, first_logits: Floats, quality: int) -> Ints:
        """Return the indices [n', S] of a wave's components [n', M]; `first_logits` [n', K] are the first stage's."""
        n = len(y)
        owner = np.arange(n)  # [n' · beam], the feature of each choice
        chosen = np.zeros((n, 0), np.int64)
        rest, spent = y, np.zeros(n)  # what is left to code, and λ · bits so far
        for stage, (codewords, squares) in enumerate(zip(self._codewords, self._squares, strict=True)):
            logits = first_logits
            if stage:
                own = self._context.embed(chosen.T, quality)
                logits = self._context.logits(stage, wave.around[owner], own, quality)
            # Costs but for what all indices of a choice have in common, except the bits of the choice itself.
            cost = squares - 2 * rest @ codewords.T
            cost += (self._lambda[quality] * self._bit) * (_log_sum(logits, self._bit) - logits)
            cost += ((rest**2).sum(axis=1) + spent)[:, None]
            kept = 1 if stage + 1 == len(self._codewords) else BEAM
            picked, index = _cheapest(cost, owner, n, kept)
            rest = rest[picked] - codewords[index]
            spent = cost[picked, index] - (rest**2).sum(axis=1)
            owner, chosen = owner[picked], np.column_stack([chosen[picked], index])
        return chosen


def _log_sum(logits: Floats, bit: float) -> Floats:
    """Return log₂ of the sum of 2^logit [n, 1], in the logits' units."""
    most = logits.max(axis=1, keepdims=True)
    found: Floats = most + np.log2(np.exp2((logits - most) * bit).sum(axis=1, keepdims=True)) / bit
    return found


def _cheapest(cost: Floats, owner: Ints, n: int, kept: int) -> tuple[Ints, Ints]:
    """Return the `kept` cheapest entries of cost [n' · beam, K] for each owner: their rows and their columns.

    The rows of an owner follow each other, as many for each.
    """
    size = cost.shape[1]
    flat = cost.reshape(n, -1)
    kept = min(kept, flat.shape[1])
    best = np.argmin(flat, axis=1)[:, None] if kept == 1 else np.argpartition(flat, kept - 1, axis=1)[:, :kept]
    rows = np.arange(n)[:, None] * (flat.shape[1] // size) + best // size
    return rows.ravel(), (best % size).ravel()
