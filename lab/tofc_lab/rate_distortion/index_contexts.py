"""What a view's indices cost when each is coded with its neighbours in view: ideal bits, in raster order.

- `CountContext`: how often indices followed each other in training: to the left, above, and from stage to stage;
- `NetContext`: a small net over six neighbours and the place, for codebooks of one stage.

Promises probabilities that a decoder could have: of each cell only what lies before it in raster order is used, and of
the cell itself the stages before. Each view is coded on its own. Leaves choosing the indices to `codebooks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tofc_lab import resume
from tofc_lab.nano.answerer import SLOT, SLOTS

NEIGHBOURS = ((0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0))  # rows and columns from a cell, all before it
EMBEDDING, HIDDEN = 32, 128
PASSES = 45_000  # views in all, of training with few views several times each
EPOCHS = (6, 30)  # fewest and most
BATCH_VIEWS, RATE = 50, 2e-3
DROPOUT = 0.2


class Context(Protocol):
    """Ideal bits of all indices [side, side, S] of a view."""

    def bits(self, grid: NDArray[np.int64]) -> float: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class CountContext:
    """Counts of indices beside each other; all that is given counts as independent.

    The tables of each stage are [K, K'] log2 of p(k | given) / p(k); above and left are of the same stage.
    """

    shares: list[NDArray[np.float32]]  # of each stage [K] log2 p(k)
    left: list[NDArray[np.float32]]
    above: list[NDArray[np.float32]]
    before: list[NDArray[np.float32]]  # of all stages but the first, given the stage before

    @classmethod
    def fit(cls, grids: Sequence[NDArray[np.int64]], shares: Sequence[NDArray[np.float32]]) -> Self:
        """Count in training views [V, side, side, S], an array for each side; `shares` of each stage [K] are log2 p."""
        stages = range(len(shares))
        return cls(
            shares=list(shares),
            left=[_likelier([(g[:, :, :-1, s], g[:, :, 1:, s]) for g in grids], shares[s]) for s in stages],
            above=[_likelier([(g[:, :-1, :, s], g[:, 1:, :, s]) for g in grids], shares[s]) for s in stages],
            before=[
                _likelier([(g[..., s - 1], g[..., s]) for g in grids], shares[s], len(shares[s - 1]))
                for s in stages[1:]
            ],
        )

    def bits(self, grid: NDArray[np.int64]) -> float:
        """Return the ideal bits of a view's indices [side, side, S]."""
        total = 0.0
        for at, share in enumerate(self.shares):
            own = grid[..., at]
            odds = np.broadcast_to(share, (*own.shape, len(share))).copy()
            odds[:, 1:] += self.left[at][own[:, :-1]]
            odds[1:] += self.above[at][own[:-1]]
            if at:
                odds += self.before[at - 1][grid[..., at - 1]]
            taken = np.take_along_axis(odds, own[..., None], axis=-1)[..., 0]
            total += float((np.logaddexp2.reduce(odds, axis=-1) - taken).sum())
        return total


def _likelier(
    pairs: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], share: NDArray[np.float32], given: int | None = None
) -> NDArray[np.float32]:
    """Return log2 of p(k | given) / p(k) as [given, K] from pairs of what is given and the index."""
    given = given or len(share)
    cells = [one.ravel() * len(share) + index.ravel() for one, index in pairs]
    counts = np.bincount(np.concatenate(cells), minlength=given * len(share)).reshape(given, len(share))
    seen = counts.sum(1, keepdims=True).astype(np.float32)
    doubt = np.sqrt(seen) + 1  # pseudo-counts, in proportion to p(k)
    ratio: NDArray[np.float32] = np.log2(counts.astype(np.float32) / np.exp2(share) + doubt) - np.log2(seen + doubt)
    return ratio


class NetContext(nn.Module):
    """Embeddings of six neighbours and of the place → logits of K indices; `fit` trains it."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.index = nn.Embedding(count + 1, EMBEDDING)  # the last one stands for what lies outside
        self.place = nn.Embedding(SLOTS, EMBEDDING)  # of the cells of every grid
        self.hidden = nn.Linear((len(NEIGHBOURS) + 1) * EMBEDDING, HIDDEN)
        self.logits = nn.Linear(HIDDEN, count)

    @classmethod
    def fit(
        cls, grids: Sequence[NDArray[np.int64]], shares: Sequence[NDArray[np.float32]], out: Path | None = None
    ) -> Self:
        """Train on views [V, side, side, 1], an array for each side, or load what was trained before from `out`.

        `shares` holds one array [K], log2 p(k): where the logits start.
        """
        (share,) = shares
        torch.manual_seed(0)
        net = cls(len(share))
        if out is not None and (state := resume.load(out)) is not None:
            net.load_state_dict(state["net"])
            return net.eval()
        with torch.no_grad():
            net.logits.weight.zero_()
            net.logits.bias.copy_(torch.from_numpy(share) * np.log(2))
        views = [torch.from_numpy(grid[..., 0]) for grid in grids]
        epochs = min(max(PASSES // sum(map(len, views)), EPOCHS[0]), EPOCHS[1])
        steps = epochs * sum(-(-len(of_side) // BATCH_VIEWS) for of_side in views)
        optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
        net.train()
        for _ in range(epochs):
            batches = [b for of_side in views for b in of_side[torch.randperm(len(of_side))].split(BATCH_VIEWS)]
            for at in torch.randperm(len(batches)).tolist():
                batch = batches[at]
                loss = functional.cross_entropy(net(batch).flatten(0, 2), batch.flatten())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            resume.save(out, {"net": net.state_dict()})
        return net.eval()

    def forward(self, grids: Tensor) -> Tensor:
        """Return the logits [V, side, side, K] of every index from those before it in `grids` [V, side, side]."""
        side = grids.shape[1]
        padded = functional.pad(grids, (2, 2, 2, 0), value=self.count)
        near = [padded[:, 2 + dy : 2 + dy + side, 2 + dx : 2 + dx + side] for dy, dx in NEIGHBOURS]
        place = self.place.weight[SLOT[side] : SLOT[side] + side * side].view(1, side, side, -1)
        parts = [*(self.index(one) for one in near), place.expand(len(grids), -1, -1, -1)]
        seen = functional.dropout(torch.cat(parts, -1), DROPOUT, self.training)
        logits: Tensor = self.logits(functional.gelu(self.hidden(seen)))
        return logits

    @torch.no_grad()
    def bits(self, grid: NDArray[np.int64]) -> float:
        """Return the ideal bits of a view's indices [side, side, 1]."""
        view = torch.from_numpy(grid[None, ..., 0])
        nats = functional.cross_entropy(self(view).flatten(0, 2), view.flatten(), reduction="sum")
        return float(nats) / float(np.log(2))
