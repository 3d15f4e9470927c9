"""Prompts are read while their views arrive: only where it helps, and without any trace in the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from edge_server.assemble import PictureRows
from edge_server.engine.base import Generation, Prompt
from edge_server.engine.fake import FakeEngine
from edge_server.engine.sampling import SamplingParams
from edge_server.fake import fake_backend, prompt_bytes
from edge_server.settings import ServerSettings
from tests.server.conftest import Connect, Serve
from tests.server.raw_client import RawClient, until
from tofc.errors import LimitError
from tofc.model.prompt import Turn
from tofc.model.shipped import NANO
from tofc.v1 import tofc_pb2 as pb

VIEWS = [bytes([65 + number]) * 20 for number in range(5)]  # of a picture of 2 × 2 crops


class NotingEngine(FakeEngine):
    """Keeps prompts, as a real engine says, and notes how each was to be sampled."""

    def __init__(self, *, rows: int = 16, gate: asyncio.Event | None = None) -> None:
        super().__init__(lambda prompt: list(prompt_bytes(prompt))[-1:], read_ahead_rows=rows, gate=gate)
        self.submitted: list[tuple[Prompt, SamplingParams]] = []
        self.error: Exception | None = None

    def submit_samples(self, prompt: Prompt, sampling: SamplingParams, samples: int) -> Sequence[Generation]:
        self.submitted.append((prompt, sampling))
        if self.error is not None and len(self.submitted) == 1:
            raise self.error
        return super().submit_samples(prompt, sampling, samples)

    @property
    def read(self) -> list[bytes]:
        return [prompt_bytes(prompt) for prompt, _ in self.submitted]


async def announced(client: RawClient) -> None:
    await client.hello()
    assert not await client.picture(1, "wide", 2, 2)


async def test_views_are_read_as_they_arrive(serve: Serve, connect: Connect) -> None:
    engine = NotingEngine()
    client = connect(await serve(fake_backend(engine=engine)))
    await announced(client)
    await client.ask(1, "?", (1,))
    for index, view in enumerate(VIEWS[:4]):
        await client.view(1, index, view)
        await until(lambda index=index: len(engine.submitted) == index + 1)
    await client.view(1, 4, VIEWS[4])
    text, done = await client.answer(1)
    assert engine.read == [b"".join(VIEWS[:count]) for count in (1, 2, 3, 4)] + [b"".join(VIEWS) + b"?"]
    assert [sampling.max_tokens for _, sampling in engine.submitted[:4]] == [1] * 4
    assert (text, done.usage.new_tokens, done.usage.prompt_tokens) == ("?", 1, 101), "nothing of it is counted"
    prompts = [prompt for prompt, _ in engine.submitted]
    assert len({prompt.client for prompt in prompts}) == 1 and prompts[0].client.startswith("session 1")
    assert {prompt.pictures for prompt in prompts} == {b"wide".ljust(8, b"\0").hex()}


async def test_only_views_without_a_gap_before_them_are_read(serve: Serve, connect: Connect) -> None:
    engine = NotingEngine()
    client = connect(await serve(fake_backend(engine=engine)))
    await announced(client)
    await client.ask(1, "?", (1,))
    for index in (1, 2, 4):
        await client.view(1, index, VIEWS[index])
    await client.view(1, 0, VIEWS[0])
    await until(lambda: engine.submitted)
    assert engine.read[0] == b"".join(VIEWS[:3])
    await client.view(1, 3, VIEWS[3])
    assert (await client.answer(1))[0] == "?"
    assert engine.read[1:] == [b"".join(VIEWS) + b"?"]


@pytest.mark.parametrize("why", ["the engine keeps nothing", "others wait", "too few rows"])
async def test_nothing_is_read_ahead_where_it_does_not_help(serve: Serve, connect: Connect, why: str) -> None:
    gate = asyncio.Event()
    engine = NotingEngine(rows=0 if why == "the engine keeps nothing" else 16, gate=gate)
    server = await serve(fake_backend(engine=engine), engine_parallel=1)
    client, other = connect(server), connect(server)
    await announced(client)
    before = 0
    if why == "others wait":
        await other.hello()
        for number in (1, 2):
            await other.ask(number, "?")
        await until(lambda: server.service._runtime is not None and server.service._runtime.admission.waiting)
        before = 1
    await client.ask(1, "?", (1,))
    views = [b"a", b"b", b"c", b"d", b"e"] if why == "too few rows" else VIEWS
    for index, view in enumerate(views[:4]):
        await client.view(1, index, view)
    await until(lambda: len(next(iter(server.service.pictures._pictures.values())).view_indexes) == 4)
    assert len(engine.submitted) == before
    gate.set()
    await client.view(1, 4, views[4])
    assert (await client.answer(1))[0] == "?"


@pytest.mark.parametrize("error", [LimitError(reason="ENGINE_MEMORY"), RuntimeError("a defect")])
async def test_a_failure_is_not_one_of_the_question(
    serve: Serve, connect: Connect, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    engine = NotingEngine()
    engine.error = error
    client = connect(await serve(fake_backend(engine=engine)))
    await announced(client)
    await client.ask(1, "?", (1,))
    for index, view in enumerate(VIEWS):
        await client.view(1, index, view)
        if not index:
            await until(lambda: engine.submitted)
    assert (await client.answer(1))[0] == "?"
    assert ("reading ahead failed" in caplog.text) == isinstance(error, RuntimeError)


async def test_a_question_that_is_cancelled_stops_reading_ahead(serve: Serve, connect: Connect) -> None:
    engine = NotingEngine(gate=asyncio.Event())
    server = await serve(fake_backend(engine=engine))
    client = connect(server)
    await announced(client)
    await client.ask(1, "?", (1,))
    await client.view(1, 0, VIEWS[0])
    await until(lambda: engine.submitted)
    await client.send(cancels=[pb.Cancel(request=1)])
    assert (await client.answer(1))[1].finish_reason == pb.FINISH_REASON_CANCELLED
    await until(lambda: engine.idle.is_set())
    runtime = server.service._runtime
    assert runtime is not None and engine.cancelled == 1 and runtime.admission.running == 0


def test_the_beginning_is_that_of_the_whole_prompt() -> None:
    """With nano: every beginning that can be read has the rows with which the whole prompt begins."""
    from edge_server.backend import load

    backend = load(ServerSettings(model=NANO))
    random = np.random.default_rng(0)
    width = backend.assembler.prompt([Turn(role="user", text="?")], [], 1000).prompt.embeds.shape[1]

    def rows(count: int) -> Any:
        return random.standard_normal((count, width)).astype(np.float32)

    turns = [Turn(role="system", text="be brief"), Turn(role="user", text="how many are there?")]
    one = PictureRows(rows=0, columns=0, views=[rows(7)])
    views = [rows(3), rows(1), rows(4), rows(2), rows(6)]
    wide = PictureRows(rows=2, columns=2, views=views)
    whole = backend.assembler.prompt(turns, [one, wide], 1000).prompt.embeds
    lengths = []
    for count in range(5):
        part = PictureRows(rows=2, columns=2, views=views[:count])
        beginning = backend.assembler.beginning(turns, [one, part], 1000)
        assert beginning is not None
        lengths.append(len(beginning.embeds))
        assert np.array_equal(beginning.embeds, whole[: lengths[-1]])
    assert lengths == sorted(set(lengths)) and lengths[0] > 7 and lengths[-1] < len(whole)
    assert backend.assembler.beginning(turns, [one, wide], 1000) is None
    assert backend.assembler.beginning(turns, [one, PictureRows(rows=2, columns=2, views=[])], 3) is None
    asyncio.run(backend.engine.stop())
