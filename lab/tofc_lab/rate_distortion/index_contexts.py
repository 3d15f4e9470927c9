"""What a view's indices cost when each is coded with its neighbours in view: ideal bits, in raster order.

- `CountContext`: how often indices followed each other in training, to the left and above;
- `NetContext`: a small net over six neighbours and the place.

Promises probabilities that a decoder could have: of each cell only what lies before it in raster order is used. Leaves
choosing the indices to `codebooks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

NEIGHBOURS = ((0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0))  # rows and columns from a cell, all before it
EMBEDDING, HIDDEN = 32, 128
EPOCHS, BATCH_VIEWS, RATE = 30, 50, 2e-3
DROPOUT = 0.2


class Context(Protocol):
    """Ideal bits of all indices [side, side] of a view."""

    def bits(self, grid: NDArray[np.int64]) -> float: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class CountContext:
    """Counts of neighbouring indices; the left and the upper neighbour count as independent."""

    share: NDArray[np.float64]  # [K] log2 p(k)
    left: NDArray[np.float64]  # [K, K] log2 of p(k | left) / p(k)
    above: NDArray[np.float64]  # [K, K] the same for the index above

    @classmethod
    def fit(cls, grids: NDArray[np.int64], share: NDArray[np.float64]) -> Self:
        """Count in training views [V, side, side]; `share` [K] is log2 p(k)."""

        def likelier(given: NDArray[np.int64], index: NDArray[np.int64]) -> NDArray[np.float64]:
            pairs = np.zeros((len(share), len(share)))
            np.add.at(pairs, (given.ravel(), index.ravel()), 1.0)
            seen = pairs.sum(1, keepdims=True)
            doubt = np.sqrt(seen) + 1  # pseudo-counts, in proportion to p(k)
            ratio: NDArray[np.float64] = np.log2(pairs / np.exp2(share) + doubt) - np.log2(seen + doubt)
            return ratio

        return cls(
            share=share,
            left=likelier(grids[:, :, :-1], grids[:, :, 1:]),
            above=likelier(grids[:, :-1], grids[:, 1:]),
        )

    def bits(self, grid: NDArray[np.int64]) -> float:
        """Return the ideal bits of a view's indices [side, side]."""
        odds = np.broadcast_to(self.share, (*grid.shape, len(self.share))).copy()
        odds[:, 1:] += self.left[grid[:, :-1]]
        odds[1:] += self.above[grid[:-1]]
        taken = np.take_along_axis(odds, grid[..., None], axis=-1)[..., 0]
        return float((np.logaddexp2.reduce(odds, axis=-1) - taken).sum())


class NetContext(nn.Module):
    """Embeddings of six neighbours and of the place → logits of K indices; `fit` trains it."""

    def __init__(self, count: int, side: int) -> None:
        super().__init__()
        self.count = count
        self.index = nn.Embedding(count + 1, EMBEDDING)  # the last one stands for what lies outside
        self.row, self.column = nn.Embedding(side, EMBEDDING), nn.Embedding(side, EMBEDDING)
        self.hidden = nn.Linear((len(NEIGHBOURS) + 2) * EMBEDDING, HIDDEN)
        self.logits = nn.Linear(HIDDEN, count)

    @classmethod
    def fit(cls, grids: NDArray[np.int64], share: NDArray[np.float64]) -> Self:
        """Train on views [V, side, side]; `share` [K], log2 p(k), is where the logits start."""
        torch.manual_seed(0)
        net = cls(len(share), grids.shape[1])
        with torch.no_grad():
            net.logits.weight.zero_()
            net.logits.bias.copy_(torch.from_numpy(share * np.log(2)))
        views = torch.from_numpy(grids)
        steps = EPOCHS * -(-len(views) // BATCH_VIEWS)
        optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
        net.train()
        for _ in range(EPOCHS):
            for batch in views[torch.randperm(len(views))].split(BATCH_VIEWS):
                loss = functional.cross_entropy(net(batch).flatten(0, 2), batch.flatten())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        return net.eval()

    def forward(self, grids: Tensor) -> Tensor:
        """Return the logits [V, side, side, K] of every index from those before it in `grids` [V, side, side]."""
        rows, columns = grids.shape[1:]
        padded = functional.pad(grids, (2, 2, 2, 0), value=self.count)
        near = [padded[:, 2 + dy : 2 + dy + rows, 2 + dx : 2 + dx + columns] for dy, dx in NEIGHBOURS]
        places = torch.broadcast_tensors(self.row.weight[:rows, None], self.column.weight[None, :columns])
        parts = [self.index(one) for one in near] + [one.expand(len(grids), -1, -1, -1) for one in places]
        seen = functional.dropout(torch.cat(parts, -1), DROPOUT, self.training)
        logits: Tensor = self.logits(functional.gelu(self.hidden(seen)))
        return logits

    @torch.no_grad()
    def bits(self, grid: NDArray[np.int64]) -> float:
        """Return the ideal bits of a view's indices [side, side]."""
        view = torch.from_numpy(grid)[None]
        nats = functional.cross_entropy(self(view).flatten(0, 2), view.flatten(), reduction="sum")
        return float(nats) / float(np.log(2))
