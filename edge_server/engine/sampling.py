"""Logits → the next token, greedily or by temperature, top-k and top-p (nucleus sampling, arXiv 1904.09751).

Promises that one seed always draws the same tokens for the same logits, on any device, because the
drawing happens on the CPU with a generator of its own. Leaves stopping to the engine.
"""

import torch
from torch import Tensor

from edge_server.engine.base import Sampling


class Sampler:
    """Chooses the tokens of one answer."""

    def __init__(self, sampling: Sampling) -> None:
        self._temperature = sampling.temperature
        self._top_p = sampling.top_p
        self._top_k = sampling.top_k
        # torch takes seeds as signed numbers; the mask keeps every unsigned 64-bit seed usable
        self._generator = torch.Generator().manual_seed(sampling.seed & (2**63 - 1))

    def choose(self, logits: Tensor) -> int:
        """Logits float [V] on the CPU → a token id."""
        if self._temperature == 0.0:
            return int(logits.argmax())
        # Shifted first: a tiny temperature must not turn large logits into infinities.
        probabilities = torch.softmax((logits - logits.max()).double() / self._temperature, dim=0)
        ordered, ids = probabilities.sort(descending=True, stable=True)
        if self._top_k:
            ordered = ordered[: self._top_k]
        if self._top_p < 1.0:
            before = ordered.cumsum(0) - ordered  # mass of the more likely ones; the first always stays
            ordered = torch.where(before < self._top_p * ordered.sum(), ordered, 0.0)  # a share of what top-k left
        return int(ids[torch.multinomial(ordered, 1, generator=self._generator)])
