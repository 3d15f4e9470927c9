"""A set of grid cells ⇄ its rank among all sets of its size: the combinatorial number system.

Promises that the C(N, n) sets of n out of N cells and the ranks 0 … C(N, n) − 1 correspond one to one.
Leaves to `packet` how a rank is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb


def rank(cells: Sequence[int]) -> int:
    """Return the rank of ascending cells c₀ < c₁ < …, which is Σ C(cᵢ, i + 1)."""
    return sum(comb(cell, i + 1) for i, cell in enumerate(cells))


def unrank(number: int, n: int, total: int) -> list[int]:
    """Return the n ascending cells below `total` whose rank is `number`. Raises `ValueError` if no set has it.

    >>> unrank(rank([0, 3, 35]), 3, 36)
    [0, 3, 35]
    """
    if not 0 <= number < comb(total, n):
        raise ValueError(f"rank must be at least 0 and below C({total}, {n}), got {number}")
    cells = []
    cell = total
    for size in range(n, 0, -1):
        cell -= 1
        while (below := comb(cell, size)) > number:
            cell -= 1
        number -= below
        cells.append(cell)
    return cells[::-1]
