from __future__ import annotations

from itertools import combinations
from math import comb

import pytest

from tofc.codec.positions import rank, unrank


@pytest.mark.parametrize(("total", "n"), [(1, 1), (5, 1), (6, 3), (9, 4), (9, 8), (9, 9)])
def test_every_set_has_its_own_rank(total: int, n: int) -> None:
    numbers = {rank(cells): cells for cells in combinations(range(total), n)}
    assert sorted(numbers) == list(range(comb(total, n)))
    for number, cells in numbers.items():
        assert tuple(unrank(number, n, total)) == cells


def test_large_sets() -> None:
    cells = list(range(3, 256, 3))
    assert unrank(rank(cells), len(cells), 256) == cells


@pytest.mark.parametrize("number", [-1, 20])
def test_ranks_out_of_range_are_refused(number: int) -> None:
    with pytest.raises(ValueError):
        unrank(number, 3, 6)
