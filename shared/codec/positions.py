"""Sets of grid cells ⇄ one number: the combinatorial number system ("combinadic").

Promises that the C(N, n) sets of n out of N cells and the numbers below C(N, n) correspond one to one.
Leaves to ``packet`` how the number is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb


def rank(cells: Sequence[int]) -> int:
    """Ascending cells c₀ < c₁ < … → Σ C(cᵢ, i + 1), below C(N, n) for cells below N."""
    return sum(comb(cell, i + 1) for i, cell in enumerate(cells))


def unrank(number: int, n: int, total: int) -> list[int]:
    """The n ascending cells below ``total`` whose rank is ``number``.

    >>> unrank(rank([0, 3, 35]), 3, 36)
    [0, 3, 35]
    """
    if not 0 <= number < comb(total, n):
        raise ValueError(f"there are C({total}, {n}) sets; {number} is none of them")
    cells = []
    cell = total
    for size in range(n, 0, -1):
        cell -= 1
        while (below := comb(cell, size)) > number:
            cell -= 1
        number -= below
        cells.append(cell)
    return cells[::-1]
