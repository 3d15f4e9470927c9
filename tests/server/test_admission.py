"""Slots of the engine: no session gets a second one while others wait for their first."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from edge_server.admission import Admission
from edge_server.answer import QuestionJob
from edge_server.engine.fake import FakeEngine
from edge_server.fake import fake_backend, prompt_bytes
from edge_server.outbox import Outbox
from edge_server.reasoning import Delta
from tests.server.conftest import Connect, Serve
from tests.server.raw_client import ANSWERED
from tofc.errors import LimitError


class Asker:
    """Holds a slot until `leave`."""

    def __init__(self, admission: Admission, session: str) -> None:
        self._leaving = asyncio.Event()
        self.inside = False
        self.task = asyncio.create_task(self._run(admission, session))

    async def _run(self, admission: Admission, session: str) -> None:
        async with admission.slot(session):
            self.inside = True
            await self._leaving.wait()

    async def leave(self) -> None:
        self._leaving.set()
        await self.task


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_session_without_a_slot_waits_and_one_with_some_is_refused() -> None:
    admission = Admission(2)
    greedy = [Asker(admission, "greedy") for _ in range(3)]
    await settled()
    assert [one.inside for one in greedy] == [True, True, False]
    with pytest.raises(LimitError, match="which is as many as this server takes, some of them from this session"):
        await greedy[2].task
    modest = [Asker(admission, name) for name in ("a", "b")]
    await settled()
    assert not any(one.inside for one in modest)
    await greedy[0].leave()
    await settled()
    assert [one.inside for one in modest] == [True, False]  # in the order of asking
    await greedy[1].leave()
    await settled()
    assert modest[1].inside


async def test_at_most_one_question_of_a_session_waits() -> None:
    admission = Admission(1)
    holder = Asker(admission, "holder")
    await settled()
    first, second = Asker(admission, "b"), Asker(admission, "b")
    await settled()
    with pytest.raises(LimitError):
        await second.task
    await holder.leave()
    await settled()
    assert first.inside


async def test_a_slot_is_not_lost_with_a_question_that_is_cancelled() -> None:
    admission = Admission(1)
    holder = Asker(admission, "holder")
    await settled()
    waiting, granted, last = (Asker(admission, name) for name in "abc")
    await settled()
    waiting.task.cancel()
    await holder.leave()
    granted.task.cancel()
    await settled()
    assert last.inside
    await last.leave()
    again = Asker(admission, "a")
    await settled()
    assert again.inside


async def test_a_slot_is_free_when_the_engine_is_done_even_if_nobody_reads(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = asyncio.Event()
    server = await serve(engine_parallel=1, engine_queue=1)
    clients = [connect(server) for _ in range(3)]
    for client in clients:
        await client.hello()
    say = QuestionJob._send

    async def stuck(self: QuestionJob, deltas: list[Delta], outbox: Outbox) -> None:
        if self.turns[0].text == "unread":
            await held.wait()
        await say(self, deltas, outbox)

    monkeypatch.setattr(QuestionJob, "_send", stuck)
    *unread, other = clients
    for client in unread:
        await client.ask(1, "unread")
    await other.ask(1, "read")
    assert (await other.answer(1))[0] == "read"
    held.set()
    for client in unread:
        assert (await client.answer(1))[0] == "unread"


async def test_a_modest_session_is_answered_beside_greedy_ones(serve: Serve, connect: Connect) -> None:
    gate = asyncio.Event()
    engine = FakeEngine(lambda prompt: list(prompt_bytes(prompt)), gate=gate, queue=4)
    server = await serve(fake_backend(engine=engine), engine_parallel=2, engine_queue=2)
    async with AsyncExitStack() as stack:
        for _ in range(6):
            greedy = connect(server)
            stack.push_async_callback(greedy.channel.close)
            await greedy.hello()
            for number in range(1, 9):
                await greedy.ask(number, "more")
        modest = connect(server)
        await modest.hello()
        for number in range(1, 4):
            await modest.ask(number, "please")
            gate.set()
            async with asyncio.timeout(ANSWERED):
                assert (await modest.answer(number))[0] == "please"
