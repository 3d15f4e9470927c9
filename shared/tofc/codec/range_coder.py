"""A range coder in plain integers: symbols ⇄ an interval, by stored tables or by counts that a model computes.

Promises the arithmetic of docs/bitstream.md to the last bit, without floats and without overflow. State and work for a
symbol do not grow with the number of symbols before it. Leaves to `packet` which bytes stand for an interval.

    encoder.encode(symbols, tables) … interval() ── bytes ── RangeDecoder(bytes).decode(tables) … interval()
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tofc.codec.tables import PRECISION

_WORD_BITS = 32  # the coder's state has two words
_FULL_WIDTH = (1 << 2 * _WORD_BITS) - 1  # of the initial interval
_MIN_WIDTH = 1 << _WORD_BITS  # a narrower interval is shifted by a word, which makes it wide enough for any symbol
COUNT_BITS = 24  # a symbol's share of the interval is a number of counts out of 2²⁴; of a stored table 2⁸ times less
_TABLE_SHIFT = COUNT_BITS - PRECISION
_OUTSIDE = "the payload is outside every symbol's interval"

#: cumulative counts from 0 to 2^`PRECISION`; symbol x has table[x + 1] − table[x] of them
Table = list[int]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Every binary fraction 0.b₁b₂b₃… in [low, low + width) / 2^bits decodes to the same symbols."""

    low: int
    width: int
    bits: int


class RangeEncoder:
    """Encodes symbols in order.

    >>> table = [0, 1, 65536]
    >>> encoder = RangeEncoder()
    >>> encoder.encode([1, 0, 1], [table] * 3)
    >>> interval = encoder.interval()
    >>> point = (interval.low + interval.width - 1).to_bytes(interval.bits // 8, "big")
    >>> decoder = RangeDecoder(point)
    >>> decoder.decode([table] * 3), decoder.interval() == interval
    ([1, 0, 1], True)
    """

    def __init__(self) -> None:
        self._low, self._width = 0, _FULL_WIDTH
        # The words of the lower end above `_low`. Bit 32 of a word is a carry into the word before it.
        self._words: list[int] = []

    def encode(self, symbols: Iterable[int], tables: Iterable[Table]) -> None:
        """Append symbols, each with its own table."""
        pairs = [(table[symbol], table[symbol + 1]) for symbol, table in zip(symbols, tables, strict=True)]
        self.encode_counts(
            (first << _TABLE_SHIFT for first, _ in pairs), (end - first << _TABLE_SHIFT for first, end in pairs)
        )

    def encode_counts(self, firsts: Iterable[int], counts: Iterable[int]) -> None:
        """Append symbols, each by the counts before it and its own, out of 2²⁴."""
        low, width = self._low, self._width
        for first, count in zip(firsts, counts, strict=True):
            unit = width >> COUNT_BITS
            low += first * unit
            width = count * unit
            if width < _MIN_WIDTH:
                self._words.append(low >> _WORD_BITS)
                low = (low & _MIN_WIDTH - 1) << _WORD_BITS
                width <<= _WORD_BITS
        self._low, self._width = low, width

    def interval(self) -> Interval:
        """Return the interval of everything encoded so far."""
        bits = _WORD_BITS * (len(self._words) + 2)
        whole = b"".join((word & _MIN_WIDTH - 1).to_bytes(4, "big") for word in self._words)
        carries = b"".join((word >> _WORD_BITS).to_bytes(4, "big") for word in self._words)
        low = (
            int.from_bytes(whole, "big") + (int.from_bytes(carries, "big") << _WORD_BITS) << 2 * _WORD_BITS
        ) + self._low
        return Interval(low=low, width=self._width, bits=bits)


class RangeDecoder:
    """Decodes symbols in order. The bytes are a binary fraction: zeros are implied after them."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0  # bytes consumed
        self._width = _FULL_WIDTH
        # How far the fraction is above the interval's lower end.
        self._offset = self._next_word() << _WORD_BITS | self._next_word()

    def decode(self, tables: Iterable[Table]) -> list[int]:
        """Decode the next symbols, each with its own table.

        Raises `ValueError` for bytes that no encoder writes.
        """
        offset, width, found = self._offset, self._width, []
        for table in tables:
            unit = width >> COUNT_BITS << _TABLE_SHIFT
            count = offset // unit
            if count >> PRECISION:
                raise ValueError(_OUTSIDE)
            symbol = bisect_right(table, count) - 1
            offset -= table[symbol] * unit
            width = (table[symbol + 1] - table[symbol]) * unit
            if width < _MIN_WIDTH:
                offset = offset << _WORD_BITS | self._next_word()
                width <<= _WORD_BITS
            found.append(symbol)
        self._offset, self._width = offset, width
        return found

    def decode_by(self, find: Callable[[int], tuple[int, int, int]]) -> tuple[int, int, int]:
        """Decode the next symbol; return it, the counts out of 2²⁴ before it, and its own.

        `find` returns them for one of the symbol's counts. Raises `ValueError` for bytes that no encoder writes.
        """
        unit = self._width >> COUNT_BITS
        count = self._offset // unit
        if count >> COUNT_BITS:
            raise ValueError(_OUTSIDE)
        symbol, first, own = find(count)
        self._offset -= first * unit
        self._width = own * unit
        if self._width < _MIN_WIDTH:
            self._offset = self._offset << _WORD_BITS | self._next_word()
            self._width <<= _WORD_BITS
        return symbol, first, own

    def interval(self) -> Interval:
        """Return the interval of everything decoded so far, which is the encoder's after the same symbols."""
        consumed = int.from_bytes(self._data[: self._at].ljust(self._at, b"\0"), "big")
        return Interval(low=consumed - self._offset, width=self._width, bits=8 * self._at)

    def _next_word(self) -> int:
        self._at += 4
        return int.from_bytes(self._data[self._at - 4 : self._at].ljust(4, b"\0"), "big")
