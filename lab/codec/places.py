"""Where features lie, as the context model wants it, for many views at once.

Promises the runtime's own stages and neighbours (``shared.codec.context``), with the indices of a whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.codec import context

REACH = 2

#: grid side and cells [n] of one view
View = tuple[int, NDArray[np.int64]]


class Places(NamedTuple):
    """Of T features of several views."""

    stage: Tensor  # [T]
    around: Tensor  # [T, K] indices into the features, T where there is none

    def to(self, device: torch.device) -> Places:
        return Places(self.stage.to(device), self.around.to(device))


def places_of(views: Sequence[View]) -> Places:
    """Of views whose features follow each other."""
    total = sum(len(cells) for _, cells in views)
    stage, around, start = [], [], 0
    for grid, cells in views:
        near = context.around(grid, cells, REACH)
        around.append(np.where(near == len(cells), total, near + start))
        stage.append(context.stages(grid, cells))
        start += len(cells)
    return Places(torch.from_numpy(np.concatenate(stage)), torch.from_numpy(np.concatenate(around)))


class Pool:
    """Features [T, ·] of many views, from which batches of whole views are drawn."""

    def __init__(self, features: Tensor, views: Sequence[View]) -> None:
        self.features, self.views = features, list(views)
        sizes = np.array([len(cells) for _, cells in views])
        self._starts = np.concatenate([[0], sizes.cumsum()])
        self._sizes = sizes
        every = places_of(views)
        self._stage = every.stage
        near, mine = every.around.numpy(), np.repeat(self._starts[:-1], sizes)[:, None]
        self._near = np.where(near == len(features), -1, near - mine).astype(np.int16)  # within the view

    def __len__(self) -> int:
        return len(self.features)

    def draw(self, generator: torch.Generator, size: int) -> tuple[Tensor, Places]:
        """Whole views, at random, of at least ``size`` features together."""
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
        """Everything in order."""
        return self.features, places_of(self.views)

    def mapped(self, features: Tensor) -> Pool:
        """The same views with other numbers."""
        found = object.__new__(Pool)
        found.__dict__ = self.__dict__ | {"features": features}
        return found
