"""Symbols ⇄ the interval of a range coder, over stored integer tables.

Promises that no floating-point rounding decides the coder's state (see ``tables.coder_weights``) and
that an interval is what constriction's range coder computed, exactly. Leaves to ``packet`` which bytes
stand for an interval.

    encoder.encode(symbols, weights) … interval() ── bytes ── Decoder(bytes).decode(weights) …
"""

from __future__ import annotations

from dataclasses import dataclass

import constriction  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

_WORD = 32  # bits; the coder's state has two words

#: One model for all: the weights of each symbol's table arrive with the symbols.
_TABLES = constriction.stream.model.Categorical(perfect=False)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Every binary fraction 0.b₁b₂b₃… in [low, low + width) / 2^bits decodes to the same symbols."""

    low: int
    width: int
    bits: int


class Encoder:
    """Encodes symbols in order.

    >>> weights = np.array([[255, 2**24 - 258]] * 3, np.float32)  # counts 1 and 2**16 - 1
    >>> encoder = Encoder()
    >>> encoder.encode(np.array([1, 0, 1]), weights)
    >>> interval = encoder.interval()
    >>> point = (interval.low + interval.width - 1).to_bytes(interval.bits // 8, "big")
    >>> Decoder(point).decode(weights).tolist()
    [1, 0, 1]
    """

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def encode(self, symbols: NDArray[np.integer], weights: NDArray[np.float32]) -> None:
        """Appends symbols [K], each in 0..S−1, under ``weights`` [K, S]."""
        if len(symbols):
            self._coder.encode(symbols.astype(np.int32), _TABLES, weights)

    def interval(self) -> Interval:
        """The interval of everything encoded so far."""
        words, (low, width) = self._coder.pos()
        bits = _WORD * (words + 2)
        # `low` lacks the words already written; the sealed bytes name a point at most 2^32 above the
        # true lower end, so that end is the nearest number below the point that ends in `low`.
        sealed = np.asarray(self._coder.get_compressed(), ">u4").tobytes()
        point = int.from_bytes(sealed, "big") << (bits - 8 * len(sealed))
        return Interval(low=point - (point - low) % (1 << 2 * _WORD), width=width, bits=bits)


class Decoder:
    """Decodes symbols in order. The bytes are a binary fraction: zeros follow for ever."""

    def __init__(self, data: bytes) -> None:
        padded = data + bytes(-len(data) % 4)
        self._coder = constriction.stream.queue.RangeDecoder(np.frombuffer(padded, ">u4").astype(np.uint32))

    def decode(self, weights: NDArray[np.float32]) -> NDArray[np.int64]:
        """The next symbols [K] under ``weights`` [K, S]. Raises ``ValueError`` for bytes no encoder writes."""
        if not len(weights):
            return np.zeros(0, np.int64)
        try:
            return np.asarray(self._coder.decode(_TABLES, weights), np.int64)
        except AssertionError as error:  # how constriction reports a point outside of every symbol
            raise ValueError("the payload lies outside of every symbol's interval") from error
