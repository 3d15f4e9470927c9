"""The context model during training, in floats with gradients; `tofc.codec.context.context_model` runs it in integers.

Promises the structure that the runtime has, including how it clips activations. Rounds weights once, in `integers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tofc.codec.context.context_model import STAGES
from tofc.codec.integer_net import ACTIVATION_BITS, ACTIVATION_MAX, WEIGHT_BITS
from tofc_lab.codec.places import REACH, Places
from tofc_lab.codec.residual_probabilities import FRACTION

CHANNELS = 12  # size of a feature's embedding, which is the input to the prediction of its neighbours
DROPPED = 0.1  # dropout of these embeddings
_MAX_ACTIVATION = ACTIVATION_MAX / (1 << ACTIVATION_BITS)


def spans(components: int) -> tuple[tuple[int, int], ...]:
    """Return (first, end) of each slice: of one component where components carry most, of more and more after that."""
    ends = [1, 2, 3, 4, 6, 8, 12, 16, 20, 28, 40]
    while ends[-1] < components:
        ends.append(ends[-1] + max(24, ends[-1] // 2))
    return tuple(pairwise([0, *(end for end in ends if end < components), components]))


class SliceBiases(NamedTuple):
    """What is added in each layer of a slice's prediction, the neighbours' part included; R or one row each."""

    own: Tensor  # [S, R, F]
    mid: Tensor  # [S, R, F]
    out: Tensor  # [2, R, M]


class ContextModel(nn.Module):
    """Predictor of mean and scale of a feature's components from those coded before. Biases differ by quality."""

    def __init__(self, components: int, hidden: int, qualities: int, scale: float) -> None:
        """Create the weights; `scale` is the initial scale index."""
        super().__init__()
        self.before: Tensor
        self.spans = spans(components)
        slices, near = len(self.spans), (2 * REACH + 1) ** 2 - 1

        def matrix(*shape: int, share: float = 1.0) -> nn.Parameter:
            return nn.Parameter((torch.rand(*shape) * 2 - 1) * share / shape[-1] ** 0.5)

        self.embed_w = matrix(CHANNELS, components)
        self.embed_b = nn.Parameter(torch.zeros(qualities, CHANNELS))
        self.around_w = matrix(hidden, near * (CHANNELS + 1))
        self.own_w = matrix(slices, hidden, components)
        self.own_b = nn.Parameter(matrix(STAGES, slices, hidden).detach().repeat(qualities, 1, 1, 1))
        self.mid_w = matrix(slices, hidden, hidden)
        self.mid_b = nn.Parameter(matrix(slices, hidden).detach().repeat(qualities, 1, 1))
        ends = torch.tensor([first for first, _ in self.spans])
        before = torch.arange(components) < ends[:, None, None]  # [S, 1, M]: components that a slice is predicted from
        self.register_buffer("before", before.float(), persistent=False)
        self.out_w = matrix(2, components, hidden, share=0.1)
        self.out_b = nn.Parameter(
            torch.stack([torch.zeros(components), torch.full((components,), scale)]).repeat(qualities, 1, 1)
        )
        with torch.no_grad():
            for (first, _), own in zip(self.spans, self.own_w, strict=True):
                own *= (components / max(first, 1)) ** 0.5

    def dropped(self, count: int) -> Tensor:
        """Return factors [T, C] of the embeddings of T features: those of dropout in training, else ones."""
        return nn.functional.dropout(self.embed_w.new_ones(count, CHANNELS), DROPPED, self.training)

    def embed(self, q: Tensor, quality: Tensor | int, dropped: Tensor) -> Tensor:
        """Return the embeddings [R, C + 1] of coded features [R, M], from which their neighbours are predicted.

        `quality` is that of all features, or of each [R].
        """
        seen = torch.addmm(self.embed_b[quality], q, self.embed_w.T).clamp(0, _MAX_ACTIVATION) * dropped
        return torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)

    def biases(self, quality: Tensor | int, stage: int, around: Tensor | None) -> SliceBiases:
        """Prepare the predictions of all slices of R features of a stage, at one quality, or at those of each [R].

        `around` [R, F] is the neighbours' part; None in the first stage, where no neighbour is known.
        """
        own = self.own_b[quality, stage].view(-1, len(self.spans), self.own_b.shape[-1]).transpose(0, 1)
        mid = self.mid_b[quality].view(-1, len(self.spans), self.mid_b.shape[-1]).transpose(0, 1)
        out = self.out_b[quality].view(-1, *self.out_b.shape[1:]).transpose(0, 1)
        return SliceBiases(own if around is None else own + around, mid, out)

    def expect_slice(self, index: int, q: Tensor, biases: SliceBiases) -> tuple[Tensor, Tensor]:
        """Predict (mean, scale index) [R, ·] of slice `index` from the components before it in q [R, M]."""
        first, last = self.spans[index]
        h = torch.addmm(biases.own[index], q[:, :first], self.own_w[index, :, :first].T)
        h = torch.addmm(biases.mid[index], h.clamp(0, _MAX_ACTIVATION), self.mid_w[index].T)
        h = h.clamp(0, _MAX_ACTIVATION).expand(2, -1, -1)
        mean, scale = torch.baddbmm(biases.out[..., first:last], h, self.out_w[:, first:last].transpose(1, 2))
        return mean, scale

    def expect(self, q: Tensor, places: Places, quality: int, dropped: Tensor) -> tuple[Tensor, Tensor]:
        """Predict (mean, scale index) [T, M] of all components at once, each from those of q [T, M] coded before it."""
        embedded = self.embed(q, quality, dropped)  # [T, C + 1]
        around = self.around(embedded, places, slice(None))
        # A product instead of indexing, whose backward pass sums in any order where a CPU has several threads.
        at = (places.stage[:, None] == torch.arange(STAGES, device=q.device)).to(q.dtype)  # [T, stages]
        biases = (at @ self.own_b[quality].flatten(1)).unflatten(1, (len(self.spans), -1)).transpose(0, 1)  # [S, T, F]
        own = (self.own_w * self.before).transpose(1, 2)
        h = torch.baddbmm(around + biases, q.expand(len(self.spans), -1, -1), own)
        h = torch.baddbmm(self.mid_b[quality][:, None], h.clamp(0, _MAX_ACTIVATION), self.mid_w.transpose(1, 2))
        out = self.out_w.transpose(0, 1).contiguous().split([last - first for first, last in self.spans])  # [L, 2, F]
        # Slices are unbound and split, not indexed: then the backward pass puts their gradients together once.
        parts = [
            (part @ w.flatten(0, 1).T).unflatten(1, (-1, 2))
            for part, w in zip(h.clamp(0, _MAX_ACTIVATION).unbind(), out, strict=True)
        ]
        mean, scale = (torch.cat(parts, dim=1) + self.out_b[quality].T).unbind(-1)  # [T, M] each
        return mean, scale

    def around(self, embedded: Tensor, places: Places, rows: Tensor | slice) -> Tensor:
        """Return the part [R, F] of neighbours that are coded in an earlier stage than the feature of each row.

        `embedded` [T, C + 1] are the embeddings of all features.
        """
        near = places.around[rows]  # [R, K]; T: no neighbour
        padded = torch.cat([embedded, embedded.new_zeros(1, CHANNELS + 1)])
        stages = torch.cat([places.stage, places.stage.new_full((1,), STAGES)])
        earlier = stages[near] < places.stage[rows][:, None]
        return (padded[near] * earlier[..., None]).flatten(1) @ self.around_w.T

    @torch.no_grad()
    def integers(self) -> dict[str, Tensor]:
        """Return the integer tensors of `ContextWeights` by name. The runtime rounds down, so halves are added here."""
        weight, unit = 1 << WEIGHT_BITS, 1 << WEIGHT_BITS + ACTIVATION_BITS

        def whole(w: Tensor) -> Tensor:
            return (w * weight).round().clamp(-32767, 32767).to(torch.int16)

        own = self.own_w * self.before
        half = torch.full_like(self.out_b, unit // 2)  # rounds a scale to that of the nearest table
        half[:, 0] += unit >> FRACTION + 1  # rounds a mean to the nearest fraction of a step, then to the nearest step
        biases = {"embed_b": self.embed_b * unit, "own_b": self.own_b * unit, "mid_b": self.mid_b * unit}
        found = {name: (bias + weight // 2).round().to(torch.int32) for name, bias in biases.items()}
        found["out_b"] = (self.out_b * unit + half).round().to(torch.int32)
        named: Sequence[tuple[str, Tensor]] = [
            ("embed_w", self.embed_w),
            ("around_w", self.around_w),
            ("own_w", own),
            ("mid_w", self.mid_w),
            ("out_w", self.out_w),
        ]
        return found | {name: whole(w) for name, w in named}
