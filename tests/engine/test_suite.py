"""What every engine promises, with nano's prompts: fakes and real engines pass the same tests (`engines.ENGINES`)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from edge_server.engine.base import Engine, Finish, Generation, Prompt
from edge_server.engine.sampling import SamplingParams
from tests.engine.conftest import Start
from tests.engine.engines import EngineUnderTest
from tests.engine.nano import LONG, Nano
from tests.server.raw_client import ANSWERED
from tofc.errors import InvalidRequestError, LimitError, UnavailableError


async def collect(generation: Generation) -> list[int]:
    async with asyncio.timeout(ANSWERED * 20):  # instead of hanging, on any machine
        return [token async for token in generation]


async def collect_all(generations: Sequence[Generation]) -> list[list[int]]:
    return list(await asyncio.gather(*map(collect, generations)))


async def until_running(engine: Engine, count: int) -> None:
    async with asyncio.timeout(ANSWERED):
        while engine.load().running != count:
            await asyncio.sleep(0.001)


def sampled(tokens: int, seed: int) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=2.0, seed=seed)


async def test_greedy_answers_are_those_of_transformers_and_the_stop_token_is_no_part_of_them(
    start: Start, nano: Nano
) -> None:
    engine = await start()
    assert len(nano.prompts) >= 50
    generations = [engine.submit(prompt, SamplingParams(max_tokens=16)) for prompt in nano.prompts]
    assert await collect_all(generations) == nano.answers
    assert {one.finish for one in generations} == {Finish.STOP}
    assert len({tuple(answer) for answer in nano.answers}) > 5  # the prompts matter


async def test_long_answers_are_those_of_transformers_alone_and_in_company(start: Start, nano: Nano) -> None:
    engine = await start(stops=False)
    settings = SamplingParams(max_tokens=LONG)
    alone = [await collect(engine.submit(prompt, settings)) for prompt in nano.prompts[:4]]
    together = [engine.submit(prompt, settings) for prompt in nano.prompts]
    assert await collect_all(together) == nano.long_answers
    assert alone == nano.long_answers[:4]
    assert {one.finish for one in together} == {Finish.LENGTH}


async def test_a_sample_depends_on_its_seed_only(start: Start, nano: Nano, under_test: EngineUnderTest) -> None:
    engine = await start(stops=False)
    first = nano.prompts[0]
    alone = [await collect(engine.submit(first, sampled(12, seed=2**64 - 2 + i if i < 2 else i - 2))) for i in range(5)]
    company = nano.prompts[1:9] if under_test.exact_company else []
    others = [engine.submit(prompt, sampled(20, seed=3)) for prompt in company]
    together = engine.submit_samples(first, sampled(12, seed=2**64 - 2), 5)
    assert await collect_all(together) == alone
    assert len({tuple(answer) for answer in alone}) == (5 if under_test.samples else 1)
    await collect_all(others)


async def test_each_sample_can_be_closed_alone(start: Start, nano: Nano) -> None:
    engine = await start(stops=False)
    whole = await collect_all(engine.submit_samples(nano.prompts[0], sampled(12, seed=1), 4))
    samples = engine.submit_samples(nano.prompts[0], sampled(12, seed=1), 4)
    await samples[2].aclose()
    found = await collect_all(samples)
    assert [found[i] for i in (0, 1, 3)] == [whole[i] for i in (0, 1, 3)]
    assert found[2] == []
    await until_running(engine, 0)


async def test_more_samples_than_run_at_once_are_answered(start: Start, nano: Nano) -> None:
    wanted = await collect_all((await start(stops=False)).submit_samples(nano.prompts[0], sampled(5, seed=1), 9))
    few = await start(stops=False, parallel=2, queue=7)
    assert await collect_all(few.submit_samples(nano.prompts[0], sampled(5, seed=1), 9)) == wanted


async def test_closing_ends_an_answer_within_two_steps(start: Start, nano: Nano, under_test: EngineUnderTest) -> None:
    engine = await start(stops=False)
    if under_test.steps is None:
        pytest.skip("the steps of this engine cannot be seen")
    generation = engine.submit(nano.prompts[0], SamplingParams(max_tokens=4000))
    await anext(generation)
    await generation.aclose()
    before = under_test.steps(engine)
    await until_running(engine, 0)
    await collect(engine.submit(nano.prompts[1], SamplingParams(max_tokens=1)))  # a step later than all of those
    assert under_test.steps(engine) <= before + 2
    assert [token async for token in generation] == []


async def test_closing_frees_places(start: Start, nano: Nano) -> None:
    engine = await start(stops=False, parallel=3, queue=2)
    longs = [engine.submit(prompt, SamplingParams(max_tokens=4000)) for prompt in nano.prompts[:5]]
    with pytest.raises(LimitError, match="ask again") as refused:
        engine.submit(nano.prompts[5], SamplingParams(max_tokens=1))
    assert refused.value.reason == "ENGINE_BUSY"
    with pytest.raises(LimitError):
        engine.submit_samples(nano.prompts[5], SamplingParams(max_tokens=1), 6)
    await anext(longs[0])
    for one in longs:
        await one.aclose()
    again = [engine.submit(prompt, SamplingParams(max_tokens=4)) for prompt in nano.prompts[:5]]
    assert await collect_all(again) == [answer[:4] for answer in nano.long_answers[:5]]


async def test_load_counts_answers(start: Start, nano: Nano) -> None:
    engine = await start(stops=False, parallel=3, queue=2)
    assert (engine.load().running, engine.load().waiting) == (0, 0)
    longs = [*engine.submit_samples(nano.prompts[0], SamplingParams(max_tokens=4000), 5)]
    for one in longs[:3]:
        await anext(one)
    load = engine.load()
    assert load.running + load.waiting == 5
    assert load.running_allowed + load.waiting_allowed == 5
    for one in longs:
        await one.aclose()
    assert engine.load().waiting == 0
    await until_running(engine, 0)


async def test_an_answer_ends_with_the_models_positions(start: Start, nano: Nano) -> None:
    engine = await start(stops=False)
    rows = np.resize(nano.prompts[0].embeds, (engine.max_positions - 3, nano.prompts[0].embeds.shape[1]))
    generation = engine.submit(Prompt(embeds=rows), SamplingParams(max_tokens=50))
    assert len(await collect(generation)) == 3
    assert generation.finish is Finish.LENGTH
    with pytest.raises(InvalidRequestError, match="at most") as refused:
        engine.submit(Prompt(embeds=np.resize(rows, (engine.max_positions, rows.shape[1]))), sampled(1, seed=0))
    assert refused.value.reason == "PROMPT_TOO_LONG"


async def test_rows_that_are_not_finite_are_refused(start: Start, nano: Nano) -> None:
    engine = await start()
    rows = nano.prompts[0].embeds.copy()
    rows[7, 0] = np.nan
    with pytest.raises(InvalidRequestError, match="row 7") as refused:
        engine.submit(Prompt(embeds=rows), SamplingParams(max_tokens=1))
    assert refused.value.reason == "PROMPT_NOT_FINITE"


async def test_times_are_told(start: Start, nano: Nano) -> None:
    engine = await start()
    generation = engine.submit(nano.prompts[0], SamplingParams(max_tokens=2))
    await collect(generation)
    assert generation.prefill_ms > 0
    assert generation.wait_ms >= 0


async def test_a_lost_engine_is_heard_and_fails_every_answer(
    start: Start, nano: Nano, under_test: EngineUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await start(stops=False, parallel=2, queue=6)
    heard: asyncio.Queue[UnavailableError | None] = asyncio.Queue()
    engine.watch(heard.put_nowait)
    generations = [engine.submit(prompt, SamplingParams(max_tokens=4000)) for prompt in nano.prompts[:8]]
    await anext(generations[0])
    await under_test.kill(engine)
    async with asyncio.timeout(ANSWERED):
        error = await heard.get()
    assert error is not None and error.reason == "ENGINE_LOST"
    for generation in generations:
        with pytest.raises(UnavailableError) as failed:
            await collect(generation)
        assert failed.value.reason == "ENGINE_LOST"
    if not engine.recovers:
        with pytest.raises(UnavailableError):
            engine.submit(nano.prompts[0], SamplingParams(max_tokens=1))


async def test_stopping_fails_unfinished_answers(start: Start, nano: Nano, under_test: EngineUnderTest) -> None:
    engine = await under_test.make(stops=False, parallel=1, queue=4)
    running, waiting = (engine.submit(prompt, SamplingParams(max_tokens=4000)) for prompt in nano.prompts[:2])
    await anext(running)
    await engine.stop()
    for generation in (running, waiting):
        with pytest.raises(UnavailableError) as failed:
            await collect(generation)
        assert failed.value.reason == "STOPPING"
    with pytest.raises(UnavailableError):
        engine.submit(replace(nano.prompts[0]), SamplingParams(max_tokens=1))
