"""Engines of vLLM that are killed in the middle of answers, behind a router and without one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_server.engine.base import Generation, Prompt
from edge_server.engine.sampling import SamplingParams
from tests.engine.remote import collect, prompts
from tests.vllm.engines import ENDLESS, Process, Remote, metric, router
from tofc.errors import UnavailableError

NOTICED_S = 60.0  # instead of hanging
SAID = 6000  # tokens of an answer: so many that none has ended when an engine is killed
AFTER = 40  # tokens that are read of each answer before an engine is killed, and after all its answers broke off


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
        generations = [engine.submit(one, SamplingParams(max_tokens=SAID)) for one in asked]
        said = await asyncio.gather(*(_read(one, lambda: True) for one in generations))
        caplog.clear()
        busy = [await metric(one, "vllm:num_requests_running") for one in engines]
        busier = busy.index(max(busy))
        engines[busier].kill()

        def broke() -> int:
            return sum("broke off" in record.getMessage() for record in caplog.records)

        # What had arrived before is read first: hundreds of tokens of each answer, on a quick machine.
        rest = await asyncio.gather(*(_read(one, lambda: broke() >= max(busy)) for one in generations))
        for one in generations:
            await one.aclose()
        found = [first + then for first, then in zip(said, rest, strict=True)]
        print(f"answers of {sorted(map(len, found))} tokens were read, and {broke()} times one broke off")
        assert broke() and told.empty()  # one engine was always there
        undisturbed = [SamplingParams(max_tokens=len(one)) for one in found]
        wanted = await asyncio.gather(*(collect(engine.submit(*pair)) for pair in zip(asked, undisturbed, strict=True)))
        assert found == wanted

        if routed:  # a router says that it is well without any engine, so the first question finds out
            engines[1 - busier].kill()
            with pytest.raises(UnavailableError) as lost:
                await collect(engine.submit(asked[0], undisturbed[0]))
            assert lost.value.reason == "ENGINE_LOST"
            async with asyncio.timeout(NOTICED_S):
                assert isinstance(await told.get(), UnavailableError)
    finally:
        before.kill()


async def _read(generation: Generation, enough: Callable[[], bool]) -> list[int]:
    """Return the next tokens until there are `AFTER` more than when there was `enough`."""
    said: list[int] = []
    more = AFTER
    async for token in generation:
        said.append(token)
        more -= enough()
        if not more:
            break
    return said
