"""Symbols ⇄ the payload: residuals in coding order through one range coder.

Promises that whatever decodes is within the tables' ranges. Leaves to ``packet`` the bytes, and to
``codec`` the test that a payload is the one that the encoder writes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from shared.codec.coder import Decoder, Encoder, Interval, Table
from shared.codec.context import Context, Ints, Step
from shared.codec.symbols import Symbols
from shared.codec.tables import PRECISION
from shared.codec.weights import CodecWeights


class PayloadCoder:
    """The coder of one codec's symbols; its tables are prepared once."""

    def __init__(self, weights: CodecWeights, context: Context) -> None:
        self._context = context
        self._components, self._limit = weights.config.components, weights.config.residual_range
        self._tables: list[Table] = weights.y_tables.tolist()  # T of them
        #: More than the symbols of one feature can ever cost.
        self.max_feature_bits = (PRECISION + 1) * self._components

    def encode(self, symbols: Symbols) -> Interval:
        """The symbols of a view."""
        encoder = Encoder()
        encoder.encode((symbols.residual + self._limit).tolist(), self._of(symbols.table))
        return encoder.interval()

    def decode(self, data: bytes, grid: int, cells: Ints, quality: int) -> tuple[Symbols, Interval]:
        """The symbols of features at ``cells`` and a quality, and what they encode to.

        Raises ``ValueError`` where no encoder can have been.
        """
        decoder = Decoder(data)
        q = np.zeros((len(cells), self._components))
        seen: list[tuple[Step, Ints]] = []
        for step in self._context.steps(grid, cells, quality, q):
            found = np.array(decoder.decode(self._of(step.table.ravel())), np.int64)
            residual = found.reshape(step.mean.shape) - self._limit
            q[step.rows, step.first : step.last] = step.mean + residual
            seen.append((step, residual))
        return Symbols.of(quality, q, seen), decoder.interval()

    def _of(self, numbers: Ints) -> Iterator[Table]:
        """Tables by their numbers."""
        return map(self._tables.__getitem__, numbers.tolist())
