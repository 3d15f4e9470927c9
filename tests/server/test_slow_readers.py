"""A client that does not read, or says much at once: what it may make the server hold, and for how long."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.fuzz.streams import JumpingLoop
from edge_server import outbox as outbox_module
from edge_server import session
from edge_server.admission import Admission
from edge_server.answer import Question, Workshop
from edge_server.conversations import Conversations
from edge_server.engine.base import Sampling
from edge_server.engine.fake import FakeEngine
from edge_server.fake import decode_bytes, fake_backend
from edge_server.handshake import Identity
from edge_server.outbox import PATIENCE, WAITING, Outbox
from edge_server.pictures import PictureCache
from edge_server.session import Session
from edge_server.settings import SessionLimits
from shared.model.prompt import Turn
from shared.rpc.errors import DeadlineError
from shared.rpc.tofc.v1 import tofc_pb2
from tests.server.raw_client import ANSWERED, picture_id

HELLO = tofc_pb2.SessionRequest(hello=tofc_pb2.Hello(model_id="fake-model", codec_id="fake-codec"))
LIMITS = SessionLimits(pictures_under_way=1, views_per_picture=1)


def picture(ref: int) -> tofc_pb2.SessionRequest:
    announced = tofc_pb2.Picture(ref=ref, picture_id=picture_id(str(ref)), reply=True)
    return tofc_pb2.SessionRequest(pictures=[announced])


class Unread:
    """Where a session writes: nothing gets through before `opened`."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.read: list[tofc_pb2.SessionResponse] = []

    async def write(self, response: tofc_pb2.SessionResponse) -> None:
        await self.opened.wait()
        self.read.append(response)


@pytest.fixture
def shop() -> Workshop:
    backend = fake_backend()
    return Workshop(
        admission=Admission(40),
        assembler=backend.assembler,
        engine=backend.engine,
        decode=decode_bytes,
        pool=ThreadPoolExecutor(1),
        picture_timeout=ANSWERED,
    )


def session_of(shop: Workshop, pictures: PictureCache, outbox: Outbox) -> Session:
    return Session(
        name="session",
        identity=Identity(version="1", model_id="fake-model", codec_id="fake-codec"),
        limits=LIMITS,
        pictures=pictures,
        shop=shop,
        outbox=outbox,
        hello_timeout=ANSWERED,
    )


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(ANSWERED):
        while not true():
            await asyncio.sleep(0)


async def stop(task: asyncio.Task[object]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def test_views_are_taken_only_as_fast_as_their_acknowledgements_are_read(shop: Workshop) -> None:
    taken = 0

    async def requests() -> AsyncIterator[tofc_pb2.SessionRequest]:
        nonlocal taken
        yield HELLO
        yield picture(1)
        yield picture(2)  # lets go of the first, whose views are then acknowledged without decoding
        while True:
            yield tofc_pb2.SessionRequest(views=[tofc_pb2.View(ref=1, index=0, packet=b"x")])
            taken += 1
            await asyncio.sleep(0)

    outbox = Outbox(Unread().write)
    serving = asyncio.create_task(session_of(shop, PictureCache(10_000), outbox).run(requests()))
    for _ in range(1000):
        await asyncio.sleep(0)
    assert WAITING // 2 < taken <= WAITING + LIMITS.views_in_flight
    await stop(serving)


async def test_a_picture_is_let_go_though_its_question_could_not_ask_for_it_again(shop: Workshop) -> None:
    async def requests() -> AsyncIterator[tofc_pb2.SessionRequest]:
        yield HELLO
        yield picture(1)
        for _ in range(WAITING - 1):  # with the welcome: as much as fits
            yield picture(2)
        yield tofc_pb2.SessionRequest(asks=[tofc_pb2.Ask(request=1, refs=[1], question="?")])
        await asyncio.Event().wait()

    pictures = PictureCache(10_000)
    outbox = Outbox(Unread().write)
    serving = asyncio.create_task(session_of(shop, pictures, outbox).run(requests()))
    await until(lambda: any(held.questions for held in (pictures.get(picture_id("1")),) if held))
    await stop(serving)
    assert len(pictures) == 0


async def test_others_have_their_turn_while_a_long_request_is_taken(shop: Workshop) -> None:
    turns = taken = 0

    async def requests() -> AsyncIterator[tofc_pb2.SessionRequest]:
        nonlocal taken
        yield HELLO
        announced = tofc_pb2.Picture(ref=1, picture_id=picture_id("1"))  # nothing is said to that
        begun = turns
        yield tofc_pb2.SessionRequest(pictures=[announced] * (10 * session.PARTS_A_TURN))
        taken = turns - begun

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    unread = Unread()
    unread.opened.set()
    waiting = asyncio.create_task(others())
    serving = session_of(shop, PictureCache(10_000), Outbox(unread.write)).run(requests())
    assert await asyncio.wait_for(serving, ANSWERED) is None
    await stop(waiting)
    assert taken >= 10


@pytest.mark.parametrize(("hellos", "reason"), [(1, "NOT_READ"), (2, "HELLO_TWICE")])
async def test_a_session_that_is_over_waits_for_its_reader_only_so_long(
    hellos: int, reason: str, shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "PATIENCE", 0.01)

    async def requests() -> AsyncIterator[tofc_pb2.SessionRequest]:
        for _ in range(hellos):
            yield HELLO

    serving = session_of(shop, PictureCache(10_000), Outbox(Unread().write)).run(requests())
    error = await asyncio.wait_for(serving, ANSWERED)
    assert error is not None and error.reason == reason


@pytest.mark.parametrize("leaves", [True, False])
async def test_an_answer_that_nobody_reads_ends_its_session(
    leaves: bool, shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (session, outbox_module):
        monkeypatch.setattr(module, "PATIENCE", 0.01)

    async def requests() -> AsyncIterator[tofc_pb2.SessionRequest]:
        yield HELLO
        sampling = tofc_pb2.Sampling(max_tokens=1000)
        ask = tofc_pb2.Ask(request=1, question="x" * (WAITING + 2), sampling=sampling)
        yield tofc_pb2.SessionRequest(asks=[ask])
        if not leaves:
            await asyncio.Event().wait()

    serving = session_of(shop, PictureCache(10_000), Outbox(Unread().write)).run(requests())
    error = await asyncio.wait_for(serving, ANSWERED)
    assert error is not None and error.reason == "NOT_READ"
    assert isinstance(shop.engine, FakeEngine)
    assert shop.engine.idle.is_set()


@pytest.mark.parametrize(("pause", "cut"), [(PATIENCE - 10, 0), (PATIENCE + 10, 3)])
def test_a_slow_reader_is_no_silent_one(pause: float, cut: int) -> None:
    async def write(_: tofc_pb2.SessionResponse) -> None:
        await asyncio.sleep(pause)

    async def senders() -> list[BaseException | None]:
        outbox = Outbox(write)
        for _ in range(WAITING + 1):  # one of them is being written
            await outbox.send(token=tofc_pb2.Token(text="x"))
        waiting = (outbox.send(token=tofc_pb2.Token(text="x")) for _ in range(3))
        found = await asyncio.gather(*waiting, return_exceptions=True)
        outbox.abandon()
        return found

    loop = JumpingLoop()  # waits for nothing
    try:
        found = loop.run_until_complete(senders())
    finally:
        loop.close()
    assert [isinstance(one, DeadlineError) for one in found].count(True) == cut


async def test_a_cancel_that_comes_while_done_waits_for_room_changes_nothing(shop: Workshop) -> None:
    unread = Unread()
    outbox = Outbox(unread.write)
    question = Question(
        number=1,
        turns=[Turn(role="user", text="x" * (WAITING + 1))],  # as many tokens: one is being written
        sampling=Sampling(max_tokens=1000),
        pictures=[],
        gone=[],
        deadline_ms=0,
        conversations=Conversations(0),
    )
    question.task = asyncio.create_task(question.answer(shop, outbox, "session"))
    assert isinstance(shop.engine, FakeEngine)
    await until(lambda: outbox._queue.full())
    await asyncio.wait_for(shop.engine.idle.wait(), ANSWERED)
    for _ in range(100):
        await asyncio.sleep(0)
    question.cancel()
    unread.opened.set()
    await asyncio.wait([question.task], timeout=ANSWERED)
    await outbox.finish()
    assert unread.read[-1].done.finish_reason == tofc_pb2.FINISH_REASON_STOP
