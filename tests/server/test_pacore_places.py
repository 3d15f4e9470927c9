"""The places of the engine that a question with samples holds: for how long, and for whom it leaves them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack

import numpy as np
import pytest
import pytest_asyncio

from edge_server.admission import Admission
from edge_server.answer import QuestionJob
from edge_server.conversations import Conversations
from edge_server.engine.base import Finish, Prompt
from edge_server.engine.fake import FakeEngine
from edge_server.engine.sampling import SamplingParams
from edge_server.fake import fake_backend
from edge_server.outbox import MAX_WAITING, Outbox
from edge_server.pacore.messages import Sample
from edge_server.pacore.rounds import Rounds
from edge_server.pacore.run import ReadSample, SampleRound
from edge_server.runtime import Runtime
from tests.server.raw_client import ANSWERED, until
from tofc.model.prompt import Turn
from tofc.v1 import tofc_pb2 as pb


class Unread:
    """An outbox that is full, as nothing is read before `opened` is set."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.read: list[pb.SessionResponse] = []
        self.outbox = Outbox(self._write)

    async def fill(self) -> None:
        for _ in range(MAX_WAITING + 1):  # one is being written
            await self.outbox.send(token=pb.Token(text="x"))

    async def _write(self, response: pb.SessionResponse) -> None:
        await self.opened.wait()
        self.read.append(response)


@pytest_asyncio.fixture
async def unread() -> Unread:
    unread = Unread()
    await unread.fill()
    return unread


def runtime_of(engine: FakeEngine) -> Runtime:
    return Runtime(
        backend=fake_backend(engine=engine),
        admission=Admission(8, 32),
        pool=ThreadPoolExecutor(1),
        picture_timeout_s=ANSWERED,
    )


def asked(rounds: Rounds, runtime: Runtime, outbox: Outbox, deadline_ms: int = 0) -> QuestionJob:
    question = QuestionJob(
        number=1,
        turns=[Turn(role="user", text="?")],
        sampling=SamplingParams(max_tokens=100),
        rounds=rounds,
        pictures=[],
        evicted=[],
        deadline_ms=deadline_ms,
        conversations=Conversations(0),
    )
    question.task = asyncio.create_task(question.run(runtime, outbox, "session"))
    return question


async def end(question: QuestionJob, unread: Unread) -> pb.SessionResponse:
    unread.opened.set()
    assert question.task is not None
    await asyncio.wait_for(question.task, ANSWERED)
    await unread.outbox.finish()
    return unread.read[-1]


@pytest.mark.parametrize("deadline_ms", [0, 100])
async def test_a_question_that_ends_while_nothing_is_read_leaves_no_place_taken(
    deadline_ms: int, unread: Unread
) -> None:
    gate = asyncio.Event()
    engine = FakeEngine(lambda _: b"3", gate=gate)
    runtime = runtime_of(engine)
    question = asked(Rounds(widths=(4,), rollouts=True), runtime, unread.outbox, deadline_ms)
    await until(lambda: engine.params)
    assert len(engine.params[0]) == 4
    if not deadline_ms:
        question.cancel()
    await until(lambda: runtime.admission.running == 0)
    last = await end(question, unread)
    if deadline_ms:
        assert last.error.reason == "DEADLINE_EXCEEDED"
    else:
        assert last.done.finish_reason == pb.FINISH_REASON_CANCELLED


@pytest.mark.parametrize("vote", [False, True])
async def test_a_client_that_does_not_read_holds_no_place(vote: bool, unread: Unread) -> None:
    engine = FakeEngine(lambda _: b"3")
    runtime = runtime_of(engine)
    question = asked(Rounds(widths=(4,), vote=vote, rollouts=True), runtime, unread.outbox)
    await until(lambda: engine.params and runtime.admission.running == 0)
    assert question.task is not None and not question.task.done()
    assert (await end(question, unread)).done.usage.samples_used == 4
    assert sum(one.HasField("rollout") for one in unread.read) == 4


def read(index: int, ids: Sequence[int], finish: Finish | None, failed: bool) -> Sample:
    return Sample(index=index, message=bytes(ids).decode(), finish=finish)


def round_of(engine: FakeEngine, width: int, admission: Admission, read: ReadSample = read) -> SampleRound:
    return SampleRound(
        engine,
        Prompt(embeds=np.zeros((3, 1), np.float32)),
        SamplingParams(max_tokens=5),
        width,
        admission=admission,
        client="a",
        read=read,
        pool=ThreadPoolExecutor(1),
        token_budget=None,
    )


async def test_an_engine_with_fewer_places_than_expected_gets_fewer_samples_at_once() -> None:
    engine, told, admission = FakeEngine(lambda _: b"3", queue=2), list[int](), Admission(10, 32)
    async with admission.place("a"):
        samples = await round_of(engine, 7, admission).run(None, told.append)
        assert admission.running == 1
    assert [(one.index, one.message) for one in samples] == [(i, "3") for i in range(7)] and told == list(range(1, 8))
    assert len(engine.params[0]) == 2 and sum(map(len, engine.params)) == 7


async def test_a_round_gives_a_place_to_a_question_that_waits_before_its_next_sample() -> None:
    gate = asyncio.Event()
    engine, admission, waiting = FakeEngine(lambda _: b"3", gate=gate), Admission(4, 32), list[int]()
    async with AsyncExitStack() as held:
        for client in "abc":
            await held.enter_async_context(admission.place(client))
        running = asyncio.create_task(
            round_of(engine, 9, admission).run(None, lambda _: waiting.append(admission.waiting))
        )
        await until(lambda: engine.load().running == 2)
        other = asyncio.create_task(held.enter_async_context(admission.place("d")))
        await until(lambda: admission.waiting == 1)
        gate.set()
        assert len(await asyncio.wait_for(running, ANSWERED)) == 9
        assert waiting == [0] * 9
        await asyncio.wait_for(other, ANSWERED)
    assert admission.running == 0


@pytest.mark.parametrize("stopped", [False, True])
async def test_samples_are_read_in_a_thread(stopped: bool) -> None:
    gate = asyncio.Event() if stopped else None
    engine, admission, threads = FakeEngine(lambda _: b"3", gate=gate), Admission(8, 32), set[str]()

    def noted(index: int, ids: Sequence[int], finish: Finish | None, failed: bool) -> Sample:
        threads.add(threading.current_thread().name)
        return read(index, ids, finish, failed)

    async with admission.place("a"):
        ends = asyncio.get_running_loop().time() if stopped else None
        samples = await round_of(engine, 3, admission, noted).run(ends, lambda _: None)
    assert [one.finish for one in samples] == [None if stopped else Finish.STOP] * 3
    assert threads and threading.main_thread().name not in threads


async def test_a_sample_that_has_ended_counts_even_if_the_round_ends_while_it_is_read() -> None:
    engine, admission, loop = FakeEngine(lambda _: b"3"), Admission(8, 32), asyncio.get_running_loop()
    reading, opened = asyncio.Event(), threading.Event()

    def slowly(index: int, ids: Sequence[int], finish: Finish | None, failed: bool) -> Sample:
        loop.call_soon_threadsafe(reading.set)
        assert opened.wait(ANSWERED)
        return read(index, ids, finish, failed)

    async with admission.place("a"):
        ends = loop.time() + 0.5
        running = asyncio.create_task(round_of(engine, 1, admission, slowly).run(ends, lambda _: None))
        await asyncio.wait_for(reading.wait(), ANSWERED)
        await until(lambda: loop.time() > ends + 0.1)
        opened.set()
        (sample,) = await asyncio.wait_for(running, ANSWERED)
    assert sample.finish is Finish.STOP
