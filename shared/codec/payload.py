"""Symbols ⇄ the payload: experts, then hyper symbols, then residuals, through one range coder.

Promises that whatever decodes is within the tables' ranges. Leaves to ``packet`` the bytes, and to
``codec`` the test that a payload is the one that the encoder writes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.codec.coder import Decoder, Encoder, Interval
from shared.codec.hyperprior import Symbols, predict
from shared.codec.tables import PRECISION, coder_weights
from shared.codec.weights import CodecWeights


class PayloadCoder:
    """The coder of one codec's symbols; its tables are prepared once."""

    def __init__(self, weights: CodecWeights) -> None:
        c = weights.config
        self._weights = weights
        self._z = coder_weights(weights.z_tables)  # [Q, Z, 2 Rz + 1]
        self._y = coder_weights(weights.y_tables)  # [T, 2 R + 1]
        self._experts = None if weights.expert_table is None else coder_weights(weights.expert_table)  # [Q, E]
        #: More than the symbols of one feature can ever cost.
        self.max_feature_bits = (PRECISION + 1) * (c.components + c.hyper + (c.experts > 1))

    def encode(self, symbols: Symbols) -> Interval:
        """Symbols of n features, each part feature by feature."""
        c, n, quality = self._weights.config, len(symbols.z), symbols.quality
        encoder = Encoder()
        if self._experts is not None:
            encoder.encode(symbols.experts, np.tile(self._experts[quality], (n, 1)))
        encoder.encode((symbols.z + c.hyper_range).ravel(), np.tile(self._z[quality], (n, 1)))
        encoder.encode((symbols.residuals + c.residual_range).ravel(), self._rows(symbols.table))
        return encoder.interval()

    def decode(self, data: bytes, n: int, quality: int) -> Symbols:
        """The symbols of n features at a quality. Raises ``ValueError`` where no encoder can have been."""
        c = self._weights.config
        decoder = Decoder(data)
        experts = np.zeros(n, np.int64)
        if self._experts is not None:
            experts = decoder.decode(np.tile(self._experts[quality], (n, 1)))
        z = decoder.decode(np.tile(self._z[quality], (n, 1))).reshape(n, c.hyper) - c.hyper_range
        mean, table = predict(self._weights, z, experts, quality)
        residuals = decoder.decode(self._rows(table)).reshape(n, c.components) - c.residual_range
        return Symbols(quality=quality, experts=experts, z=z, residuals=residuals, mean=mean, table=table)

    def _rows(self, table: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n, M] → the coder's weights of every residual, [n · M, 2 R + 1]."""
        return self._y.take(table.ravel(), axis=0)
