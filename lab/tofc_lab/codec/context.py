"""The context model during training, in floats with gradients; `tofc.codec.context.context_model` runs it in integers.

Promises the structure that the runtime has, including how it clips activations. Rounds weights once, in `integers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

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


class ContextModel(nn.Module):
    """Predictor of mean and scale of a feature's components from those coded before. Biases differ by quality."""

    def __init__(self, components: int, hidden: int, qualities: int, scale: float) -> None:
        """Create the weights; `scale` is the initial scale index."""
        super().__init__()
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
        self.out_w = matrix(2, components, hidden, share=0.1)
        self.out_b = nn.Parameter(
            torch.stack([torch.zeros(components), torch.full((components,), scale)]).repeat(qualities, 1, 1)
        )
        with torch.no_grad():
            for (first, _), own in zip(self.spans, self.own_w, strict=True):
                own *= (components / max(first, 1)) ** 0.5

    def initial_embeddings(self, places: Places) -> Tensor:
        """Return the embeddings [T + 1, C + 1] before any feature is known: zeros."""
        return self.embed_w.new_zeros(len(places.stage) + 1, CHANNELS + 1)

    def embed(self, q: Tensor, quality: int) -> Tensor:
        """Return the embeddings [R, C + 1] of coded features [R, M], from which their neighbours are predicted."""
        seen = (q @ self.embed_w.T + self.embed_b[quality]).clamp(0, _MAX_ACTIVATION)
        if self.training:
            seen = nn.functional.dropout(seen, DROPPED)
        return torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)

    def expect(self, index: int, done: Tensor, near: Tensor | None, stage: int, quality: int) -> tuple[Tensor, Tensor]:
        """Predict (mean, scale index) of slice `index`, given the components before it, `done` [R, first].

        `near` [R, K, C + 1] are the embeddings of the neighbours.
        """
        first, last = self.spans[index]
        h = done @ self.own_w[index, :, :first].T + self.own_b[quality, stage, index]
        if near is not None:
            h = h + near.flatten(1) @ self.around_w.T
        h = h.clamp(0, _MAX_ACTIVATION) @ self.mid_w[index].T + self.mid_b[quality, index]
        h = h.clamp(0, _MAX_ACTIVATION)
        mean, scale = h @ self.out_w[:, first:last].transpose(1, 2) + self.out_b[quality, :, None, first:last]
        return mean, scale

    @torch.no_grad()
    def integers(self) -> dict[str, Tensor]:
        """Return the integer tensors of `ContextWeights` by name. The runtime rounds down, so halves are added here."""
        weight, unit = 1 << WEIGHT_BITS, 1 << WEIGHT_BITS + ACTIVATION_BITS

        def whole(w: Tensor) -> Tensor:
            return (w * weight).round().clamp(-32767, 32767).to(torch.int16)

        own = self.own_w.clone()
        for index, (first, _) in enumerate(self.spans):
            own[index, :, first:] = 0
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
