from __future__ import annotations

import numpy as np
import pytest

from shared.codec.coder import Decoder, Encoder
from shared.codec.tables import TOTAL, coder_weights, table_from_probabilities


def interval_by_hand(symbols: list[int], tables: list[list[int]]) -> tuple[int, int, int]:
    """The encoder of docs/bitstream.md in plain integers."""
    low, width, bits = 0, 2**64 - 1, 64
    for symbol, table in zip(symbols, tables, strict=True):
        unit = (width >> 24) * 256
        low += table[symbol] * unit
        width = (table[symbol + 1] - table[symbol]) * unit
        if width < 2**32:
            low, width, bits = low << 32, width << 32, bits + 32
    return low, width, bits


def test_the_interval_is_the_one_of_plain_integers() -> None:
    rng = np.random.default_rng(0)
    for trial in range(150):
        size = int(rng.integers(2, 40))
        cumulative = table_from_probabilities(rng.dirichlet(np.full(size, 0.1), int(rng.integers(1, 5))))
        rows = rng.integers(0, len(cumulative), int(rng.integers(1, 120)))
        if trial % 2:  # likely symbols
            points = rng.integers(0, TOTAL, len(rows))
            symbols = np.array(
                [np.searchsorted(cumulative[r], p, "right") - 1 for r, p in zip(rows, points, strict=True)]
            )
        else:  # any symbols, the rarest included
            symbols = rng.integers(0, size, len(rows))
        weights = coder_weights(cumulative)[rows]
        encoder = Encoder()
        cut = len(rows) // 2
        encoder.encode(symbols[:cut], weights[:cut])
        encoder.encode(symbols[cut:], weights[cut:])
        interval = encoder.interval()
        tables = cumulative[rows].tolist()
        assert (interval.low, interval.width, interval.bits) == interval_by_hand(symbols.tolist(), tables)
        for point in (interval.low, interval.low + interval.width // 2, interval.low + interval.width - 1):
            decoder = Decoder(point.to_bytes(interval.bits // 8, "big"))
            assert (decoder.decode(weights) == symbols).all()


@pytest.mark.parametrize("last", [0, 1])
def test_the_interval_survives_a_carry_that_runs_through_many_words(last: int) -> None:
    """Halving towards the middle keeps 0.0111… or 0.1000… open over word after word."""
    table = np.array([0, TOTAL // 2, TOTAL], np.uint32)
    middle = coder_weights(np.array([0, TOTAL // 2 - 1, TOTAL // 2 + 1, TOTAL], np.uint32))[None]
    symbols = np.ones(60, np.int64)
    encoder = Encoder()
    encoder.encode(symbols, np.repeat(middle, 60, axis=0))
    encoder.encode(np.array([last]), coder_weights(table)[None])
    interval = encoder.interval()
    by_hand = interval_by_hand([1] * 60 + [last], [[0, TOTAL // 2 - 1, TOTAL // 2 + 1, TOTAL]] * 60 + [table.tolist()])
    assert (interval.low, interval.width, interval.bits) == by_hand


def test_no_symbols_are_all_fractions() -> None:
    interval = Encoder().interval()
    assert (interval.low, interval.width, interval.bits) == (0, 2**64 - 1, 64)
    assert Decoder(b"").decode(np.zeros((0, 2), np.float32)).tolist() == []


def test_the_end_counts_as_zeros() -> None:
    weights = np.repeat(coder_weights(np.array([0, 100, TOTAL], np.uint32))[None], 50, axis=0)
    assert Decoder(b"").decode(weights).tolist() == [0] * 50
    assert (Decoder(b"\x80").decode(weights) == Decoder(b"\x80\0\0\0\0\0\0\0\0").decode(weights)).all()


def test_what_no_encoder_writes_is_a_value_error() -> None:
    weights = np.repeat(coder_weights(np.array([0, 100, TOTAL], np.uint32))[None], 50, axis=0)
    with pytest.raises(ValueError, match="outside"):
        Decoder(b"\xff" * 40).decode(weights)
