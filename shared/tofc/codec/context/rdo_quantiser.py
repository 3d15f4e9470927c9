"""Rate-distortion optimised quantisation (RDOQ): components → symbols. Only for the encoder, which may use floats.

Promises that each number, in coding order, becomes the nearest integer or the one a step closer to its prediction,
whichever has the lower distortion + λ · bits. Leaves predictions to `context_model`, and λ to whoever trains the codec.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tofc.codec.context.context_model import CodingStep, ContextModel
from tofc.codec.context.symbols import ContextSymbols
from tofc.codec.integer_net import Floats, Ints
from tofc.codec.tables import symbol_bits

if TYPE_CHECKING:
    from tofc.codec.context.weights import ContextWeights


class RdoQuantiser:
    """Quantises the components of one codec. Safe to share between threads."""

    def __init__(self, weights: ContextWeights, context: ContextModel) -> None:
        self._context = context
        self._limit = weights.config.residual_range
        self._lambda = weights.bit_price.astype(np.float64)  # [Q], squared steps per bit
        self._bits = symbol_bits(weights.y_tables)  # [T, 2 R + 1]
        # For each residual: the bits saved by moving it one step towards 0; nothing for 0 itself.
        nearer = np.arange(2 * self._limit + 1) - np.sign(np.arange(-self._limit, self._limit + 1))
        self._saved = self._bits - self._bits[:, nearer]

    def quantise(self, y: Floats, grid: int, cells: Ints, quality: int) -> ContextSymbols:
        """Quantise components [n, M], in steps of this quality, of features at `cells` [n].

        A residual moves one step towards the prediction where the bits saved, times λ, exceed the squared error
        added. A residual beyond ±R is clipped.
        """
        limit, lambda_ = self._limit, self._lambda[quality]
        q = np.zeros_like(y)
        done: list[tuple[CodingStep, Ints]] = []
        for step in self._context.coding_steps(grid, cells, quality, q):
            part = (step.rows, slice(step.first, step.last))
            target = y[part] - step.mean
            nearest = np.rint(target).clip(-limit, limit)
            # The squared error that a step towards 0 adds: (|target| − |residual| + 1)² − (|target| − |residual|)².
            direction = np.sign(nearest)
            added = 1 - 2 * direction * (nearest - target)
            saved = self._saved[step.table, nearest.astype(np.int64) + limit]
            residual = (nearest - direction * (added < lambda_ * saved)).astype(np.int64)
            q[part] = (step.mean + residual).astype(np.float64)
            done.append((step, residual))
        return ContextSymbols.of(quality, q, done)

    def bits(self, symbols: ContextSymbols) -> NDArray[np.float64]:
        """Return the ideal bits of each feature [n], by the tables."""
        each = self._bits[symbols.table, symbols.residual + self._limit]
        total: NDArray[np.float64] = np.bincount(symbols.feature, each, len(symbols.q)).astype(np.float64)
        return total
