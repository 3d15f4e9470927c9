"""A client that does not read, or sends much at once: what the server holds for it, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.fuzz.streams import JumpingLoop
from edge_server import outbox as outbox_module
from edge_server import session
from edge_server.admission import Admission
from edge_server.answer import QuestionJob
from edge_server.conversations import Conversations
from edge_server.engine.base import SamplingParams
from edge_server.engine.fake import FakeEngine
from edge_server.fake import fake_backend
from edge_server.handshake import ServerIdentity
from edge_server.outbox import MAX_WAITING, READ_TIMEOUT_S, Outbox
from edge_server.picture_cache import PictureCache
from edge_server.runtime import Runtime
from edge_server.session import ServerSession
from edge_server.settings import SessionLimits
from tests.server.raw_client import ANSWERED, picture_id, until
from tofc.errors import DeadlineError, LimitError
from tofc.model.prompt import Turn
from tofc.v1 import tofc_pb2 as pb

HELLO = pb.SessionRequest(hello=pb.Hello(model_id="fake-model", codec_id="fake-codec"))
LIMITS = SessionLimits(pictures_under_way=1, views_per_picture=1)


def picture(ref: int) -> pb.SessionRequest:
    announced = pb.Picture(ref=ref, picture_id=picture_id(str(ref)), want_state=True)
    return pb.SessionRequest(pictures=[announced])


class Unread:
    """The client's end of a session: nothing is read before `opened` is set."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.read: list[pb.SessionResponse] = []

    async def write(self, response: pb.SessionResponse) -> None:
        await self.opened.wait()
        self.read.append(response)


@pytest.fixture
def runtime() -> Runtime:
    return Runtime(
        backend=fake_backend(),
        admission=Admission(8, 32),
        pool=ThreadPoolExecutor(1),
        picture_timeout_s=ANSWERED,
    )


def session_of(runtime: Runtime, pictures: PictureCache, outbox: Outbox) -> ServerSession:
    return ServerSession(
        name="session",
        identity=ServerIdentity(version="1", model_id="fake-model", codecs=fake_backend().codecs),
        limits=LIMITS,
        pictures=pictures,
        runtime=runtime,
        outbox=outbox,
        hello_timeout_s=ANSWERED,
    )


async def stop(task: asyncio.Task[object]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def test_views_are_accepted_only_as_fast_as_acknowledgements_are_read(runtime: Runtime) -> None:
    taken = 0

    async def requests() -> AsyncIterator[pb.SessionRequest]:
        nonlocal taken
        yield HELLO
        yield picture(1)
        yield picture(2)  # lets go of the first, whose views are then acknowledged without decoding
        while True:
            yield pb.SessionRequest(views=[pb.View(ref=1, index=0, packets=[b"x"])])
            taken += 1
            await asyncio.sleep(0)

    outbox = Outbox(Unread().write)
    serving = asyncio.create_task(session_of(runtime, PictureCache(10_000), outbox).run(requests()))
    for _ in range(1000):
        await asyncio.sleep(0)
    assert MAX_WAITING // 2 < taken <= MAX_WAITING + LIMITS.views_in_flight
    await stop(serving)


async def test_a_picture_is_released_although_need_picture_could_not_be_sent(runtime: Runtime) -> None:
    async def requests() -> AsyncIterator[pb.SessionRequest]:
        yield HELLO
        yield picture(1)
        for _ in range(MAX_WAITING - 1):  # with the welcome: as much as fits
            yield picture(2)
        yield pb.SessionRequest(asks=[pb.Ask(request=1, refs=[1], question="?")])
        await asyncio.Event().wait()

    pictures = PictureCache(10_000)
    outbox = Outbox(Unread().write)
    serving = asyncio.create_task(session_of(runtime, pictures, outbox).run(requests()))
    await until(lambda: any(held.questions for held in (pictures.get(picture_id("1")),) if held))
    await stop(serving)
    assert len(pictures) == 0


async def test_other_tasks_run_while_a_long_request_is_handled(runtime: Runtime) -> None:
    turns = taken = 0

    async def requests() -> AsyncIterator[pb.SessionRequest]:
        nonlocal taken
        yield HELLO
        announced = pb.Picture(ref=1, picture_id=picture_id("1"))  # which has no reply
        started = turns
        yield pb.SessionRequest(pictures=[announced] * (10 * session.PARTS_PER_TURN))
        taken = turns - started

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    unread = Unread()
    unread.opened.set()
    waiting = asyncio.create_task(others())
    serving = session_of(runtime, PictureCache(10_000), Outbox(unread.write)).run(requests())
    assert await asyncio.wait_for(serving, ANSWERED) is None
    await stop(waiting)
    assert taken >= 10


@pytest.mark.parametrize(("hellos", "reason"), [(1, "NOT_READ"), (2, "HELLO_TWICE")])
async def test_a_session_that_ends_waits_for_its_reader_for_a_limited_time(
    hellos: int, reason: str, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "READ_TIMEOUT_S", 0.01)

    async def requests() -> AsyncIterator[pb.SessionRequest]:
        for _ in range(hellos):
            yield HELLO

    serving = session_of(runtime, PictureCache(10_000), Outbox(Unread().write)).run(requests())
    error = await asyncio.wait_for(serving, ANSWERED)
    assert error is not None and error.reason == reason


async def test_a_stream_that_ends_while_its_hello_is_on_its_way_gets_no_welcome(runtime: Runtime) -> None:
    async def requests() -> AsyncIterator[pb.SessionRequest]:
        serving.end(LimitError("too many", reason="TOO_MANY_HANDSHAKES", retry_after_s=1.0))
        yield HELLO
        await asyncio.Event().wait()

    reader = Unread()
    reader.opened.set()
    serving = session_of(runtime, PictureCache(10_000), Outbox(reader.write))
    await asyncio.wait_for(serving.run(requests()), ANSWERED)
    (only,) = reader.read
    assert (only.error.reason, only.error.retry_after_ms) == ("TOO_MANY_HANDSHAKES", 1000)


@pytest.mark.parametrize("leaves", [True, False])
async def test_an_answer_that_nobody_reads_ends_its_session(
    leaves: bool, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (session, outbox_module):
        monkeypatch.setattr(module, "READ_TIMEOUT_S", 0.01)

    async def requests() -> AsyncIterator[pb.SessionRequest]:
        yield HELLO
        sampling = pb.Sampling(max_tokens=1000)
        ask = pb.Ask(request=1, question="x" * (MAX_WAITING + 2), sampling=sampling)
        yield pb.SessionRequest(asks=[ask])
        if not leaves:
            await asyncio.Event().wait()

    serving = session_of(runtime, PictureCache(10_000), Outbox(Unread().write)).run(requests())
    error = await asyncio.wait_for(serving, ANSWERED)
    assert error is not None and error.reason == "NOT_READ"
    assert isinstance(runtime.backend.engine, FakeEngine)
    assert runtime.backend.engine.idle.is_set()


@pytest.mark.parametrize(("pause", "cut"), [(READ_TIMEOUT_S - 10, 0), (READ_TIMEOUT_S + 10, 3)])
def test_a_slow_reader_is_not_a_silent_one(pause: float, cut: int) -> None:
    async def write(_: pb.SessionResponse) -> None:
        await asyncio.sleep(pause)

    async def senders() -> list[BaseException | None]:
        outbox = Outbox(write)
        for _ in range(MAX_WAITING + 1):  # one of them is being written
            await outbox.send(token=pb.Token(text="x"))
        waiting = (outbox.send(token=pb.Token(text="x")) for _ in range(3))
        found = await asyncio.gather(*waiting, return_exceptions=True)
        outbox.abandon()
        return found

    loop = JumpingLoop()  # its clock jumps instead of waiting
    try:
        found = loop.run_until_complete(senders())
    finally:
        loop.close()
    assert [isinstance(one, DeadlineError) for one in found].count(True) == cut


async def test_a_cancel_that_comes_while_done_waits_changes_nothing(runtime: Runtime) -> None:
    unread = Unread()
    outbox = Outbox(unread.write)
    question = QuestionJob(
        number=1,
        turns=[Turn(role="user", text="x" * (MAX_WAITING + 1))],  # as many tokens: one is being written
        sampling=SamplingParams(max_tokens=1000),
        pictures=[],
        evicted=[],
        deadline_ms=0,
        conversations=Conversations(0),
    )
    question.task = asyncio.create_task(question.run(runtime, outbox, "session"))
    assert isinstance(runtime.backend.engine, FakeEngine)
    await until(lambda: outbox._queue.full())
    await asyncio.wait_for(runtime.backend.engine.idle.wait(), ANSWERED)
    for _ in range(100):
        await asyncio.sleep(0)
    question.cancel()
    unread.opened.set()
    await asyncio.wait([question.task], timeout=ANSWERED)
    await outbox.finish()
    assert unread.read[-1].done.finish_reason == pb.FINISH_REASON_STOP
