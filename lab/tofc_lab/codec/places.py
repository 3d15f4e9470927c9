"""Coding stage and neighbours of every feature, for many views at once.

Promises the same stages and neighbours as the runtime (`tofc.codec.context`), with indices into the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tofc.codec.context.context_model import stages
from tofc.codec.neighbourhood import neighbour_indices

REACH = 2

#: grid side and cells [n] of one view
View = tuple[int, NDArray[np.int64]]


class Places(NamedTuple):
    """Stage and neighbours of T features of several views."""

    stage: Tensor  # [T]
    around: Tensor  # [T, K] indices into the features; T: no neighbour

    def to(self, device: torch.device) -> Places:
        """Return a copy on `device`."""
        return Places(self.stage.to(device), self.around.to(device))


def places_of(views: Sequence[View]) -> Places:
    """Compute the places of the features of several views, one view after the other."""
    total = sum(len(cells) for _, cells in views)
    stage, around, start = [], [], 0
    for grid, cells in views:
        near = neighbour_indices(grid, cells, REACH)
        around.append(np.where(near == len(cells), total, near + start))
        stage.append(stages(grid, cells))
        start += len(cells)
    return Places(torch.from_numpy(np.concatenate(stage)), torch.from_numpy(np.concatenate(around)))


def joined(parts: Sequence[Places]) -> Places:
    """Return the places of several batches, one after the other."""
    sizes = [len(one.stage) for one in parts]
    starts, total = np.cumsum([0, *sizes]), sum(sizes)
    around = [
        torch.where(one.around == size, total, one.around + int(start))
        for one, size, start in zip(parts, sizes, starts[:-1], strict=True)
    ]
    return Places(torch.cat([one.stage for one in parts]), torch.cat(around))


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """Features [T, D], or their components [T, M], of many views, to draw batches of whole views from; see `of`."""

    features: Tensor
    views: Sequence[View]
    _starts: NDArray[np.int64]
    _sizes: NDArray[np.int64]
    _stage: Tensor
    _near: NDArray[np.int16]

    @classmethod
    def of(cls, features: Tensor, views: Sequence[View]) -> Self:
        """Compute the places of all views once."""
        sizes = np.array([len(cells) for _, cells in views])
        starts = np.concatenate([[0], sizes.cumsum()])
        every = places_of(views)
        near, mine = every.around.numpy(), np.repeat(starts[:-1], sizes)[:, None]
        return cls(
            features=features,
            views=list(views),
            _starts=starts,
            _sizes=sizes,
            _stage=every.stage,
            _near=np.where(near == len(features), -1, near - mine).astype(np.int16),  # within the view
        )

    def __len__(self) -> int:
        return len(self.features)

    def draw(self, generator: torch.Generator, size: int) -> tuple[Tensor, Places]:
        """Return whole views, drawn at random, with at least `size` features together."""
        chosen: list[int] = []
        count = 0
        while count < size:
            view = int(torch.randint(len(self._sizes), (1,), generator=generator))
            chosen.append(view)
            count += int(self._sizes[view])
        rows = np.concatenate([np.arange(self._starts[i], self._starts[i + 1]) for i in chosen])
        first = np.repeat(np.cumsum([0, *self._sizes[chosen]])[:-1], self._sizes[chosen])[:, None]
        near = self._near[rows].astype(np.int64)
        around = torch.from_numpy(np.where(near < 0, len(rows), near + first))
        at = torch.from_numpy(rows)
        return self.features[at], Places(self._stage[at], around)

    def all(self) -> tuple[Tensor, Places]:
        """Return all features in order."""
        return self.features, places_of(self.views)

    def mapped(self, features: Tensor) -> Self:
        """Return a pool of the same views with other features."""
        return replace(self, features=features)
