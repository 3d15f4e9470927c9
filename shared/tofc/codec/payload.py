"""Symbols ⇄ the payload: residuals in coding order through one range coder.

Promises that every decoded symbol is within the range of its table. Leaves the bytes to `packet`, and to `codec` the
check that a payload is the one that an encoder writes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tofc.codec.context_model import CodingStep, ContextModel, Ints
from tofc.codec.range_coder import Interval, RangeDecoder, RangeEncoder, Table
from tofc.codec.symbols import Symbols
from tofc.codec.tables import PRECISION
from tofc.codec.weights import CodecWeights


class PayloadCoder:
    """Encodes and decodes the symbols of one codec. Safe to share between threads."""

    def __init__(self, weights: CodecWeights, context: ContextModel) -> None:
        self._context = context
        self._components, self._limit = weights.config.components, weights.config.residual_range
        self._tables: list[Table] = weights.y_tables.tolist()  # T of them
        #: an upper bound of the bits that the symbols of one feature can cost
        self.max_feature_bits = (PRECISION + 1) * self._components

    def encode(self, symbols: Symbols) -> Interval:
        """Encode the symbols of a view."""
        encoder = RangeEncoder()
        encoder.encode((symbols.residual + self._limit).tolist(), self._tables_of(symbols.table))
        return encoder.interval()

    def decode(self, data: bytes, grid: int, cells: Ints, quality: int) -> tuple[Symbols, Interval]:
        """Decode the symbols of features at `cells`, at a quality; also return the interval that they encode to.

        Raises `ValueError` for bytes that no encoder writes.
        """
        decoder = RangeDecoder(data)
        q = np.zeros((len(cells), self._components))
        done: list[tuple[CodingStep, Ints]] = []
        for step in self._context.coding_steps(grid, cells, quality, q):
            found = np.array(decoder.decode(self._tables_of(step.table.ravel())), np.int64)
            residual = found.reshape(step.mean.shape) - self._limit
            q[step.rows, step.first : step.last] = step.mean + residual
            done.append((step, residual))
        return Symbols.of(quality, q, done), decoder.interval()

    def _tables_of(self, indices: Ints) -> Iterator[Table]:
        """Look up tables by their indices."""
        return map(self._tables.__getitem__, indices.tolist())
