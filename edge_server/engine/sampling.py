"""How the tokens of one answer are sampled: the question's options, the checkpoint's defaults, and the sampler.

    pb.Sampling ─┐
                 ├─ by field name ─→ SamplingParams ─→ Sampler: logits [V] → token id
    checkpoint's ┘    checked

Promises that one seed gives the same tokens for the same logits on every device, because sampling runs on the CPU with
its own generator. An option that is optional in pb.Sampling is merged by its name: adding one adds a field here and its
use in `Sampler.sample`. Leaves stopping to the engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tofc.errors import InvalidRequestError
from tofc.model.generation import GenerationConfig
from tofc.v1 import tofc_pb2 as pb

if TYPE_CHECKING:
    from torch import Tensor

#: options that fall back to the checkpoint's defaults: those that may be unset in pb.Sampling
MERGED = [field.name for field in pb.Sampling.DESCRIPTOR.fields if field.has_presence]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one answer is sampled, checked. The defaults switch each option off."""

    max_tokens: int
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    seed: int = 0  # of this answer only

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InvalidRequestError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not 0.0 <= self.temperature <= 100.0:  # also refuses NaN
            raise InvalidRequestError(f"temperature must be 0 (greedy) to 100, got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise InvalidRequestError(f"top_p must be more than 0 and at most 1, got {self.top_p}")
        if self.top_k < 0:
            raise InvalidRequestError(f"top_k must be 0 (off) or more, got {self.top_k}")

    @classmethod
    def merge(cls, asked: pb.Sampling, defaults: GenerationConfig, max_new_tokens: int) -> SamplingParams:
        """Return a question's options, those that are unset from the checkpoint. Raises InvalidRequestError."""
        if asked.max_tokens > max_new_tokens:
            raise InvalidRequestError(
                f"max_tokens must be at most {max_new_tokens}, got {asked.max_tokens}; ask for fewer, or start the "
                "server with a larger --max-new-tokens",
                reason="TOO_MANY_TOKENS",
            )
        options = {name: getattr(defaults, name) for name in MERGED if hasattr(defaults, name)}
        options |= {name: getattr(asked, name) for name in MERGED if asked.HasField(name)}
        max_tokens = asked.max_tokens or min(defaults.max_tokens or max_new_tokens, max_new_tokens)
        return cls(max_tokens=max_tokens, seed=asked.seed, **options)


class Sampler:
    """Samples one answer: greedily, or by temperature, top-k and top-p (nucleus sampling, arXiv 1904.09751).

    torch is imported here only, so that parameters are checked without it.
    """

    def __init__(self, params: SamplingParams) -> None:
        import torch

        self._params = params
        # torch takes seeds as signed numbers; the mask keeps every unsigned 64-bit seed usable
        self._generator = torch.Generator().manual_seed(params.seed & (2**63 - 1))

    def sample(self, logits: Tensor) -> int:
        """Turn logits, float [V] on the CPU, into a token id."""
        import torch

        params = self._params
        if params.temperature == 0.0:
            return int(logits.argmax())
        # Shifted first: a tiny temperature must not turn large logits into infinities.
        probabilities = torch.softmax((logits - logits.max()).double() / params.temperature, dim=0)
        ordered = _descending(probabilities, params.top_k)
        if params.top_p < 1.0:
            before = ordered.cumsum(0) - ordered  # mass of the more likely tokens; the first always stays
            ordered = torch.where(before < params.top_p * ordered.sum(), ordered, 0.0)  # a share of what top-k left
        rank = int(torch.multinomial(ordered, 1, generator=self._generator))
        likelier = int((probabilities > ordered[rank]).sum())
        return int((probabilities == ordered[rank]).nonzero()[rank - likelier])  # equals are in the order of their ids


def _descending(values: Tensor, most: int) -> Tensor:
    """Sort the `most` largest values of [V], all if 0, by numpy: ten times as fast as torch, which sorts ids too."""
    import torch

    array = values.numpy()
    if 0 < most < len(array):
        array = np.partition(array, -most)[-most:]
    return torch.from_numpy(-np.sort(-array))
