"""How many answers the default memory of the embedded engine is for."""

from __future__ import annotations

import asyncio
import logging

import pytest

from edge_server.backend import load
from edge_server.engine.base import Prompt
from edge_server.engine.sampling import SamplingParams
from edge_server.settings import MIB, ServerSettings
from tests.engine.remote import prompts
from tofc.errors import InvalidRequestError, ResourceError
from tofc.model.shipped import NANO


def test_the_default_memory_depends_on_the_device() -> None:
    found = [ServerSettings(model=NANO, device=device).key_value_bytes // MIB for device in ("cpu", "cuda", "cuda:1")]
    assert found == [1024, 4096, 4096]


async def test_as_many_full_answers_of_nano_run_as_the_log_says(caplog: pytest.LogCaptureFixture) -> None:
    settings = ServerSettings(model=NANO)
    with caplog.at_level(logging.INFO):
        engine = load(settings).engine
    try:
        assert "1024 MiB (--engine-cache-mib), enough for 32 answers of all 8192 positions" in caplog.text
        assert settings.engine_parallel == 32
        engine._stop_tokens = frozenset()  # type: ignore[attr-defined]  # nano's answers are short
        one = Prompt(embeds=prompts()[0])
        answers = [engine.submit(one, SamplingParams(max_tokens=engine.max_positions)) for _ in range(33)]
        await asyncio.gather(*(anext(each) for each in answers[:32]))
        load_now = engine.load()
        assert (load_now.running, load_now.waiting, load_now.cache_bytes_allowed) == (32, 1, 1024 * MIB)
    finally:
        await engine.stop()


async def test_what_never_fits_into_memory_is_refused_when_it_is_submitted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        engine = load(ServerSettings(model=NANO, engine_cache_bytes=MIB)).engine
    try:
        assert engine.max_positions == 256  # of 4 KiB each
        assert "may have 256 of the model's 8192 positions" in caplog.text and "--engine-cache-mib 1" in caplog.text
        row = prompts()[0][:1]
        with pytest.raises(InvalidRequestError, match="a prompt must have at most 255 rows") as refused:
            engine.submit(Prompt(embeds=row.repeat(256, axis=0)), SamplingParams(max_tokens=1))
        assert refused.value.reason == "PROMPT_TOO_LONG"
        longest = engine.submit(Prompt(embeds=row.repeat(255, axis=0)), SamplingParams(max_tokens=9))
        assert len([token async for token in longest]) <= 1
    finally:
        await engine.stop()


def test_memory_for_less_than_a_token_is_refused_at_the_start() -> None:
    with pytest.raises(ResourceError, match=r"keys and values of one position take 4096 bytes.*--engine-cache-mib"):
        load(ServerSettings(model=NANO, engine_cache_bytes=5000))
