"""Symbols ⇄ the interval of a range coder, in plain integers over stored cumulative tables.

Promises the arithmetic of docs/bitstream.md to the last bit: nothing here is a float, and no integer wraps. State and
work stay the same for each symbol, however many came before. Leaves to ``packet`` which bytes stand for an interval.

    encoder.encode(symbols, tables) … interval() ── bytes ── Decoder(bytes).decode(tables) … interval()
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from shared.codec.tables import TOTAL

_WORD = 32  # bits; the coder's state has two words
_WHOLE = (1 << 2 * _WORD) - 1  # the interval that everything begins with
_LEAST = 1 << _WORD  # a narrower interval is shifted by a word, and then is wide enough for any symbol
_LOW_BITS = _WORD - 8  # of an interval's width, below its share for one count of a table

#: cumulative counts, from 0 to ``TOTAL``: of symbol x table[x + 1] − table[x]
Table = list[int]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Every binary fraction 0.b₁b₂b₃… in [low, low + width) / 2^bits decodes to the same symbols."""

    low: int
    width: int
    bits: int


class Encoder:
    """Encodes symbols in order.

    >>> table = [0, 1, 65536]
    >>> encoder = Encoder()
    >>> encoder.encode([1, 0, 1], [table] * 3)
    >>> interval = encoder.interval()
    >>> point = (interval.low + interval.width - 1).to_bytes(interval.bits // 8, "big")
    >>> decoder = Decoder(point)
    >>> decoder.decode([table] * 3), decoder.interval() == interval
    ([1, 0, 1], True)
    """

    def __init__(self) -> None:
        self._low, self._width = 0, _WHOLE
        self._words: list[int] = []  # of the lower end, before ``_low``; one carry at most still is in each

    def encode(self, symbols: Iterable[int], tables: Iterable[Table]) -> None:
        """Appends symbols, each under a table of its own."""
        low, width = self._low, self._width
        for symbol, table in zip(symbols, tables, strict=True):
            unit = width >> _LOW_BITS << 8
            first = table[symbol]
            low += first * unit
            width = (table[symbol + 1] - first) * unit
            if width < _LEAST:
                self._words.append(low >> _WORD)
                low = (low & _LEAST - 1) << _WORD
                width <<= _WORD
        self._low, self._width = low, width

    def interval(self) -> Interval:
        """The interval of everything encoded so far."""
        bits = _WORD * (len(self._words) + 2)
        whole = b"".join((word & _LEAST - 1).to_bytes(4, "big") for word in self._words)
        carries = b"".join((word >> _WORD).to_bytes(4, "big") for word in self._words)
        low = (int.from_bytes(whole, "big") + (int.from_bytes(carries, "big") << _WORD) << 2 * _WORD) + self._low
        return Interval(low=low, width=self._width, bits=bits)


class Decoder:
    """Decodes symbols in order. The bytes are a binary fraction: zeros follow for ever."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0  # bytes taken
        self._width = _WHOLE
        self._offset = self._word() << _WORD | self._word()  # of the fraction from the interval's lower end

    def decode(self, tables: Iterable[Table]) -> list[int]:
        """The next symbols, one under each table. Raises ``ValueError`` for bytes no encoder writes."""
        offset, width, found = self._offset, self._width, []
        for table in tables:
            unit = width >> _LOW_BITS << 8
            count = offset // unit
            if count >= TOTAL:
                raise ValueError("the payload lies outside of every symbol's interval")
            symbol = bisect_right(table, count) - 1
            first = table[symbol]
            offset -= first * unit
            width = (table[symbol + 1] - first) * unit
            if width < _LEAST:
                offset = offset << _WORD | self._word()
                width <<= _WORD
            found.append(symbol)
        self._offset, self._width = offset, width
        return found

    def interval(self) -> Interval:
        """The interval of everything decoded so far, as whoever encoded it knows it."""
        taken = int.from_bytes(self._data[: self._at].ljust(self._at, b"\0"), "big")
        return Interval(low=taken - self._offset, width=self._width, bits=8 * self._at)

    def _word(self) -> int:
        self._at += 4
        return int.from_bytes(self._data[self._at - 4 : self._at].ljust(4, b"\0"), "big")
