"""Stored probability tables: cumulative counts out of 2¹⁶, every symbol at least 1.

Promises that a table is either valid or refused. Leaves to whoever trains the codec which probabilities a table
holds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

PRECISION = 16
TOTAL = 1 << PRECISION  # what the counts of a table add up to


def table_from_probabilities(probabilities: ArrayLike) -> NDArray[np.uint32]:
    """Probabilities [..., S] → cumulative counts uint32 [..., S+1], from 0 to 2¹⁶.

    Every symbol gets one count, so that it can be coded at all; the rest is shared out in proportion,
    rounded by largest remainder (ties: the lower symbol). Probabilities need not add up to one.

    Raises ``ValueError`` for fewer than 2 or more than 2¹⁵ symbols, negative or non-finite values, or
    a row of zeros.

    >>> table_from_probabilities([0.5, 0.25, 0.25]).tolist()
    [0, 32768, 49152, 65536]
    """
    p = np.atleast_1d(np.asarray(probabilities, np.float64))
    size = p.shape[-1]
    if not 2 <= size <= TOTAL // 2:
        raise ValueError(f"a table has 2 to {TOTAL // 2} symbols, not {size}")
    if not np.isfinite(p).all() or (p < 0).any() or (p.sum(-1) <= 0).any():
        raise ValueError("probabilities must be finite, not negative and not all zero: mend them before tabulating")
    rows = p.reshape(-1, size)
    ideal = rows / rows.sum(-1, keepdims=True) * (TOTAL - size)
    counts = np.floor(ideal).astype(np.int64)
    for row, exact in zip(counts, ideal, strict=True):
        missing = TOTAL - size - int(row.sum())  # fewer than one for every symbol
        row[np.argsort(row - exact, kind="stable")[:missing]] += 1
    cumulative = np.zeros((len(rows), size + 1), np.uint32)
    cumulative[:, 1:] = np.cumsum(counts + 1, axis=-1)
    return cumulative.reshape(*p.shape[:-1], size + 1)


def problem_with(table: NDArray[np.uint32]) -> str | None:
    """What is wrong with cumulative tables [..., S+1], in words; None if nothing is."""
    if table.dtype != np.uint32:
        return f"dtype {table.dtype}, must be uint32"
    if table.ndim < 1 or table.shape[-1] < 3:
        return f"shape {table.shape}: a table needs at least 2 symbols, so 3 cumulative counts"
    if (table[..., 0] != 0).any() or (table[..., -1] != TOTAL).any():
        return f"every table must run from 0 to {TOTAL}"
    if (np.diff(table.astype(np.int64), axis=-1) < 1).any():
        return "every symbol needs a count of at least 1 (cumulative counts strictly increasing)"
    return None


def symbol_bits(table: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Cumulative tables [..., S+1] → the ideal cost of every symbol [..., S] in bits. For the encoder only."""
    bits: NDArray[np.float64] = PRECISION - np.log2(np.diff(table.astype(np.int64), axis=-1))
    return bits
