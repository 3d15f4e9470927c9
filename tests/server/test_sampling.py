"""Every option of pb.Sampling reaches the sampler, from the question or from the checkpoint."""

from __future__ import annotations

from dataclasses import fields

import pytest

from edge_server.engine.sampling import MERGED, SamplingParams
from tofc.errors import InvalidRequestError
from tofc.model.generation import GREEDY, GenerationConfig
from tofc.v1 import tofc_pb2 as pb


def test_the_sampler_has_the_options_of_the_protocol() -> None:
    known = {field.name for field in fields(SamplingParams)}
    assert {field.name for field in pb.Sampling.DESCRIPTOR.fields} == known
    assert known - set(MERGED) == {"max_tokens", "seed"}, "these two have no unset state"


def test_an_option_that_a_checkpoint_lacks_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(GenerationConfig, "top_k")
    defaults = GenerationConfig(temperature=0.5)
    object.__delattr__(defaults, "top_k")
    assert SamplingParams.merge(pb.Sampling(), defaults, 9) == SamplingParams(max_tokens=9, temperature=0.5)


def test_more_tokens_than_the_server_allows_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="max_tokens must be at most 9, got 10") as refused:
        SamplingParams.merge(pb.Sampling(max_tokens=10), GREEDY, 9)
    assert refused.value.reason == "TOO_MANY_TOKENS"


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InvalidRequestError, match=f"{next(iter(options))} must be"):
        SamplingParams(**{"max_tokens": 1, **options})  # type: ignore[arg-type]
