"""A client that does not read: what it may make the server hold, and for how long."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from edge_server.answer import Workshop
from edge_server.fake import decode_bytes, fake_backend
from edge_server.handshake import Identity
from edge_server.outbox import WAITING, Outbox
from edge_server.pictures import PictureCache
from edge_server.session import Session
from edge_server.settings import SessionLimits
from shared.rpc.tofc.v1 import tofc_pb2
from tests.server.raw_client import ANSWERED, picture_id

HELLO = tofc_pb2.SessionRequest(hello=tofc_pb2.Hello(model_id="fake-model", codec_id="fake-codec"))
LIMITS = SessionLimits(pictures_under_way=1)


def picture(ref: int) -> tofc_pb2.SessionRequest:
    return tofc_pb2.SessionRequest(picture=tofc_pb2.Picture(ref=ref, picture_id=picture_id(str(ref))))


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
            yield tofc_pb2.SessionRequest(view=tofc_pb2.View(ref=1, index=0, packet=b"x"))
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
        turns = [tofc_pb2.Turn(role=tofc_pb2.ROLE_USER, text="?")]
        yield tofc_pb2.SessionRequest(ask=tofc_pb2.Ask(request=1, refs=[1], turns=turns))
        await asyncio.Event().wait()

    pictures = PictureCache(10_000)
    outbox = Outbox(Unread().write)
    serving = asyncio.create_task(session_of(shop, pictures, outbox).run(requests()))
    await until(lambda: any(held.questions for held in (pictures.get(picture_id("1")),) if held))
    await stop(serving)
    assert len(pictures) == 0
