from __future__ import annotations

import numpy as np
import pytest

from tofc.codec.tables import TOTAL, symbol_bits, table_from_probabilities, validate_table
from tofc.errors import CodecError


def test_tables_are_close_to_the_probabilities_and_complete() -> None:
    rng = np.random.default_rng(0)
    for size in (2, 3, 65, 257):
        p = rng.dirichlet(np.ones(size))
        table = table_from_probabilities(p)
        validate_table(table)
        exact = 1 + p * (TOTAL - size)
        assert (np.abs(np.diff(table.astype(int)) - exact) < 1).all()


def test_impossible_symbols_keep_one_count() -> None:
    assert np.diff(table_from_probabilities([1.0, 0.0, 0.0])).tolist() == [TOTAL - 2, 1, 1]


def test_ties_go_to_the_lower_symbol() -> None:
    assert np.diff(table_from_probabilities([1, 1, 1])).tolist() == [21846, 21845, 21845]


@pytest.mark.parametrize("bad", [[1.0], [0.0, 0.0], [-1.0, 2.0], [np.nan, 1.0], [np.inf, 1.0], np.ones(40000)])
def test_invalid_probabilities_are_refused(bad: object) -> None:
    with pytest.raises(ValueError):
        table_from_probabilities(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (np.array([0, 1, TOTAL], np.int64), "dtype"),
        (np.array([0, TOTAL], np.uint32), "at least 2 symbols"),
        (np.array([1, 5, TOTAL], np.uint32), "run from 0"),
        (np.array([0, 5, TOTAL - 1], np.uint32), "run from 0"),
        (np.array([0, 5, 5, TOTAL], np.uint32), "at least 1"),
        (np.array([0, 9, 5, TOTAL], np.uint32), "at least 1"),
    ],
)
def test_bad_tables_are_named(table: np.ndarray, words: str) -> None:
    with pytest.raises(CodecError, match=f"^y_tables: .*{words}"):
        validate_table(table, "y_tables")


def test_bits_are_those_of_the_counts() -> None:
    assert symbol_bits(np.array([0, 32768, 49152, 65536], np.uint32)).tolist() == [1, 2, 2]
