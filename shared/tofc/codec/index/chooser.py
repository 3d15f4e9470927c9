"""The choice of indices by rate and distortion: components → indices. Only for the encoder, which may use floats.

    cost of index k = squared distance to its codeword + λ · bits of k in its context

Entropy-constrained vector quantisation (Chou, Lookabaugh and Gray 1989), with the bits of the context model. Residual
stages are searched with a beam: a codeword that is not the nearest may leave a cheaper residual. Promises the cheapest
of what the beam holds, feature by feature in coding order. Leaves λ to whoever trains the codec.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tofc.codec.index.context_model import IndexContextModel
from tofc.codec.index.logits import Logits
from tofc.codec.integer_net import Floats, Ints, clipped_relu

if TYPE_CHECKING:
    from tofc.codec.index.weights import IndexWeights

BEAM = 4  # choices of the stages before that are kept for each feature


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What is chosen for the features of a wave."""

    indices: list[Ints]  # [n'] of each stage
    logits: list[Logits]  # [n', K] of each stage, by which they are coded
    embedded: Floats  # [n', C + 1]


class IndexChooser:
    """Chooses the indices of one codec. Safe to share between threads.

    A choice in the beam has a row of numbers: the components that are left to code, a 1, and the sums of its embedding.
    """

    def __init__(self, weights: IndexWeights, context: IndexContextModel) -> None:
        self._context = context
        self._price = weights.bit_price.astype(np.float64)  # [Q], λ
        self._bit = 2.0**-weights.config.logit_bits
        words = weights.codewords()
        #: what each index adds to the row of a choice, [K, M + 1 + C + 1] for each stage
        self._steps = [
            np.hstack([-one, np.zeros((len(one), 1)), embed]) for one, embed in zip(words, context.embed_w, strict=True)
        ]
        #: [M + 1, K] for each stage: a row's first numbers times this are squared distances, but for a part that all
        #: indices of a choice have in common
        self._distances = [np.vstack([-2 * one.T, (one**2).sum(axis=1)]) for one in words]

    def start(self, y: Floats, quality: int) -> tuple[Floats, Floats]:
        """Return the rows [n, M + 1 + C + 1] for components [n, M], and their distances [n, K] in the first stage."""
        n = len(y)
        rows = np.hstack([y, np.ones((n, 1)), self._context.embed_b[quality][None].repeat(n, axis=0)])
        return rows, self._distance(rows, 0)

    def choose(self, rows: Floats, distance: Floats, around: Floats, quality: int) -> Choice:
        """Return the choice for a wave; `rows` and `distance` are its part of what `start` returns.

        `around` [n', F + 1] is what `PartlyCodedView.around` returns.
        """
        n, last, price = len(rows), len(self._steps) - 1, self._price[quality]
        logits = self._context.logits(0, around, None, quality)
        cost = np.multiply(logits, -self._bit * price, dtype=np.float64)
        cost += distance
        owner, index, spent = _cheapest(cost, n, BEAM if last else 1)
        steps = [(owner, index, logits)]
        for stage in range(1, last + 1):
            rows = rows[owner] + self._steps[stage - 1][index]
            logits = self._context.logits(stage, around.repeat(len(rows) // n, axis=0), self._embedded(rows), quality)
            likely = np.multiply(logits - np.maximum.reduce(logits, axis=1, keepdims=True), self._bit, dtype=np.float64)
            spent += price * np.log2(np.add.reduce(np.exp2(likely), axis=1))
            cost = self._distance(rows, stage)
            likely *= price
            cost -= likely
            cost += spent[:, None]
            owner, index, spent = _cheapest(cost, n, BEAM if stage < last else 1)
            steps.append((owner, index, logits))
        rows = rows[owner] + self._steps[last][index]
        kept, found = np.arange(n), []
        for owner, index, logits in reversed(steps):
            chosen, kept = index[kept], owner[kept]
            found.append((chosen, logits[kept]))
        indices, every = zip(*reversed(found), strict=True)
        return Choice(list(indices), list(every), self._embedded(rows))

    def _distance(self, rows: Floats, stage: int) -> Floats:
        distances = self._distances[stage]
        found: Floats = rows[:, : len(distances)] @ distances
        return found

    def _embedded(self, rows: Floats) -> Floats:
        return clipped_relu(rows[:, len(self._distances[0]) :])


def _cheapest(cost: Floats, n: int, kept: int) -> tuple[Ints, Ints, Floats]:
    """Return the `kept` cheapest entries of cost [n · beam, K] for each of n features: rows, columns and costs.

    The rows of a feature follow each other, as many for each; so do its entries, [n · kept].
    """
    each = cost.size // n
    kept = min(kept, each)
    flat = cost.reshape(n, each)
    best = flat.argmin(axis=1)[:, None] if kept == 1 else flat.argpartition(kept - 1, axis=1)[:, :kept]
    best = (best + np.arange(0, cost.size, each)[:, None]).ravel()
    row, column = np.divmod(best, cost.shape[1])
    return row, column, cost.ravel()[best]
