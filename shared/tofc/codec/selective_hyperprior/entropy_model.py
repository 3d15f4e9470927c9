"""The selective hyperprior as an entropy model of the codec: TOFC as published (arXiv 2503.12926).

    y [n, M] ─ ÷ step ─┬─ round ─ components ──────────────────────── residuals, coded with Laplace-like tables
                       ├─ h_a ─ ẑ, coded with tables of its own ─ h_s of the expert ─ mean, table ──┘
                       └─ router ─ expert, coded with a table of its own ─┘

Features do not depend on each other. In a payload come all experts, then all ẑ, then all components of a view, so that
a decoder computes h_s for all features at once.

Promises that every decoded symbol is within the range of its table. Leaves the bytes to `packet`, and to `codec` the
check that a payload is the one that an encoder writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tofc.codec.integer_net import Floats, Ints
from tofc.codec.range_coder import RangeDecoder, RangeEncoder, Table
from tofc.codec.selective_hyperprior.hyper_analysis import HyperAnalysis
from tofc.codec.selective_hyperprior.hyper_synthesis import HyperSynthesis
from tofc.codec.selective_hyperprior.symbols import SelectiveHyperpriorSymbols
from tofc.codec.tables import PRECISION, symbol_bits

if TYPE_CHECKING:
    from tofc.codec.selective_hyperprior.weights import SelectiveHyperpriorWeights


class SelectiveHyperpriorModel:
    """See `tofc.codec.entropy_model.EntropyModel`. Safe to share between threads."""

    def __init__(self, weights: SelectiveHyperpriorWeights) -> None:
        c = weights.config
        self._analysis, self._synthesis = HyperAnalysis(weights), HyperSynthesis(weights)
        self._step = weights.step
        self._rescale = weights.unit / weights.step  # [Q, M]: units of the components → steps of each quality
        self._hyper, self._hyper_limit = c.hyper, c.hyper_range
        self._components, self._limit = c.components, c.residual_range
        self._expert_tables: list[Table] = weights.expert_tables.tolist()  # Q of them
        self._z_tables: list[list[Table]] = weights.z_tables.tolist()  # Q times Z of them
        self._y_tables: list[Table] = weights.y_tables.tolist()  # T of them
        self._expert_bits = symbol_bits(weights.expert_tables)  # [Q, E]
        self._z_bits = symbol_bits(weights.z_tables)  # [Q, Z, 2 R_z + 1]
        self._y_bits = symbol_bits(weights.y_tables)  # [T, 2 R + 1]
        #: an upper bound of the bits that the symbols of one feature can cost
        self.max_feature_bits = (PRECISION + 1) * (1 + c.hyper + c.components)

    def quantise(self, y: Floats, grid: int, cells: Ints, quality: int) -> SelectiveHyperpriorSymbols:
        """Quantise components [n, M], in the codec's units, to the nearest steps.

        Residuals outside the tables are clipped.
        """
        y = y * self._rescale[quality]
        experts, z = self._analysis(y, quality)
        mean, table = self._synthesis(experts, z, quality)
        residual = np.rint(y - mean).clip(-self._limit, self._limit).astype(np.int64)
        return SelectiveHyperpriorSymbols(
            quality=quality, q=_join(experts, z, mean + residual), residual=residual, table=table
        )

    def bits(self, symbols: SelectiveHyperpriorSymbols) -> Floats:
        """Return the ideal bits of each feature [n], by the tables."""
        z = symbols.q[:, 1 : 1 + self._hyper] + self._hyper_limit
        bits: Floats = self._expert_bits[symbols.quality, symbols.experts]
        bits = bits + self._z_bits[symbols.quality, np.arange(self._hyper), z].sum(axis=1)
        bits += self._y_bits[symbols.table, symbols.residual + self._limit].sum(axis=1)
        return bits

    def encode(self, symbols: SelectiveHyperpriorSymbols, encoder: RangeEncoder) -> None:
        """Encode the symbols of a view."""
        n, quality, z = len(symbols.q), symbols.quality, symbols.q[:, 1 : 1 + self._hyper]
        encoder.encode(symbols.experts.tolist(), [self._expert_tables[quality]] * n)
        encoder.encode((z + self._hyper_limit).ravel().tolist(), self._z_tables[quality] * n)
        encoder.encode((symbols.residual + self._limit).ravel().tolist(), self._tables_of(symbols.table))

    def decode(self, decoder: RangeDecoder, grid: int, cells: Ints, quality: int) -> SelectiveHyperpriorSymbols:
        """Decode the symbols of n features, at a quality.

        Raises `ValueError` for bytes that no encoder writes.
        """
        n = len(cells)
        experts = np.array(decoder.decode([self._expert_tables[quality]] * n), np.int64)
        z = np.array(decoder.decode(self._z_tables[quality] * n), np.int64).reshape(n, -1) - self._hyper_limit
        mean, table = self._synthesis(experts, z, quality)
        residual = np.array(decoder.decode(self._tables_of(table)), np.int64).reshape(n, -1) - self._limit
        return SelectiveHyperpriorSymbols(
            quality=quality, q=_join(experts, z, mean + residual), residual=residual, table=table
        )

    def values(self, q: NDArray[np.integer], quality: int) -> NDArray[np.float32]:
        """Return the components [n, M] that the numbers sent [n, 1 + Z + M] stand for."""
        y: NDArray[np.float32] = q[:, 1 + self._hyper :].astype(np.float32) * self._step[quality]
        return y

    def _tables_of(self, indices: Ints) -> Iterator[Table]:
        """Look up the components' tables by their indices."""
        return map(self._y_tables.__getitem__, indices.ravel().tolist())


def _join(experts: Ints, z: Ints, steps: Ints) -> Ints:
    """Return the numbers that are sent of each feature [n, 1 + Z + M]."""
    return np.concatenate([experts[:, None], z, steps], axis=1)
