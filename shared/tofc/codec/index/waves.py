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


def waves(grid: int, cells: Ints) -> tuple[Ints, list[int]]:
    """Return the rows of `cells` [n], ascending raster indices, in coding order, and where in it each wave ends.

    >>> order, ends = waves(3, np.array([0, 2, 3, 5, 6]))
    >>> order.tolist(), ends
    ([0, 1, 2, 3, 4], [1, 3, 5])
    """
    row, column = np.divmod(cells, grid)
    wave = 2 * row + column
    order = np.argsort(wave, kind="stable")
    return order, [*(np.flatnonzero(np.diff(wave[order])) + 1).tolist(), len(cells)]


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
