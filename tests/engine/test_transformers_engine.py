"""What only the embedded engine does, on a tiny random Qwen3: memory, failures, turns among clients, reuse of rows."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from edge_server.engine import transformers as embedded
from edge_server.engine.base import Finish, Generation, Prompt
from edge_server.engine.kv_cache import KeyValueCache
from edge_server.engine.packed_decoder import STEP_ROWS, PackedDecoder, Segment
from edge_server.engine.sampling import SamplingParams
from edge_server.engine.transformers import TransformersEngine
from tests.server.raw_client import ANSWERED
from tofc.errors import CheckpointError, InvalidRequestError, LimitError, UnavailableError

HIDDEN, VOCABULARY, POSITIONS = 32, 61, 4096
ROW_BYTES = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, D, bytes of a float32


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


@pytest_asyncio.fixture(params=[True, False], ids=["packed", "in turns"])
async def engine(model: Qwen3ForCausalLM, request: pytest.FixtureRequest) -> AsyncIterator[TransformersEngine]:
    engine = TransformersEngine(model, [], parallel=12, queue=12, packed=request.param)
    yield engine
    await engine.stop()


class Computed:
    """Notes what every forward computes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.forwards: list[list[int]] = []  # rows of each segment
        run = PackedDecoder.run

        def noted(decoder: PackedDecoder, segments: list[Segment]) -> list[Tensor]:
            self.forwards.append([segment.count for segment in segments])
            return run(decoder, segments)

        monkeypatch.setattr(PackedDecoder, "run", noted)

    @property
    def prompt_rows(self) -> int:
        return sum(rows for forward in self.forwards for rows in forward if rows > 1)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Computed:
    return Computed(monkeypatch)


def fail_for_rows(monkeypatch: pytest.MonkeyPatch, rows: int, error: Exception) -> None:
    """Make every forward with a segment of this number of rows fail."""
    reserve = KeyValueCache.reserve

    def limited(cache: KeyValueCache, count: int) -> None:
        if count == rows:
            raise error
        reserve(cache, count)

    monkeypatch.setattr(KeyValueCache, "reserve", limited)


@pytest.fixture
def most_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note after every forward the bytes of all keys and values that exist."""
    alive: weakref.WeakSet[KeyValueCache] = weakref.WeakSet()
    made, run = KeyValueCache.__init__, PackedDecoder.run
    found: list[int] = []

    def noted(cache: KeyValueCache, *args: Any, **named: Any) -> None:
        made(cache, *args, **named)
        alive.add(cache)

    def measured(decoder: PackedDecoder, segments: list[Segment]) -> list[Tensor]:
        logits = run(decoder, segments)
        found.append(sum(cache.nbytes for cache in alive))
        return logits

    monkeypatch.setattr(KeyValueCache, "__init__", noted)
    monkeypatch.setattr(PackedDecoder, "run", measured)
    return found


async def until_idle(engine: TransformersEngine) -> None:
    async with asyncio.timeout(ANSWERED):
        while engine._running or engine._waiting:
            await asyncio.sleep(0.001)


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
    fail_for_rows(monkeypatch, 20, error)
    other = engine.submit(Prompt(embeds=embeds(1)), SamplingParams(max_tokens=4))
    with pytest.raises(LimitError) as refused:
        await collect(engine.submit(Prompt(embeds=embeds(2, 20)), SamplingParams(max_tokens=4)))
    assert refused.value.reason == "ENGINE_MEMORY" and "not enough memory" in refused.value.message
    assert await collect(other) == reference(model, embeds(1), 4)
    (record,) = [one for one in caplog.records if one.levelname in ("WARNING", "ERROR")]
    assert record.exc_info is None and record.getMessage().startswith("no memory for another token of a question")


async def test_a_failed_step_fails_only_whose_fault_it_is(
    engine: TransformersEngine,
    model: Qwen3ForCausalLM,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fail_for_rows(monkeypatch, 20, ArithmeticError("made up"))
    samples = engine.submit_samples(Prompt(embeds=embeds(2, 20)), SamplingParams(max_tokens=4), 3)
    others = [engine.submit(Prompt(embeds=embeds(seed)), SamplingParams(max_tokens=30)) for seed in range(4)]
    for one in samples:
        with pytest.raises(ArithmeticError):
            await collect(one)
    assert [await collect(one) for one in others] == [reference(model, embeds(seed), 30) for seed in range(4)]
    assert [one.getMessage() for one in caplog.records if one.levelname == "ERROR"] == ["a step failed"]


async def test_a_lost_gpu_ends_the_engine(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every further call would fail, so the server must stop taking questions instead of failing each."""
    lost: asyncio.Queue[UnavailableError | None] = asyncio.Queue()
    engine.watch(lost.put_nowait)
    fail_for_rows(monkeypatch, 20, RuntimeError("CUDA error: an illegal memory access was encountered"))
    others = [engine.submit(Prompt(embeds=embeds(n)), SamplingParams(max_tokens=2000)) for n in range(2)]
    assert [await anext(one) for one in others]
    others.append(engine.submit(Prompt(embeds=embeds(2, 20)), SamplingParams(max_tokens=4)))
    async with asyncio.timeout(ANSWERED):
        error = await lost.get()
    assert error is not None and error.reason == "ENGINE_LOST" and not engine.recovers
    for one in others:
        with pytest.raises(UnavailableError, match="the server's model has failed; try another server"):
            await collect(one)
    with pytest.raises(UnavailableError, match="has failed"):
        engine.submit(Prompt(embeds=embeds(0)), SamplingParams(max_tokens=1))


async def test_samples_read_their_prompt_once(engine: TransformersEngine, computed: Computed) -> None:
    samples = engine.submit_samples(Prompt(embeds=embeds(1, 40)), SamplingParams(max_tokens=5, temperature=1.0), 8)
    await asyncio.gather(*map(collect, samples))
    assert computed.prompt_rows == 40


async def test_the_next_turn_reads_only_what_is_new(
    engine: TransformersEngine, model: Qwen3ForCausalLM, computed: Computed
) -> None:
    rows = embeds(1, 3 * STEP_ROWS + 50)
    first, settings = 2 * STEP_ROWS + 20, SamplingParams(max_tokens=5)
    await collect(engine.submit(Prompt(embeds=rows[:first], client="a"), settings))
    assert computed.prompt_rows == first
    for client, read in (
        ("b", len(rows)),
        ("", len(rows)),
        ("a", len(rows) - first // engine._decoder.block * engine._decoder.block),
    ):
        before = computed.prompt_rows
        found = await collect(engine.submit(Prompt(embeds=rows, client=client), settings))
        assert computed.prompt_rows - before == read, f"client {client!r}"
        assert found == reference(model, rows, 5)


async def test_reused_rows_have_the_same_bits(model: Qwen3ForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone both times, so that this holds on every machine."""
    seen: list[Tensor] = []
    sample = embedded.Sampler.sample
    monkeypatch.setattr(
        embedded.Sampler, "sample", lambda self, logits: seen.append(logits.clone()) or sample(self, logits)
    )
    rows = embeds(1, 700)
    engine = TransformersEngine(model, [], packed=False)
    try:
        for embedding, client in ((rows, "new"), (rows[:600], "old"), (rows, "old")):
            await collect(engine.submit(Prompt(embeds=embedding, client=client), SamplingParams(max_tokens=4)))
    finally:
        await engine.stop()
    assert len(seen) == 12
    assert all(torch.equal(one, other) for one, other in zip(seen[:4], seen[8:], strict=True))


async def test_an_idle_engine_keeps_only_the_blocks_of_prompts(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[KeyValueCache] = weakref.WeakSet()
    made = KeyValueCache.__init__

    def noted(cache: KeyValueCache, *args: Any, **named: Any) -> None:
        made(cache, *args, **named)
        alive.add(cache)

    monkeypatch.setattr(KeyValueCache, "__init__", noted)
    await collect(engine.submit(Prompt(embeds=embeds(1)), SamplingParams(max_tokens=3)))
    await asyncio.gather(
        *map(collect, engine.submit_samples(Prompt(embeds=embeds(1, 70)), SamplingParams(max_tokens=3), 4))
    )
    await until_idle(engine)
    async with asyncio.timeout(ANSWERED):
        while engine.load().cache_bytes:
            await asyncio.sleep(0.001)
    gc.collect()
    assert not alive
    await collect(engine.submit(Prompt(embeds=embeds(1, 2 * STEP_ROWS + 5), client="a"), SamplingParams(max_tokens=3)))
    async with asyncio.timeout(ANSWERED):
        while engine.load().cache_bytes != 2 * STEP_ROWS * ROW_BYTES:
            await asyncio.sleep(0.001)


async def test_keys_and_values_stay_within_their_bytes(model: Qwen3ForCausalLM) -> None:
    engine = TransformersEngine(model, [], cache_bytes=1000 * ROW_BYTES, packed=True)
    try:
        for number in range(9):
            prompt = Prompt(embeds=embeds(number, 320), client=f"client {number % 2}")
            await collect(engine.submit(prompt, SamplingParams(max_tokens=2)))
            await until_idle(engine)
            assert engine.load().cache_bytes <= 1000 * ROW_BYTES
        assert engine.load().cache_bytes >= 640 * ROW_BYTES  # some are kept
        longs = [
            engine.submit(Prompt(embeds=embeds(n, 20), client="a"), SamplingParams(max_tokens=300)) for n in range(5)
        ]
        await asyncio.gather(*(anext(one) for one in longs[:3]))
        assert (engine.load().running, engine.load().waiting) == (3, 2)  # 320 rows each
        await longs[0].aclose()
        assert len(await collect(longs[3])) == 300
        huge = engine.submit(Prompt(embeds=embeds(9, 999)), SamplingParams(max_tokens=2))  # all of it, alone
        assert await collect(huge) == reference(model, embeds(9, 999), 1)
        with pytest.raises(InvalidRequestError, match="at most 999 rows"):
            engine.submit(Prompt(embeds=embeds(9, 1000)), SamplingParams(max_tokens=2))
    finally:
        await engine.stop()


async def test_rows_of_generated_tokens_and_of_long_prompts_count(
    model: Qwen3ForCausalLM, most_bytes: list[int]
) -> None:
    engine = TransformersEngine(model, [], cache_bytes=1000 * ROW_BYTES, packed=True)
    try:
        sizes = [(20, 300)] * 5 + [(700, 50), (20, 300), (600, 400)]
        asked = [
            engine.submit(Prompt(embeds=embeds(n, rows), client="a"), SamplingParams(max_tokens=tokens))
            for n, (rows, tokens) in enumerate(sizes)
        ]
        found = await asyncio.gather(*map(collect, asked))
        assert [len(one) for one in found] == [tokens for _, tokens in sizes]
    finally:
        await engine.stop()
    assert max(most_bytes) == 1000 * ROW_BYTES  # the last one's


async def test_a_prompt_whose_samples_wait_counts(model: Qwen3ForCausalLM, most_bytes: list[int]) -> None:
    engine = TransformersEngine(model, [], parallel=1, cache_bytes=1000 * ROW_BYTES, packed=True)
    ended: list[str] = []

    async def follow(name: str, generation: Generation) -> None:
        await collect(generation)
        ended.append(name)

    try:
        samples = engine.submit_samples(Prompt(embeds=embeds(0, 700), client="a"), SamplingParams(max_tokens=100), 2)
        other = engine.submit(Prompt(embeds=embeds(1, 600), client="b"), SamplingParams(max_tokens=9))
        await asyncio.gather(follow("b", other), *(follow("a", one) for one in samples))
    finally:
        await engine.stop()
    assert max(most_bytes) == 800 * ROW_BYTES
    assert ended == ["a", "a", "b"]


async def test_a_client_with_eight_questions_delays_another_by_at_most_two_steps(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Counter[str]] = []  # prompt rows of each client, step by step
    plan = engine._plan

    def noted() -> list[embedded._Work]:
        made = plan()
        rows: Counter[str] = Counter()
        for work in made:
            if isinstance(work.owner, embedded._Question):
                rows[work.owner.prompt.client] += work.segment.count
        plans.append(rows)
        return made

    monkeypatch.setattr(engine, "_plan", noted)
    many = [
        engine.submit(Prompt(embeds=embeds(number, 700), client="many"), SamplingParams(max_tokens=300))
        for number in range(8)
    ]
    await anext(many[0])
    before = len(plans)
    one = engine.submit(Prompt(embeds=embeds(9, 48), client="one"), SamplingParams(max_tokens=1))
    await collect(one)
    assert sum(rows["many"] for rows in plans[:before]) < 8 * 700, "the other client's prompts must still be unread"
    assert any(rows["one"] == 48 for rows in plans[before : before + 2])
    for generation in many:
        await generation.aclose()


@pytest.mark.parametrize(
    ("owner", "name"), [(embedded, "block_keys"), (KeyValueCache, "copy"), (KeyValueCache, "shrink")]
)
async def test_the_event_loop_does_not_wait_while_rows_are_hashed_or_copied(
    model: Qwen3ForCausalLM, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    loop, copying, asked = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    in_time: list[bool] = []
    real = getattr(owner, name)

    def held(*given: Any) -> Any:
        loop.call_soon_threadsafe(copying.set)
        in_time.append(asked.wait(ANSWERED))
        return real(*given)

    engine = TransformersEngine(model, [], packed=True)
    try:
        prompt = Prompt(embeds=embeds(1, 40), client="a")
        await collect(engine.submit(prompt, SamplingParams(max_tokens=3)))
        await until_idle(engine)
        monkeypatch.setattr(owner, name, held)
        generation = engine.submit(prompt, SamplingParams(max_tokens=3000))
        await anext(generation) if name == "shrink" else await copying.wait()
        await generation.aclose()
        await copying.wait()
        engine.load()
        asked.set()
    finally:
        await engine.stop()
    assert in_time == [True]


async def test_waiting_questions_start_in_turns_among_clients(model: Qwen3ForCausalLM) -> None:
    engine = TransformersEngine(model, [], parallel=1, packed=True)
    order: list[str] = []

    async def ask(client: str, number: int) -> None:
        prompt = Prompt(embeds=embeds(number), client=client)
        await collect(engine.submit(prompt, SamplingParams(max_tokens=3)))
        order.append(client)

    try:
        first = engine.submit(Prompt(embeds=embeds(99), client="a"), SamplingParams(max_tokens=3000))
        await anext(first)
        tasks = [asyncio.create_task(ask(client, n)) for n, client in enumerate(["a", "a", "a", "b", "c", "b"])]
        await asyncio.sleep(0)
        await first.aclose()
        await asyncio.gather(*tasks)
    finally:
        await engine.stop()
    assert order == ["b", "c", "a", "b", "a", "a"]


async def test_only_a_packed_engine_computes_several_requests_in_one_forward(
    engine: TransformersEngine, computed: Computed
) -> None:
    generations = [engine.submit(Prompt(embeds=embeds(seed)), SamplingParams(max_tokens=40)) for seed in range(6)]
    await asyncio.gather(*map(collect, generations))
    assert max(map(len, computed.forwards)) == (6 if engine._decoder.packed else 1)
    assert max(sum(rows for rows in forward if rows > 1) for forward in computed.forwards) <= STEP_ROWS


def test_a_decoder_with_sliding_windows_is_refused() -> None:
    config = Qwen3Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        vocab_size=61,
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=1,
    )
    with pytest.raises(CheckpointError, match="sliding_attention"):
        TransformersEngine(Qwen3ForCausalLM(config), [])
