"""Early ends: cancelled and late questions, vanished clients, evicted pictures, a stopping server."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from edge_server.engine.base import Prompt
from edge_server.engine.fake import FakeEngine
from edge_server.fake import fake_backend, prompt_bytes
from edge_server.picture_cache import OVERHEAD_BYTES
from edge_server.server import SERVICE
from edge_server.settings import SessionLimits
from tests.server.conftest import Connect, Serve
from tests.server.raw_client import ANSWERED, RawClient, within
from tofc.v1 import tofc_pb2 as pb

CANCELLED = pb.FINISH_REASON_CANCELLED


def echo(prompt: Prompt) -> list[int]:
    return list(prompt_bytes(prompt))


@pytest.fixture
def gate() -> asyncio.Event:
    """The fake engine makes no token until it is set."""
    return asyncio.Event()


@pytest.fixture
def engine(gate: asyncio.Event) -> FakeEngine:
    return FakeEngine(echo, gate=gate, queue=3)


async def test_cancel_stops_the_engine(serve: Serve, connect: Connect, engine: FakeEngine) -> None:
    client = connect(await serve(fake_backend(engine=engine)))
    await client.hello()
    await client.ask(1, "never answered")
    await within(engine.busy.wait())
    for _ in range(2):  # a second cancel is harmless
        await client.send(cancels=[pb.Cancel(request=1)])
    text, done = await client.answer(1)
    assert (text, done.finish_reason) == ("", CANCELLED)
    assert done.usage.prompt_tokens == len("never answered")
    await within(engine.idle.wait())
    assert (engine.steps, engine.cancelled) == (0, 1)


async def test_cancel_of_a_question_that_waits_for_views(serve: Serve, connect: Connect, engine: FakeEngine) -> None:
    server = await serve(fake_backend(engine=engine))
    client = connect(server)
    await client.hello()
    await client.picture(1, "p")
    await client.ask(1, "?", refs=(1,))
    await client.send(cancels=[pb.Cancel(request=1)])
    assert (await client.answer(1))[1].finish_reason == CANCELLED
    assert not engine.prompts
    await client.end()
    assert len(server.service.pictures) == 0


async def test_cancel_of_one_leaves_the_other(
    serve: Serve, connect: Connect, engine: FakeEngine, gate: asyncio.Event
) -> None:
    client = connect(await serve(fake_backend(engine=engine)))
    await client.hello()
    await client.ask(1, "one")
    await client.ask(2, "two")
    await client.send(cancels=[pb.Cancel(request=2)])
    assert (await client.answer(2))[1].finish_reason == CANCELLED
    gate.set()
    assert (await client.answer(1))[0] == "one"


async def test_too_many_in_flight(serve: Serve, connect: Connect, engine: FakeEngine, gate: asyncio.Event) -> None:
    server = await serve(fake_backend(engine=engine), limits=SessionLimits(questions_in_flight=2))
    one = connect(server)
    await one.hello()
    for request in (1, 2, 3):
        await one.ask(request, "?")
    error = await one.expect("error")
    assert (error.request, error.status, error.reason) == (3, 8, "TOO_MANY_QUESTIONS")
    gate.set()
    await one.call.done_writing()
    finished = set()
    while (response := await one.receive()) is not grpc.aio.EOF:
        if response.HasField("done"):
            finished.add(response.done.request)
    assert finished == {1, 2}


async def test_a_deadline_stops_the_engine(serve: Serve, connect: Connect, engine: FakeEngine) -> None:
    client = connect(await serve(fake_backend(engine=engine)))
    await client.hello()
    await client.ask(1, "?", deadline_ms=50)
    error = await client.expect("error")
    assert (error.request, error.status, error.reason) == (1, 4, "DEADLINE_EXCEEDED")
    assert "50 ms" in error.message
    await within(engine.idle.wait())
    assert engine.steps == 0


async def test_a_question_whose_views_never_arrive(serve: Serve, connect: Connect) -> None:
    client = connect(await serve(picture_timeout_s=0.001))
    await client.hello()
    await client.picture(1, "p", rows=1, columns=1)
    await client.view(1, 0, b"x")
    await client.ask(1, "?", refs=(1,))
    error = await client.expect("error")
    assert (error.request, error.reason) == (1, "VIEWS_MISSING")
    assert "1 of 2 views" in error.message


async def test_a_client_that_vanishes_stops_the_engine(serve: Serve, connect: Connect, gate: asyncio.Event) -> None:
    endless = FakeEngine(lambda prompt: [65] * 1_000_000, gate=gate)
    server = await serve(fake_backend(engine=endless), limits=SessionLimits(new_tokens=1_000_000))
    client = connect(server)
    await client.hello()
    await client.picture(1, "half", rows=1, columns=1)
    await client.ask(1, "?")
    gate.set()
    await client.expect("token")
    await client.channel.close()
    await within(endless.idle.wait())
    assert endless.cancelled == 1
    assert endless.steps < 1_000_000
    while len(server.service.pictures):  # the incomplete picture is dropped as well
        await asyncio.sleep(0)


async def test_a_call_that_is_cancelled_stops_the_engine(serve: Serve, connect: Connect, engine: FakeEngine) -> None:
    client = connect(await serve(fake_backend(engine=engine)))
    await client.hello()
    await client.ask(1, "?")
    await within(engine.busy.wait())
    client.call.cancel()
    await within(engine.idle.wait())
    assert (engine.cancelled, engine.steps) == (1, 0)


async def fill(client: RawClient, ref: int, name: str) -> None:
    assert not await client.picture(ref, name)
    await client.view(ref, 0, name.encode())
    await client.taken(ref, 0)


async def test_an_evicted_picture_is_asked_for_again(serve: Serve, connect: Connect) -> None:
    server = await serve(cache_bytes=2 * OVERHEAD_BYTES + 100)
    client = connect(server)
    await client.hello()
    for ref, name in ((1, "a"), (2, "b"), (3, "c")):  # the third pushes the first out
        await fill(client, ref, name)
    assert len(server.service.pictures) == 2
    await client.ask(1, "?", refs=(3, 1))
    need = await client.expect("need_picture")
    assert (need.request, need.ref) == (1, 1)
    await fill(client, 1, "a")
    assert (await client.answer(1))[0] == "ca?"
    await client.ask(2, "?", refs=(3,))  # it was in use, so the second had to go
    assert (await client.answer(2))[0] == "c?"
    await client.ask(3, "?", refs=(2,))
    assert (await client.expect("need_picture")).ref == 2


async def test_pictures_in_use_are_not_evicted(
    serve: Serve, connect: Connect, engine: FakeEngine, gate: asyncio.Event
) -> None:
    server = await serve(fake_backend(engine=engine), cache_bytes=2 * OVERHEAD_BYTES + 100)
    one, two = connect(server), connect(server)
    await one.hello()
    await two.hello()
    await fill(one, 1, "a")
    await fill(one, 2, "b")
    await one.ask(1, "?", refs=(1, 2))
    await within(engine.busy.wait())
    await two.send(pictures=[pb.Picture(ref=1, picture_id=b"c" * 8)])
    await two.failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "CACHE_FULL")
    gate.set()
    assert (await one.answer(1))[0] == "ab?"


async def test_abandoned_pictures_make_room_for_newer_ones(serve: Serve, connect: Connect) -> None:
    server = await serve(limits=SessionLimits(pictures_under_way=2))
    client = connect(server)
    await client.hello()
    for ref in range(1, 6):
        await client.picture(ref, str(ref))
    assert len(server.service.pictures) == 2
    await client.view(1, 0, b"late")  # acknowledged and dropped
    await client.ask(1, "?", refs=(1,))
    assert (await client.expect("need_picture")).ref == 1
    await fill(client, 1, "1")
    assert (await client.answer(1))[0] == "1?"


async def test_views_of_a_picture_that_was_announced_with_another_layout_are_dropped(
    serve: Serve, connect: Connect
) -> None:
    server = await serve(limits=SessionLimits(pictures_under_way=1, views_per_picture=5))
    early, late = connect(server), connect(server)
    await early.hello()
    await late.hello()
    await early.picture(1, "p", rows=2, columns=2)
    await early.picture(2, "q")  # one too many: the first is dropped
    await late.picture(1, "p")
    for index in (3, 0):  # the first does not exist now, the second is another view
        await early.view(1, index, b"lost")
    await early.ask(1, "?", refs=(1,))
    error = await early.expect("error")
    assert (error.request, error.reason) == (1, "LAYOUT_MISMATCH")
    await late.view(1, 0, b"good")
    await late.ask(1, "?", refs=(1,))
    assert (await late.answer(1))[0] == "good?"
    await early.end()


async def test_stopping_finishes_questions_and_accepts_no_more(
    serve: Serve, connect: Connect, engine: FakeEngine, gate: asyncio.Event
) -> None:
    server = await serve(fake_backend(engine=engine))
    busy, quiet = connect(server), connect(server)
    await busy.hello()
    await quiet.hello()
    await busy.ask(1, "under way")
    await within(engine.busy.wait())
    stopping = asyncio.create_task(server.stop(grace_s=ANSWERED))
    assert "stopping" in await quiet.failed(grpc.StatusCode.UNAVAILABLE, "STOPPING")
    await busy.ask(2, "too late")
    refused = await busy.expect("error")
    assert (refused.request, refused.reason) == (2, "STOPPING")
    gate.set()
    assert (await busy.answer(1))[0] == "under way"
    assert "stopping" in await busy.failed(grpc.StatusCode.UNAVAILABLE, "STOPPING")
    await within(stopping)
    await server.stop()
    assert engine.stopped and engine.idle.is_set()


async def test_stopping_waits_no_longer_than_grace_s(serve: Serve, connect: Connect, engine: FakeEngine) -> None:
    server = await serve(fake_backend(engine=engine))
    busy = connect(server)
    await busy.hello()
    await busy.ask(1, "?")
    await within(engine.busy.wait())
    stopping = asyncio.create_task(server.stop(grace_s=0.01))
    assert "stopping" in await busy.failed(grpc.StatusCode.UNAVAILABLE, "STOPPING")
    await within(stopping)
    assert engine.stopped and engine.idle.is_set() and engine.steps == 0


async def test_sessions_are_bounded(serve: Serve, connect: Connect) -> None:
    server = await serve(sessions=1)
    one = connect(server)
    await one.hello()
    two = connect(server)  # only now: a stream counts from its opening, so either might have come first
    await two.failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_SESSIONS")
    await one.end()
    three = connect(server)
    await three.hello()


def test_the_service_is_known_by_its_full_name() -> None:
    assert SERVICE == "tofc.v1.TofcService"
