"""The neighbours of a view's cells, which context models predict from."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from tofc.codec.integer_net import Ints


def neighbour_indices(grid: int, cells: Ints, radius: int) -> Ints:
    """Find the neighbours of each of the cells [n]: [n, (2 radius + 1)² − 1] indices into `cells`, n where absent.

    They are in raster order of their offset, from (−radius, −radius) to (radius, radius), without (0, 0).

    >>> neighbour_indices(3, np.array([0, 4, 5]), 1).tolist()
    [[3, 3, 3, 3, 3, 3, 3, 1], [0, 3, 3, 3, 2, 3, 3, 3], [3, 3, 3, 1, 3, 3, 3, 3]]
    """
    n, side = len(cells), grid + 2 * radius
    index_at = np.full(side * side, n, np.int64)  # of a grid with an empty border, so that no offset leaves it
    place = (cells // grid + radius) * side + cells % grid + radius
    index_at[place] = np.arange(n)
    found: Ints = index_at[place[:, None] + _offsets(side, radius)]
    return found


@lru_cache(maxsize=32)
def _offsets(side: int, radius: int) -> Ints:
    """Return how far each neighbour is from a cell, in raster order, of a grid with this side."""
    row, column = np.divmod(np.arange((2 * radius + 1) ** 2), 2 * radius + 1)
    return np.delete((row - radius) * side + column - radius, len(row) // 2)
