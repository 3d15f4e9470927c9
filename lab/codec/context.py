"""The context model while it is trained: floats, with gradients. ``shared.codec.context`` is what it becomes.

Promises the runtime's structure, its clipping of activations included; rounding comes once, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lab.codec.places import REACH, Places
from shared.codec.weights import ACTIVATION_BITS, ACTIVATION_MAX, STAGES, WEIGHT_BITS

CHANNELS = 12  # of a feature as its neighbours see it
DROPPED = 0.1  # share of these that training leaves out
FRACTION = 3  # bits: a predicted mean is a multiple of an eighth of a step
_MOST = ACTIVATION_MAX / (1 << ACTIVATION_BITS)


def spans(components: int) -> tuple[tuple[int, int], ...]:
    """First and last of each slice: single components first, wider slices where components say less."""
    ends = [1, 2, 3, 4, 6, 8, 12, 16, 20, 28, 40]
    while ends[-1] < components:
        ends.append(ends[-1] + max(24, ends[-1] // 2))
    return tuple(pairwise([0, *(end for end in ends if end < components), components]))


class Context(nn.Module):
    """Means and scales of the components of features, from those coded before. A quality has biases of its own."""

    def __init__(self, components: int, hidden: int, qualities: int, scale: float) -> None:
        """``scale``: the scale index to begin with."""
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

    def nothing(self, places: Places) -> Tensor:
        """Embedded features [T + 1, C + 1] before any is known."""
        return self.embed_w.new_zeros(len(places.stage) + 1, CHANNELS + 1)

    def embed(self, q: Tensor, quality: int) -> Tensor:
        """Whole features [R, M] → what their neighbours see of them [R, C + 1]."""
        seen = (q @ self.embed_w.T + self.embed_b[quality]).clamp(0, _MOST)
        if self.training:
            seen = nn.functional.dropout(seen, DROPPED)
        return torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)

    def expect(self, index: int, done: Tensor, near: Tensor | None, stage: int, quality: int) -> tuple[Tensor, Tensor]:
        """Slice ``index`` of features whose components before it are ``done`` [R, first] → (mean, scale index).

        ``near`` [R, K, C + 1] are the embedded features around them.
        """
        first, last = self.spans[index]
        h = done @ self.own_w[index, :, :first].T + self.own_b[quality, stage, index]
        if near is not None:
            h = h + near.flatten(1) @ self.around_w.T
        h = h.clamp(0, _MOST) @ self.mid_w[index].T + self.mid_b[quality, index]
        h = h.clamp(0, _MOST)
        mean, scale = h @ self.out_w[:, first:last].transpose(1, 2) + self.out_b[quality, :, None, first:last]
        return mean, scale

    @torch.no_grad()
    def integers(self) -> dict[str, Tensor]:
        """The tensors of ``CodecWeights`` by their names. Halves make its floors round."""
        weight, unit = 1 << WEIGHT_BITS, 1 << WEIGHT_BITS + ACTIVATION_BITS

        def whole(w: Tensor) -> Tensor:
            return (w * weight).round().clamp(-32767, 32767).to(torch.int16)

        own = self.own_w.clone()
        for index, (first, _) in enumerate(self.spans):
            own[index, :, first:] = 0
        half = torch.full_like(self.out_b, unit // 2)  # to the nearest table's scale
        half[:, 0] += unit >> FRACTION + 1  # a mean to the nearest fraction of a step, then to the nearest step
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
