"""The engine vllm: vLLM's own process beside this one, with nano."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from pathlib import Path

import pytest

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}

from edge_server.backend import load
from edge_server.engine.base import Finish, Prompt
from edge_server.engine.qwen3 import load_qwen3
from edge_server.engine.sampling import SamplingParams
from edge_server.engine.transformers import TransformersEngine
from edge_server.settings import ServerSettings
from tests.engine.remote import STOP, as_prompts, collect, nano, prompts
from tofc.errors import UnavailableError


@pytest.mark.filterwarnings("ignore")  # vLLM and what it imports have many
async def test_vllm_in_process_answers_as_the_embedded_engine_until_it_is_lost(half: Path) -> None:
    """One test, because starting vLLM takes a minute."""
    embedded = TransformersEngine(load_qwen3(nano()), [STOP], parallel=16, queue=64)
    params = SamplingParams(max_tokens=16)
    wanted = [await collect(embedded.submit(one, params)) for one in as_prompts(prompts())]
    await embedded.stop()

    settings = ServerSettings(model=half, engine="vllm", engine_dtype="float32", engine_parallel=16, engine_queue=64)
    engine = (await asyncio.to_thread(load, settings)).engine
    told: asyncio.Queue[UnavailableError | None] = asyncio.Queue()
    engine.watch(told.put_nowait)
    try:
        assert engine.name == "vllm"
        found = [engine.submit(one, params) for one in as_prompts(prompts())]
        assert await asyncio.gather(*map(collect, found)) == wanted
        assert {one.finish for one in found} == {Finish.STOP}

        (prompt,) = as_prompts(prompts()[3:4])
        sampled = [SamplingParams(max_tokens=24, temperature=2.0, seed=2**63 - 2 + i) for i in range(4)]
        many = await asyncio.gather(*map(collect, engine.submit_samples(prompt, sampled[0], 4)))
        assert many == [await collect(engine.submit(prompt, one)) for one in sampled]
        assert len(set(map(tuple, many))) > 1

        engine._stop_tokens = frozenset()  # type: ignore[attr-defined]  # nano says little
        long = SamplingParams(max_tokens=4000)
        closed = engine.submit(Prompt(embeds=prompts()[0]), long)
        await anext(closed)
        await closed.aclose()
        assert engine.load().running == engine.load().waiting == 0

        lost = engine.submit(Prompt(embeds=prompts()[0]), long)
        await anext(lost)
        for child in multiprocessing.active_children():
            child.kill()
        with pytest.raises(UnavailableError) as error:
            await collect(lost)
        assert error.value.reason == "ENGINE_LOST"
        async with asyncio.timeout(10):
            assert isinstance(await told.get(), UnavailableError)
    finally:
        await engine.stop()
