"""Engines of vLLM that are killed in the middle of answers, behind a router and without one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from edge_server.engine.base import Generation, Prompt
from edge_server.engine.sampling import SamplingParams
from tests.engine.remote import collect, prompts
from tests.vllm.engines import ENDLESS, Process, Remote, metric, router
from tofc.errors import UnavailableError

NOTICED_S = 60.0  # instead of hanging
READ, SAID = 600, 3000  # tokens that are read of each answer, and that it has: none has ended when an engine is killed


@pytest.mark.parametrize("routed", [False, True], ids=["with two addresses", "behind a router"])
async def test_answers_of_an_engine_that_is_killed_are_completed_by_the_other(
    engines: list[Process], remote: Remote, tmp_path: Path, caplog: pytest.LogCaptureFixture, routed: bool
) -> None:
    """No engine is left after the last one, so no file after this one may need them."""
    before = router(engines, tmp_path / "router.log")
    if routed:
        pytest.importorskip("vllm_router")
        before.start()
        await before.ready()
    try:
        urls = [before.url] if routed else [one.url for one in engines]
        engine = await remote(*urls, form=ENDLESS)
        told: asyncio.Queue[UnavailableError | None] = asyncio.Queue()
        engine.watch(told.put_nowait)
        asked = [Prompt(embeds=one, client="a", pictures=str(number)) for number, one in enumerate(prompts()[:8])]
        undisturbed = SamplingParams(max_tokens=READ)
        wanted = await asyncio.gather(*(collect(engine.submit(one, undisturbed)) for one in asked))

        generations = [engine.submit(one, SamplingParams(max_tokens=SAID)) for one in asked]
        said = await asyncio.gather(*(_read(one, 40) for one in generations))
        caplog.clear()
        busy = [await metric(one, "vllm:num_requests_running") for one in engines]
        busier = busy.index(max(busy))
        engines[busier].kill()
        rest = await asyncio.gather(*(_read(one, READ - 40) for one in generations))
        for one in generations:
            await one.aclose()
        broke = sum("broke off" in record.getMessage() for record in caplog.records)
        print(f"8 answers of {READ} tokens are right after an engine was killed, and {broke} times one broke off")
        assert [first + then for first, then in zip(said, rest, strict=True)] == wanted
        assert broke and told.empty()  # one engine was always there

        if routed:  # a router says that it is well without any engine, so the first question finds out
            engines[1 - busier].kill()
            with pytest.raises(UnavailableError) as lost:
                await collect(engine.submit(asked[0], undisturbed))
            assert lost.value.reason == "ENGINE_LOST"
            async with asyncio.timeout(NOTICED_S):
                assert isinstance(await told.get(), UnavailableError)
    finally:
        before.kill()


async def _read(generation: Generation, most: int) -> list[int]:
    """Return the next tokens, at most so many."""
    said: list[int] = []
    async for token in generation:
        said.append(token)
        if len(said) == most:
            break
    return said
