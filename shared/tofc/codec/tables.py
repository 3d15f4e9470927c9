"""Stored probability tables: cumulative counts out of 2¹⁶, at least one count for every symbol.

CompressAI calls such a table a quantised CDF. Promises that a table is either valid or refused. Leaves the choice of
probabilities to whoever trains the codec.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tofc.errors import CodecError, UsageError

PRECISION = 16
TOTAL = 1 << PRECISION  # what the counts of a table add up to


def table_from_probabilities(probabilities: ArrayLike) -> NDArray[np.uint32]:
    """Turn probabilities [..., S] of S symbols into cumulative counts uint32 [..., S + 1], from 0 to 2¹⁶.

    Every symbol gets at least one count, so that it can be coded; the rest is distributed in proportion,
    rounded by largest remainder (ties: the lower symbol). Probabilities need not add up to one.

    Raises `UsageError` for fewer than 2 or more than 2¹⁵ symbols, negative or non-finite values, or
    a row of zeros.

    >>> table_from_probabilities([0.5, 0.25, 0.25]).tolist()
    [0, 32768, 49152, 65536]
    """
    p = np.atleast_1d(np.asarray(probabilities, np.float64))
    size = p.shape[-1]
    if not 2 <= size <= TOTAL // 2:
        raise UsageError(f"a table must have 2 to {TOTAL // 2} symbols, got {size}")
    if not np.isfinite(p).all() or (p < 0).any() or (p.sum(-1) <= 0).any():
        raise UsageError("probabilities must be finite, not negative and not all zero in a row")
    rows = p.reshape(-1, size)
    exact_counts = rows / rows.sum(-1, keepdims=True) * (TOTAL - size)
    counts = np.floor(exact_counts).astype(np.int64)
    for row, exact in zip(counts, exact_counts, strict=True):
        missing = TOTAL - size - int(row.sum())  # always less than the number of symbols
        row[np.argsort(row - exact, kind="stable")[:missing]] += 1
    cumulative = np.zeros((len(rows), size + 1), np.uint32)
    cumulative[:, 1:] = np.cumsum(counts + 1, axis=-1)
    return cumulative.reshape(*p.shape[:-1], size + 1)


def validate_table(table: NDArray[np.uint32], name: str = "table") -> None:
    """Check cumulative counts [..., S + 1]. Raises `CodecError`, whose message begins with `name`."""
    if table.dtype != np.uint32:
        raise CodecError(f"{name}: dtype must be uint32, got {table.dtype}")
    if table.ndim < 1 or table.shape[-1] < 3:
        raise CodecError(f"{name}: a table needs at least 2 symbols, so 3 cumulative counts; got shape {table.shape}")
    if (table[..., 0] != 0).any() or (table[..., -1] != TOTAL).any():
        raise CodecError(f"{name}: every table must run from 0 to {TOTAL}: export the codec again")
    if (np.diff(table.astype(np.int64), axis=-1) < 1).any():
        raise CodecError(f"{name}: every symbol needs a count of at least 1: export the codec again")


def symbol_bits(table: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Return −log₂ p of every symbol [..., S] by cumulative counts [..., S + 1]: floats, so only for the encoder."""
    bits: NDArray[np.float64] = PRECISION - np.log2(np.diff(table.astype(np.int64), axis=-1))
    return bits
