"""The sampler: nucleus and top-k, and the same tokens as torch's multinomial after a full stable sort."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edge_server.engine.sampling import Sampler, SamplingParams


def by_full_sort(logits: Tensor, params: SamplingParams, generator: torch.Generator) -> int:
    """Sample as the published rule says, with torch's own sort."""
    probabilities = torch.softmax((logits - logits.max()).double() / params.temperature, dim=0)
    ordered, ids = probabilities.sort(descending=True, stable=True)
    if params.top_k:
        ordered = ordered[: params.top_k]
    if params.top_p < 1.0:
        before = ordered.cumsum(0) - ordered
        ordered = torch.where(before < params.top_p * ordered.sum(), ordered, 0.0)
    return int(ids[torch.multinomial(ordered, 1, generator=generator)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)  # bfloat16: many equal logits
@pytest.mark.parametrize("options", [{}, {"top_k": 40}, {"top_p": 0.9}, {"top_k": 3, "top_p": 0.5}], ids=str)
def test_tokens_are_those_of_a_full_sort(options: dict[str, float], dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    for seed in range(60):
        size = (5, 853, 4099)[seed % 3]
        logits = (torch.randn(size, generator=random) * (0.0, 1.0, 8.0)[seed % 7 % 3]).to(dtype).float()
        params = SamplingParams(max_tokens=1, temperature=0.3 + seed % 5, seed=seed, **options)  # type: ignore[arg-type]
        sampler, generator = Sampler(params), torch.Generator().manual_seed(seed)
        found = [sampler.sample(logits) for _ in range(3)]
        assert found == [by_full_sort(logits, params, generator) for _ in range(3)]


def test_top_p_keeps_only_the_likeliest_tokens() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    sampler = Sampler(SamplingParams(max_tokens=1, temperature=1.0, top_p=0.7, seed=5))
    assert {sampler.sample(logits) for _ in range(200)} == {0, 1}
    certain = Sampler(SamplingParams(max_tokens=1, temperature=1.0, top_p=1e-6, seed=5))
    assert {certain.sample(logits) for _ in range(50)} == {0}
    cold = Sampler(SamplingParams(max_tokens=1, temperature=1e-30, seed=5))
    assert {cold.sample(logits * 1e4) for _ in range(50)} == {0}


def test_top_k_keeps_k_tokens_and_top_p_applies_to_those() -> None:
    logits = torch.log(torch.tensor([0.05, 0.4, 0.3, 0.25]))
    for settings, kept in (({"top_k": 2}, {1, 2}), ({"top_k": 2, "top_p": 0.55}, {1}), ({"top_k": 99}, {0, 1, 2, 3})):
        sampler = Sampler(SamplingParams(max_tokens=1, temperature=1.0, seed=5, **settings))
        assert {sampler.sample(logits) for _ in range(200)} == kept
