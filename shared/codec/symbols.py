"""The integers of one view: what a packet carries, and how an encoder chooses them.

Promises that quantisation weighs rate against distortion, number by number in coding order. Leaves to ``context`` what
is expected of each number, to ``payload`` the coder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.codec.context import Context, Floats, Ints, Step
from shared.codec.tables import symbol_bits
from shared.codec.weights import CodecWeights


@dataclass(frozen=True, kw_only=True, eq=False)
class Symbols:
    """The quantised components of n features, and each number as the coder takes it, in coding order."""

    quality: int  # of all of them
    q: Ints  # [n, M]
    feature: Ints  # [n · M] whose number it is
    residual: Ints  # [n · M], −R..R
    table: Ints  # [n · M], 0..T−1

    @classmethod
    def of(cls, quality: int, q: Floats, steps: Sequence[tuple[Step, Ints]]) -> Symbols:
        """From every step in order with its residuals."""
        return cls(
            quality=quality,
            q=q.astype(np.int64),
            feature=np.concatenate([np.repeat(step.rows, step.last - step.first) for step, _ in steps]),
            residual=np.concatenate([residual.ravel() for _, residual in steps]),
            table=np.concatenate([step.table.ravel() for step, _ in steps]),
        )


class Chooser:
    """Finds the symbols of components: the encoder's half, which may use floats."""

    def __init__(self, weights: CodecWeights, context: Context) -> None:
        self._context = context
        self._limit = weights.config.residual_range
        self._bit_price = weights.bit_price.astype(np.float64)
        self._bits = symbol_bits(weights.y_tables)  # [T, 2 R + 1]
        # Of each residual, what moving it one step towards 0 saves in bits; nothing for 0 itself.
        nearer = np.arange(2 * self._limit + 1) - np.sign(np.arange(-self._limit, self._limit + 1))
        self._saved = self._bits - self._bits[:, nearer]

    def choose(self, y: Floats, grid: int, cells: Ints, quality: int) -> Symbols:
        """Components in steps [n, M] of features at ``cells`` → symbols.

        A residual goes one step towards the prediction where that saves more bits than the codec's price of them in
        squared steps. One beyond ±R is clipped.
        """
        limit, price = self._limit, self._bit_price[quality]
        q = np.zeros_like(y)
        seen: list[tuple[Step, Ints]] = []
        for step in self._context.steps(grid, cells, quality, q):
            part = (step.rows, slice(step.first, step.last))
            left = y[part] - step.mean
            nearest = np.rint(left).clip(-limit, limit)
            # (|left| − |residual| + 1)² − (|left| − |residual|)² for a step towards 0
            towards = np.sign(nearest)
            more = 1 - 2 * towards * (nearest - left)
            saved = self._saved[step.table, nearest.astype(np.int64) + limit]
            residual = (nearest - towards * (more < price * saved)).astype(np.int64)
            q[part] = (step.mean + residual).astype(np.float64)
            seen.append((step, residual))
        return Symbols.of(quality, q, seen)

    def bits(self, symbols: Symbols) -> NDArray[np.float64]:
        """The ideal cost of each feature [n] in bits, by the tables."""
        each = self._bits[symbols.table, symbols.residual + self._limit]
        total: NDArray[np.float64] = np.bincount(symbols.feature, each, len(symbols.q)).astype(np.float64)
        return total
