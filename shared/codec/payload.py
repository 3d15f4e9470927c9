"""Symbols ⇄ the payload: residuals in coding order through one range coder.

Promises that whatever decodes is within the tables' ranges. Leaves to ``packet`` the bytes, and to
``codec`` the test that a payload is the one that the encoder writes.
"""

from __future__ import annotations

import numpy as np

from shared.codec.coder import Decoder, Encoder, Interval
from shared.codec.context import Context, Ints, Step
from shared.codec.symbols import Symbols
from shared.codec.tables import PRECISION, coder_weights
from shared.codec.weights import CodecWeights


class PayloadCoder:
    """The coder of one codec's symbols; its tables are prepared once."""

    def __init__(self, weights: CodecWeights, context: Context) -> None:
        self._context = context
        self._components, self._limit = weights.config.components, weights.config.residual_range
        self._tables = coder_weights(weights.y_tables)  # [T, 2 R + 1]
        #: More than the symbols of one feature can ever cost.
        self.max_feature_bits = (PRECISION + 1) * self._components

    def encode(self, symbols: Symbols) -> Interval:
        """The symbols of a view."""
        encoder = Encoder()
        encoder.encode(symbols.residual + self._limit, self._tables.take(symbols.table, axis=0))
        return encoder.interval()

    def decode(self, data: bytes, grid: int, cells: Ints, quality: int) -> Symbols:
        """The symbols of features at ``cells`` and a quality. Raises ``ValueError`` where no encoder can have been."""
        decoder = Decoder(data)
        q = np.zeros((len(cells), self._components))
        seen: list[tuple[Step, Ints]] = []
        for step in self._context.steps(grid, cells, quality, q):
            residual = decoder.decode(self._tables.take(step.table.ravel(), axis=0)).reshape(step.mean.shape)
            q[step.rows, step.first : step.last] = step.mean + residual - self._limit
            seen.append((step, residual - self._limit))
        return Symbols.of(quality, q, seen)
