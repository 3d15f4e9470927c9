"""The embedded engine against transformers' own generate, on a tiny random Qwen3."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM

from edge_server.engine import transformers as embedded
from edge_server.engine.base import Finish, Generation, Prompt
from edge_server.engine.sampling import Sampler, SamplingParams
from edge_server.engine.transformers import TransformersEngine
from tests.server.raw_client import ANSWERED
from tofc.errors import LimitError, UnavailableError

HIDDEN, VOCABULARY, POSITIONS = 32, 61, 64


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    torch.manual_seed(7)
    config = Qwen3Config(
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
        initializer_range=0.5,  # logits far apart
        eos_token_id=None,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config).eval()


@pytest_asyncio.fixture
async def engine(model: Qwen3ForCausalLM) -> AsyncIterator[TransformersEngine]:
    engine = TransformersEngine(model, [], parallel=3, queue=2)
    yield engine
    await engine.stop()


def embeds(seed: int, length: int = 9) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((length, HIDDEN)).astype(np.float32)


def reference(model: Qwen3ForCausalLM, rows: NDArray[np.float32], count: int) -> list[int]:
    found = model.generate(
        inputs_embeds=torch.from_numpy(rows)[None],
        attention_mask=torch.ones(1, len(rows), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
    )
    return [int(token) for token in found[0]]


async def collect(generation: Generation) -> list[int]:
    return [token async for token in generation]


async def test_greedy_answers_equal_generate_alone_and_beside_others(
    model: Qwen3ForCausalLM, engine: TransformersEngine
) -> None:
    wanted = [reference(model, embeds(seed, 5 + seed), 12) for seed in range(5)]
    alone = await collect(engine.submit(Prompt(embeds=embeds(0, 5)), SamplingParams(max_tokens=12)))
    together = await asyncio.gather(
        *(
            collect(engine.submit(Prompt(embeds=embeds(seed, 5 + seed)), SamplingParams(max_tokens=12)))
            for seed in range(5)
        )
    )
    assert alone == wanted[0]
    assert together == wanted
    assert len({tuple(one) for one in wanted}) == 5  # the prompts matter


async def test_a_stop_token_ends_the_answer_and_is_not_part_of_it(model: Qwen3ForCausalLM) -> None:
    wanted = reference(model, embeds(1), 12)
    stop = wanted[5]
    engine = TransformersEngine(model, [stop])
    try:
        generation = engine.submit(Prompt(embeds=embeds(1)), SamplingParams(max_tokens=12))
        assert await collect(generation) == wanted[: wanted.index(stop)]
        assert generation.finish is Finish.STOP
    finally:
        await engine.stop()


async def test_an_answer_ends_with_the_models_positions(engine: TransformersEngine) -> None:
    generation = engine.submit(Prompt(embeds=embeds(2, POSITIONS - 3)), SamplingParams(max_tokens=50))
    assert len(await collect(generation)) == 3
    assert generation.finish is Finish.LENGTH
    assert generation.prefill_ms > 0


async def test_a_seed_fixes_a_sampled_answer(engine: TransformersEngine) -> None:
    def sampled(seed: int) -> Generation:
        return engine.submit(
            Prompt(embeds=embeds(3)), SamplingParams(max_tokens=20, temperature=3.0, top_p=0.95, seed=seed)
        )

    first, other, again = await asyncio.gather(collect(sampled(1)), collect(sampled(2)), collect(sampled(1)))
    assert first == again
    assert first != other
    await collect(
        engine.submit(Prompt(embeds=embeds(3)), SamplingParams(max_tokens=1, temperature=1.0, seed=2**64 - 1))
    )


async def test_closing_stops_between_steps_and_frees_the_slot(
    model: Qwen3ForCausalLM, engine: TransformersEngine
) -> None:
    longs = [engine.submit(Prompt(embeds=embeds(seed)), SamplingParams(max_tokens=50)) for seed in range(5)]
    with pytest.raises(LimitError, match="ask again") as refused:
        engine.submit(Prompt(embeds=embeds(9)), SamplingParams(max_tokens=1))
    assert refused.value.reason == "ENGINE_BUSY"
    await anext(longs[0])
    for one in longs:
        await one.aclose()
    # Only slots that were released let this one through.
    assert await collect(engine.submit(Prompt(embeds=embeds(9)), SamplingParams(max_tokens=4))) == reference(
        model, embeds(9), 4
    )


async def test_an_idle_engine_holds_no_cache(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[DynamicCache]] = []

    class Seen(DynamicCache):
        def __init__(self, **settings: object) -> None:
            super().__init__(**settings)
            made.append(weakref.ref(self))

    monkeypatch.setattr(embedded, "DynamicCache", Seen)
    await collect(engine.submit(Prompt(embeds=embeds(1)), SamplingParams(max_tokens=3)))
    async with asyncio.timeout(ANSWERED):
        while made[0]() is not None:
            await asyncio.sleep(0.01)
            gc.collect()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("[enforce fail] . DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("std::bad_alloc"),
    ],
    ids=repr,
)
async def test_running_out_of_memory_fails_one_question_only(
    engine: TransformersEngine,
    model: Qwen3ForCausalLM,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    first = TransformersEngine._prefill

    def short(of: TransformersEngine, request: embedded._Request) -> torch.Tensor:
        if request.prompt is not None and len(request.prompt.embeds) == 20:
            raise error
        return first(of, request)

    monkeypatch.setattr(TransformersEngine, "_prefill", short)
    other = engine.submit(Prompt(embeds=embeds(1)), SamplingParams(max_tokens=4))
    with pytest.raises(LimitError) as refused:
        await collect(engine.submit(Prompt(embeds=embeds(2, 20)), SamplingParams(max_tokens=4)))
    assert refused.value.reason == "ENGINE_MEMORY" and "not enough memory" in refused.value.message
    assert await collect(other) == reference(model, embeds(1), 4)
    (record,) = [one for one in caplog.records if one.levelname in ("WARNING", "ERROR")]
    assert record.exc_info is None and record.getMessage().startswith("no memory for another token of a question")


async def test_stopping_fails_unfinished_answers(model: Qwen3ForCausalLM) -> None:
    engine = TransformersEngine(model, [], parallel=1)
    running, waiting = (engine.submit(Prompt(embeds=embeds(n)), SamplingParams(max_tokens=50)) for n in range(2))
    await anext(running)
    await engine.stop()
    with pytest.raises(UnavailableError):
        await collect(waiting)
    with pytest.raises(UnavailableError):
        engine.submit(Prompt(embeds=embeds(1)), SamplingParams(max_tokens=1))


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
