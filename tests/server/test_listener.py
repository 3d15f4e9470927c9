"""A port that gRPC gives up is bound again; open sessions stay open."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
from typing import Any

import pytest

from benchmarks.trust.wire import HEADERS, RST_STREAM, Wire, call
from edge_server import listener as listening
from tests.server.conftest import Connect, Serve
from tests.server.raw_client import ANSWERED
from tofc.errors import UnavailableError
from tofc.rpc import channel

SESSION = b"/tofc.v1.TofcService/Session"
UNDECODABLE = [call(b"/\xff"), call(SESSION + b"\xc3")]
REFUSED = [
    call(b""),
    call(b"*"),
    call(SESSION, (b"x-\xff", b"1")),
    call(SESSION, (b"x-latin", b"\xe9\xff")),
    call(SESSION, (b"grpc-timeout", b"-1S")),
]


@pytest.fixture(autouse=True)
def fast_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "WATCH_S", 0.02)
    logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set whenever a port is bound."""
    event, bind = asyncio.Event(), channel.bind

    def recording(*arguments: Any) -> int:
        event.set()
        return bind(*arguments)

    monkeypatch.setattr(channel, "bind", recording)
    return event


@pytest.mark.parametrize("block", UNDECODABLE)
async def test_a_call_that_grpc_cannot_decode_leaves_the_service_up(
    serve: Serve, connect: Connect, bound: asyncio.Event, block: bytes
) -> None:
    server = await serve()
    before = connect(server)
    await before.hello()
    for _ in range(3):
        bound.clear()
        async with Wire(server.port) as wire:
            await wire.call(block)
            async with asyncio.timeout(ANSWERED):
                await bound.wait()
        after = connect(server)
        await after.hello()
        await after.ask(1, "new")
        assert (await after.answer(1))[0] == "new"
    await before.ask(1, "old")
    assert (await before.answer(1))[0] == "old"


async def test_open_sessions_outlive_a_collection_of_garbage(
    serve: Serve, connect: Connect, bound: asyncio.Event
) -> None:
    server = await serve()
    open_ones = [connect(server) for _ in range(3)]
    for one in open_ones:
        await one.hello()
    bound.clear()
    async with Wire(server.port) as wire:
        await wire.call(UNDECODABLE[0])
        async with asyncio.timeout(ANSWERED):
            await bound.wait()
    gc.collect()
    for one in open_ones:
        await one.ask(1, "old")
        assert (await one.answer(1))[0] == "old"
        await one.end()


async def test_no_method_is_registered_separately(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each registered method is waited for with memory that gRPC frees when its accept loop ends and then writes to."""

    def registered(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("grpc.aio._server.Server.add_registered_method_handlers", registered)
    client = connect(await serve())
    await client.hello()


@pytest.mark.parametrize("block", REFUSED)
async def test_other_malformed_calls_are_refused(serve: Serve, connect: Connect, block: bytes) -> None:
    server = await serve()
    async with Wire(server.port) as wire:
        await wire.call(block)
        async with asyncio.timeout(ANSWERED):
            while (await wire.receive())[0] not in (RST_STREAM, HEADERS):
                pass
    client = connect(server)
    await client.hello()


async def test_a_check_that_lacks_a_file_descriptor_does_not_count_the_port_as_lost(
    serve: Serve, connect: Connect, bound: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a client that opens connections until no descriptor is left could end the server."""
    server = await serve()
    before = connect(server)
    await before.hello()
    looked, is_port_free = asyncio.Semaphore(0), channel.is_port_free
    loop = asyncio.get_running_loop()

    def recording(host: str, port: int) -> bool:
        try:
            return is_port_free(host, port)
        except OSError:
            loop.call_soon_threadsafe(looked.release)
            raise

    monkeypatch.setattr(channel, "is_port_free", recording)
    bound.clear()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        async with asyncio.timeout(ANSWERED):
            for _ in range(3):
                await looked.acquire()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not bound.is_set() and not server.watching.done()
    await before.ask(1, "old")
    assert (await before.answer(1))[0] == "old"
    await connect(server).hello()


async def test_a_port_that_somebody_else_took_ends_the_server_with_an_error(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await serve()

    def taken(*_: object) -> int:
        raise UnavailableError("cannot listen on 127.0.0.1: the port is taken")

    monkeypatch.setattr(channel, "bind", taken)
    async with Wire(server.port) as wire:
        await wire.call(UNDECODABLE[0])
        async with asyncio.timeout(ANSWERED):
            with pytest.raises(UnavailableError, match="the port was lost: cannot listen"):
                await server.watching


async def test_a_server_that_lost_its_port_still_ends_open_sessions_in_order(
    serve: Serve, connect: Connect, bound: asyncio.Event
) -> None:
    server = await serve()
    client = connect(server)
    await client.hello()
    bound.clear()
    async with Wire(server.port) as wire:
        await wire.call(UNDECODABLE[0])
        async with asyncio.timeout(ANSWERED):
            await bound.wait()
    stopping = asyncio.create_task(server.stop(grace_s=ANSWERED))
    error = await client.expect("error")
    assert error.reason == "STOPPING"
    await client.call.done_writing()
    await stopping
