"""Residuals in coding order through one range coder: the context model as an entropy model of the codec.

Promises that every decoded symbol is within the range of its table. Leaves the bytes to `packet`, and to `codec` the
check that a payload is the one that an encoder writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tofc.codec.context.context_model import CodingStep, ContextModel
from tofc.codec.context.rdo_quantiser import RdoQuantiser
from tofc.codec.context.symbols import ContextSymbols
from tofc.codec.integer_net import Floats, Ints
from tofc.codec.range_coder import RangeDecoder, RangeEncoder, Table
from tofc.codec.tables import PRECISION

if TYPE_CHECKING:
    from tofc.codec.context.weights import ContextWeights


class ContextEntropyModel:
    """See `tofc.codec.entropy_model.EntropyModel`. Safe to share between threads."""

    def __init__(self, weights: ContextWeights) -> None:
        context = ContextModel(weights)
        self._context = context
        self._quantiser = RdoQuantiser(weights, context)
        self._step = weights.step
        self._rescale = weights.unit / weights.step  # [Q, M]: steps of the finest quality → steps of each
        self._components, self._limit = weights.config.components, weights.config.residual_range
        self._tables: list[Table] = weights.y_tables.tolist()  # T of them
        #: an upper bound of the bits that the symbols of one feature can cost
        self.max_feature_bits = (PRECISION + 1) * self._components

    def quantise(self, y: Floats, grid: int, cells: Ints, quality: int) -> ContextSymbols:
        """Quantise components [n, M], in steps of the finest quality. Residuals outside the tables are clipped."""
        return self._quantiser.quantise(y * self._rescale[quality], grid, cells, quality)

    def bits(self, symbols: ContextSymbols) -> Floats:
        """Return the ideal bits of each feature [n], by the tables."""
        return self._quantiser.bits(symbols)

    def encode(self, symbols: ContextSymbols, encoder: RangeEncoder) -> None:
        """Encode the symbols of a view."""
        encoder.encode((symbols.residual + self._limit).tolist(), self._tables_of(symbols.table))

    def decode(self, decoder: RangeDecoder, grid: int, cells: Ints, quality: int) -> ContextSymbols:
        """Decode the symbols of features at `cells`, at a quality.

        Raises `ValueError` for bytes that no encoder writes.
        """
        q = np.zeros((len(cells), self._components))
        done: list[tuple[CodingStep, Ints]] = []
        for step in self._context.coding_steps(grid, cells, quality, q):
            found = np.array(decoder.decode(self._tables_of(step.table.ravel())), np.int64)
            residual = found.reshape(step.mean.shape) - self._limit
            q[step.rows, step.first : step.last] = step.mean + residual
            done.append((step, residual))
        return ContextSymbols.of(quality, q, done)

    def values(self, q: NDArray[np.integer], quality: int) -> NDArray[np.float32]:
        """Return the components [n, M] that whole steps [n, M] stand for."""
        y: NDArray[np.float32] = q.astype(np.float32) * self._step[quality]
        return y

    def _tables_of(self, indices: Ints) -> Iterator[Table]:
        """Look up tables by their indices."""
        return map(self._tables.__getitem__, indices.tolist())
