"""The index codec as a torch module: codebooks, and the context model in floats with gradients.

`tofc.codec.index` runs it in integers. Promises the structure that the runtime has, including how it clips activations;
logits are base-2 logarithms. Leaves rounding to `export`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from tofc.codec.index.logits import CODE_BITS
from tofc.codec.index.waves import earlier_offsets
from tofc.codec.index.weights import IndexWeights
from tofc.codec.integer_net import ACTIVATION_BITS, ACTIVATION_MAX, WEIGHT_BITS
from tofc_lab.codec.index.codebooks import Codebook
from tofc_lab.codec.index.grids import Grids, Order

REACH = 2
CHANNELS = 32  # C: size of a feature's embedding
DROPPED = 0.1  # dropout of these embeddings
MAX_ACTIVATION = ACTIVATION_MAX / (1 << ACTIVATION_BITS)
CODE_MAX = 127  # of the numbers in a codebook, in units of 2^-CODE_BITS
BEAM = 3


class IndexModel(nn.Module):
    """Codebooks of all stages and the context model of their indices. Biases differ by quality."""

    codewords: Tensor
    scale: Tensor

    def __init__(
        self,
        books: Sequence[Codebook],
        *,
        learned: int,
        hidden: int,
        qualities: int,
        sides: Sequence[int],
        channels: int = CHANNELS,
    ) -> None:
        """Create the weights; `books` are the codebooks of each stage, `sides` the sides of the views' grids."""
        super().__init__()
        self.sizes = [len(book.bits) for book in books]
        self.qualities, self.learned_size, self.channels = qualities, learned, channels
        components, stages = books[0].codewords.shape[1], len(books)
        self.register_buffer("codewords", torch.cat([book.codewords for book in books]))
        largest = torch.stack([book.codewords.abs().amax(0) for book in books])
        self.register_buffer("scale", largest.clamp(min=1e-6) / CODE_MAX)
        numbers, near = components + learned, len(earlier_offsets(REACH))

        def matrix(*shape: int, share: float = 1.0) -> nn.Parameter:
            return nn.Parameter((torch.rand(*shape) * 2 - 1) * share / max(shape[-1], 1) ** 0.5)

        self.learned = nn.Parameter(torch.randn(sum(self.sizes), learned) * 0.5)
        self.embed_w = matrix(stages, channels, numbers)
        self.embed_b = nn.Parameter(torch.zeros(qualities, channels))
        self.around_w = matrix(hidden, near * (channels + 1))
        self.before_w = matrix(hidden, channels + 1)
        self.own_w = matrix(stages - 1, hidden, channels)
        self.first_b = nn.Parameter(matrix(stages, hidden).detach().repeat(qualities, 1, 1))
        self.mid_w = matrix(stages, hidden, hidden)
        self.mid_b = nn.Parameter(matrix(stages, hidden).detach().repeat(qualities, 1, 1))
        self.out_w = nn.Parameter(torch.zeros(stages, numbers, hidden))
        self.out_b = nn.Parameter(torch.zeros(qualities, stages, numbers))
        self.code_b = nn.Parameter(-torch.cat([book.bits for book in books]).repeat(qualities, 1))
        self.place = nn.ParameterDict({str(side): torch.zeros(side * side, hidden) for side in sides})
        self.order = {side: Order.of(side, REACH) for side in sides}

    @classmethod
    @torch.no_grad()
    def of(cls, weights: IndexWeights) -> Self:
        """Return the model that was exported as `weights`, up to rounding."""
        c, unit = weights.config, 1 << WEIGHT_BITS
        books = [Codebook(torch.from_numpy(words).float(), torch.zeros(len(words))) for words in weights.codewords()]
        model = cls(
            books,
            learned=c.learned,
            hidden=c.context_hidden,
            qualities=c.qualities,
            sides=sorted(weights.place),
            channels=c.channels,
        )
        model.scale.copy_(torch.tensor(weights.scale))
        model.learned.copy_(torch.tensor(weights.codebook[:, c.components :] / (1 << CODE_BITS)))
        for name in ("embed_w", "around_w", "before_w", "own_w", "mid_w", "out_w"):
            getattr(model, name).copy_(torch.tensor(getattr(weights, name) / unit))
        for name in ("embed_b", "first_b", "mid_b", "out_b"):
            getattr(model, name).copy_(torch.tensor(getattr(weights, name) / (unit << ACTIVATION_BITS)))
        model.code_b.copy_(torch.tensor(weights.code_b / (1 << CODE_BITS + ACTIVATION_BITS)))
        for side, table in weights.place.items():
            model.place[str(side)].copy_(torch.tensor(table / (unit << ACTIVATION_BITS)))
        return model

    @property
    def spans(self) -> list[tuple[int, int]]:
        """(first, last + 1) row of each stage's codebook."""
        ends = [sum(self.sizes[: stage + 1]) for stage in range(len(self.sizes))]
        return list(zip([0, *ends], ends, strict=False))

    def rows(self) -> list[Tensor]:
        """Return each stage's codebook [K, M + E] as the context model sees it."""
        found = []
        for (first, last), scale in zip(self.spans, self.scale, strict=True):
            unit = 1 << CODE_BITS
            whole = (self.codewords[first:last] / scale).round().clamp(-CODE_MAX, CODE_MAX) / unit
            learned = self.learned[first:last].clamp(-CODE_MAX / unit, CODE_MAX / unit)
            found.append(torch.cat([whole, learned], dim=1))
        return found

    def loss(self, side: int, index: Tensor, present: Tensor, quality: Tensor) -> Tensor:
        """Return the bits [T, S] of the indices [V, G², S] of the T features present in views of qualities [V]."""
        around, own = self.contexts(side, index, present, quality)
        of, taken = quality[present.nonzero(as_tuple=True)[0]], index[present]
        return torch.stack(
            [
                bits_of(self.logits(stage, row, around, own[stage], of), taken[:, stage])
                for stage, row in enumerate(self.rows())
            ],
            dim=-1,
        )

    def contexts(
        self, side: int, index: Tensor, present: Tensor, quality: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Return what is known before each of the T features: around it [T, F], and its own earlier stages [T, C]."""
        order = self.order[side]
        tables = [row @ w.T for row, w in zip(self.rows(), self.embed_w, strict=True)]
        sums = [self.embed_b[quality][:, None].expand(-1, index.shape[1], -1)]
        for stage, table in enumerate(tables):
            sums.append(sums[-1] + table[index[..., stage]])
        whole = self._dropped(sums[-1].clamp(0, MAX_ACTIVATION))
        known = torch.cat([whole, torch.ones_like(whole[..., :1])], dim=-1) * present[..., None]
        padded = torch.cat([known, torch.zeros_like(known[:, :1])], dim=1)
        around = padded[:, order.near].flatten(2) @ self.around_w.T + self.place[str(side)]
        total = order.before @ known
        around = around + (total / total[..., -1:].clamp(min=1)) @ self.before_w.T
        stages = range(1, len(tables))
        return around[present], [None, *(self._dropped(sums[s][present].clamp(0, MAX_ACTIVATION)) for s in stages)]

    def logits(self, stage: int, row: Tensor, around: Tensor, own: Tensor | None, quality: Tensor) -> Tensor:
        """Return the logits [..., K]; `quality` [...] broadcasts to the features."""
        h = self.first_layer(stage, around, own, quality) @ self.mid_w[stage].T + self.mid_b[quality, stage]
        query = h.clamp(0, MAX_ACTIVATION) @ self.out_w[stage].T + self.out_b[quality, stage]
        first, last = self.spans[stage]
        return query @ row.T + self.code_b[quality, first:last]

    def first_layer(self, stage: int, around: Tensor, own: Tensor | None, quality: Tensor | int) -> Tensor:
        """Return the activations [..., F] of the first layer from what `contexts` returns."""
        h = around + self.first_b[quality, stage]
        if own is not None:
            h = h + own @ self.own_w[stage - 1].T
        return h.clamp(0, MAX_ACTIVATION)

    def _dropped(self, embedded: Tensor) -> Tensor:
        return nn.functional.dropout(embedded, DROPPED, self.training)

    @torch.no_grad()
    def choose(self, views: Grids, quality: Tensor, price: Tensor) -> Tensor:
        """Return the indices [V, G², S] of views of qualities [V], chosen as `tofc.codec.index.chooser` does.

        `price` [Q] is λ, squared distance per bit.
        """
        order, rows, stages = self.order[views.side], self.rows(), len(self.sizes)
        codewords = [self.codewords[first:last] for first, last in self.spans]
        squares = [book.square().sum(1) for book in codewords]
        tables = [row @ w.T for row, w in zip(rows, self.embed_w, strict=True)]
        count, cells = views.present.shape
        index = torch.zeros(count, cells, stages, dtype=torch.long)
        known = torch.zeros(count, cells + 1, self.channels + 1)
        total = torch.zeros(count, self.channels + 1)
        for wave in order.waves:
            around = known[:, order.near[wave]].flatten(2) @ self.around_w.T + self.place[str(views.side)][wave]
            around = around + ((total / total[:, -1:].clamp(min=1)) @ self.before_w.T)[:, None]
            here = views.present[:, wave]
            view, _ = here.nonzero(as_tuple=True)
            if not len(view):
                continue
            near, y, q = around[here], views.y[:, wave][here], quality[view]
            owner = torch.arange(len(view))
            chosen, rest, spent = torch.zeros(len(view), 0, dtype=torch.long), y, torch.zeros(len(view))
            for stage in range(stages):
                of = q[owner]
                own = None
                if stage:
                    sums = self.embed_b[of] + sum(tables[s][chosen[:, s]] for s in range(stage))
                    own = sums.clamp(0, MAX_ACTIVATION)
                logits = self.logits(stage, rows[stage], near[owner], own, of)
                bits = torch.logsumexp(logits * LN2, -1, keepdim=True) / LN2 - logits
                cost = squares[stage] - 2 * rest @ codewords[stage].T + price[of][:, None] * bits
                cost = cost + (rest.square().sum(1) + spent)[:, None]
                kept = 1 if stage + 1 == stages else min(BEAM, cost.shape[1])
                best = cost.view(len(view), -1).topk(kept, dim=1, largest=False).indices
                size, held = cost.shape[1], len(owner) // len(view)
                picked = (torch.arange(len(view))[:, None] * held + best // size).flatten()
                taken = (best % size).flatten()
                left = rest[picked] - codewords[stage][taken]
                spent = cost[picked, taken] - left.square().sum(1)
                owner, rest, chosen = owner[picked], left, torch.cat([chosen[picked], taken[:, None]], dim=1)
            part = index[:, wave]
            part[here] = chosen
            index[:, wave] = part
            sums = self.embed_b[q] + sum(tables[s][chosen[:, s]] for s in range(stages))
            embedded = torch.zeros(*here.shape, self.channels + 1)
            embedded[here] = torch.cat([sums.clamp(0, MAX_ACTIVATION), torch.ones(len(view), 1)], dim=1)
            known[:, wave] = embedded
            total = total + embedded.sum(1)
        return index

    @torch.no_grad()
    def move_codewords(self, sums: Tensor, counts: Tensor) -> None:
        """Move each codeword [ΣK, M] to the mean of what was coded with it; `sums` and `counts` are over features."""
        doubt = 2.0  # features that speak for the codeword as it is
        self.codewords.copy_((sums + doubt * self.codewords) / (counts + doubt)[:, None])
        for (first, last), scale in zip(self.spans, self.scale, strict=True):
            scale.copy_(self.codewords[first:last].abs().amax(0).clamp(min=1e-6) / CODE_MAX)


def bits_of(logits: Tensor, taken: Tensor) -> Tensor:
    """Return the bits [T] of the indices [T] under base-2 logits [T, K]."""
    return torch.logsumexp(logits * LN2, -1) / LN2 - logits.gather(-1, taken[:, None])[:, 0]


LN2 = 0.6931471805599453
