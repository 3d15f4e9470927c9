"""The components of many views as whole grids, so that views of one grid side are computed together.

Promises the same neighbours and waves as the runtime (`tofc.codec.index.waves`). A merged view is a grid in which
some cells have no feature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from tofc.codec.index import waves
from tofc_lab.codec.places import Pool


class Order(NamedTuple):
    """How the cells of a grid are coded."""

    waves: list[Tensor]  # the cells of each wave
    near: Tensor  # [G², K_n] the neighbours in earlier waves; G²: outside the grid
    before: Tensor  # [G², G²] 1 where the column's cell is in an earlier wave than the row's

    @classmethod
    def of(cls, side: int, reach: int) -> Self:
        """Return the order of a grid with this side."""
        cells = np.arange(side * side)
        wave = 2 * (cells // side) + cells % side
        order, ends = waves.waves(side, cells)
        return cls(
            list(torch.from_numpy(order).tensor_split(ends[:-1])),
            torch.from_numpy(waves.earlier_neighbours(side, cells, reach)),
            torch.from_numpy((wave[None] < wave[:, None]).astype(np.float32)),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Grids:
    """V views of one grid side."""

    side: int
    y: Tensor  # [V, G², M] components, 0 where there is no feature
    present: Tensor  # [V, G²] bool

    @classmethod
    def of(cls, pool: Pool, project: Callable[[Tensor], Tensor]) -> list[Self]:
        """Return the views of a pool, those of each grid side together; `project` gives a feature's components."""
        sizes = [len(cells) for _, cells in pool.views]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        y = torch.cat([project(part.float()) for part in pool.features.split(1 << 14)])
        found = []
        for side in sorted({side for side, _ in pool.views}):
            chosen = [i for i, (of_view, _) in enumerate(pool.views) if of_view == side]
            rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in chosen])
            at = np.concatenate([k * side * side + pool.views[i][1] for k, i in enumerate(chosen)])
            dense = torch.zeros(len(chosen) * side * side, y.shape[1])
            dense[torch.from_numpy(at)] = y[torch.from_numpy(rows)]
            present = torch.zeros(len(dense), dtype=torch.bool)
            present[torch.from_numpy(at)] = True
            shape = (len(chosen), side * side)
            found.append(cls(side=side, y=dense.view(*shape, -1), present=present.view(shape)))
        return found
