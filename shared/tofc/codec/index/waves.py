"""The order in which the cells of a view are coded: waves, whose cells are predicted together.

    0 1 2 3 4        A cell's wave is 2 · row + column. The cells left of it, and those above it up to one to the right,
    2 3 4 5 6        are in earlier waves. So this order predicts as well as raster order does, in fewer steps
    4 5 6 7 8        (wavefront parallel processing, as in HEVC).

Promises that a cell's neighbours in `earlier_offsets` are coded before it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from tofc.codec.integer_net import Ints
from tofc.codec.neighbourhood import neighbour_indices


def waves(grid: int, cells: Ints) -> list[Ints]:
    """Return the rows of `cells` [n], ascending raster indices, in each wave that has any, in coding order.

    >>> [rows.tolist() for rows in waves(3, np.arange(9))]
    [[0], [1], [2, 3], [4], [5, 6], [7], [8]]
    """
    wave = 2 * (cells // grid) + cells % grid
    order = np.argsort(wave, kind="stable")
    ends = np.flatnonzero(np.diff(wave[order])) + 1
    return np.split(order, ends)


@lru_cache(maxsize=8)
def earlier_offsets(reach: int) -> Ints:
    """Return which of `neighbour_indices`' offsets are in earlier waves, in their order: those with 2 dy + dx < 0."""
    dy, dx = np.divmod(np.arange((2 * reach + 1) ** 2), 2 * reach + 1) - np.array([[reach], [reach]])
    earlier = np.delete(2 * dy + dx < 0, len(dy) // 2)
    found: Ints = np.flatnonzero(earlier)
    return found


def earlier_neighbours(grid: int, cells: Ints, reach: int) -> Ints:
    """Return each cell's neighbours in earlier waves: [n, K_n] indices into `cells` [n], n where absent."""
    found: Ints = neighbour_indices(grid, cells, reach)[:, earlier_offsets(reach)]
    return found
