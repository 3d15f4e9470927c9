"""The range coder against plain integers, against the second decoder, and against constriction, if installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.codec.second_decoder import PlainRangeDecoder
from tofc.codec.range_coder import Interval, RangeDecoder, RangeEncoder
from tofc.codec.tables import TOTAL, table_from_probabilities

MIDDLE = [0, TOTAL // 2 - 1, TOTAL // 2 + 1, TOTAL]
RARE = [0, 100, TOTAL]


def by_hand(symbols: list[int], tables: list[list[int]]) -> Interval:
    """Encode as docs/bitstream.md says, literally: low grows without bound."""
    low, width, bits = 0, 2**64 - 1, 64
    for symbol, table in zip(symbols, tables, strict=True):
        unit = (width >> 24) * 256
        low += table[symbol] * unit
        width = (table[symbol + 1] - table[symbol]) * unit
        if width < 2**32:
            low, width, bits = low << 32, width << 32, bits + 32
    return Interval(low=low, width=width, bits=bits)


def encoded(symbols: list[int], tables: list[list[int]]) -> Interval:
    encoder = RangeEncoder()
    encoder.encode(symbols, tables)
    return encoder.interval()


def decoded(data: bytes, tables: list[list[int]]) -> list[int] | None:
    """Decode symbols; None for bytes that no encoder writes."""
    try:
        return RangeDecoder(data).decode(tables)
    except ValueError:
        return None


def messages(trials: int) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Yield symbols with their tables: likely ones, random ones, and the rarest."""
    rng = np.random.default_rng(0)
    for trial in range(trials):
        size = int(rng.integers(2, 40))
        cumulative = table_from_probabilities(rng.dirichlet(np.full(size, 0.1), int(rng.integers(1, 5))))
        rows = rng.integers(0, len(cumulative), int(rng.integers(1, 120)))
        points = rng.integers(0, TOTAL, len(rows))
        choices = {
            0: [int(np.searchsorted(cumulative[r], p, "right")) - 1 for r, p in zip(rows, points, strict=True)],
            1: rng.integers(0, size, len(rows)).tolist(),
            2: np.diff(cumulative.astype(int))[rows].argmin(axis=1).tolist(),
        }
        yield choices[trial % 3], cumulative[rows].tolist()


def test_the_interval_is_the_one_of_plain_integers() -> None:
    for symbols, tables in messages(150):
        encoder, cut = RangeEncoder(), len(symbols) // 2
        encoder.encode(symbols[:cut], tables[:cut])
        encoder.encode(symbols[cut:], tables[cut:])
        assert encoder.interval() == by_hand(symbols, tables)


def test_every_point_of_the_interval_decodes_to_the_symbols_and_the_interval() -> None:
    for symbols, tables in messages(150):
        interval = by_hand(symbols, tables)
        for point in (interval.low, interval.low + interval.width // 2, interval.low + interval.width - 1):
            data, cut = point.to_bytes(interval.bits // 8, "big"), len(symbols) // 2
            for more in (b"", b"\xff" * 9):
                decoder = RangeDecoder(data + more)
                assert decoder.decode(tables[:cut]) + decoder.decode(tables[cut:]) == symbols
                assert decoder.interval() == interval
            plain = PlainRangeDecoder(data)
            assert [plain.symbol(table) for table in tables] == symbols
        for point in (interval.low - 1, interval.low + interval.width):
            if 0 <= point < 1 << interval.bits:
                assert decoded(point.to_bytes(interval.bits // 8, "big"), tables) != symbols


@pytest.mark.parametrize("last", [0, 1])
def test_the_interval_survives_a_carry_that_runs_through_many_words(last: int) -> None:
    """Halving towards the middle keeps 0.0111… or 0.1000… open over word after word."""
    symbols, tables = [1] * 60 + [last], [MIDDLE] * 60 + [[0, TOTAL // 2, TOTAL]]
    interval = encoded(symbols, tables)
    assert interval == by_hand(symbols, tables)
    assert "f0"[last] * 120 in f"{interval.low:x}", "no carry ran through 15 words"


def test_without_symbols_the_interval_holds_every_fraction() -> None:
    assert RangeEncoder().interval() == RangeDecoder(b"").interval() == Interval(low=0, width=2**64 - 1, bits=64)
    assert RangeDecoder(b"\x12" * 11).interval() == RangeEncoder().interval()
    assert RangeDecoder(b"").decode([]) == []


def test_zeros_are_implied_after_the_end() -> None:
    assert RangeDecoder(b"").decode([RARE] * 50) == [0] * 50
    for size in range(1, 13):  # whole words and parts of one
        data = b"\x80" * size
        assert RangeDecoder(data).decode([RARE] * 50) == RangeDecoder(data + bytes(30)).decode([RARE] * 50)


def test_what_no_encoder_writes_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="outside"):
        RangeDecoder(b"\xff" * 40).decode([RARE] * 50)
    end = (TOTAL << 8) * (2**64 - 1 >> 24)  # the first point behind every symbol
    assert RangeDecoder((end - 1).to_bytes(8, "big")).decode([RARE]) == [1]
    with pytest.raises(ValueError, match="outside"):
        RangeDecoder(end.to_bytes(8, "big")).decode([RARE])


def test_there_must_be_as_many_tables_as_symbols() -> None:
    with pytest.raises(ValueError, match="shorter"):
        RangeEncoder().encode([0, 0], [RARE])


def test_constriction_computes_the_same() -> None:
    """The same arithmetic, implemented independently."""
    constriction: Any = pytest.importorskip("constriction", reason="no wheel of constriction for this machine")
    model = constriction.stream.model.Categorical(perfect=False)
    for symbols, tables in messages(60):
        # constriction turns weights w into cumulative counts floor(sum(w[:i]) · ((2²⁴ − S) / sum(w))) + i out of 2²⁴.
        # With these weights the factor is 1, and the counts are 256 times the stored ones.
        weights = (256 * np.diff(np.array(tables)) - 1).astype(np.float32)
        encoder = constriction.stream.queue.RangeEncoder()
        encoder.encode(np.array(symbols, np.int32), model, weights)
        words, (low, width) = encoder.pos()
        interval = encoded(symbols, tables)
        assert (interval.low % 2**64, interval.width, interval.bits) == (low, width, 32 * (words + 2))
        point = np.frombuffer(interval.low.to_bytes(interval.bits // 8, "big"), ">u4").astype(np.uint32)
        decoder = constriction.stream.queue.RangeDecoder(point)
        assert decoder.decode(model, weights).tolist() == symbols
        sealed = encoder.get_compressed().astype(">u4").tobytes()
        assert RangeDecoder(sealed).decode(tables) == symbols
