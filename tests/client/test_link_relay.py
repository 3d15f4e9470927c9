"""The relay of `device-client bench` behaves like its link: rate, distance, order, and the same losses for one seed."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from device_client.link_shape import LinkShape
from device_client.relay import RETRANSMISSION_S, Relay

DATA = bytes(range(256)) * 40  # 10 kB


@pytest_asyncio.fixture
async def echo_port() -> AsyncIterator[int]:
    """A server that sends back what it receives."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            writer.write(data)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def echoed(port: int, data: bytes) -> tuple[bytes, float]:
    """What comes back of data that was sent at once, and the seconds until then."""
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    received = await reader.readexactly(len(data))
    writer.close()
    await writer.wait_closed()
    return received, time.perf_counter() - started


def link(up: float = 1e6, down: float = 1e6, **more: float) -> LinkShape:
    return LinkShape(name="test", up=up, down=down, **{"rtt_s": 0.0, **more})


@pytest.mark.parametrize("shape", [link(up=4e4), link(down=4e4)], ids=["up", "down"])
async def test_bytes_arrive_in_order_and_not_before_the_rate_allows(echo_port: int, shape: LinkShape) -> None:
    async with Relay("127.0.0.1", echo_port, shape) as relay:
        received, took_s = await echoed(relay.port, DATA)
    assert received == DATA and took_s >= len(DATA) / 4e4


async def test_connections_share_the_rate(echo_port: int) -> None:
    async with Relay("127.0.0.1", echo_port, link(up=4e4)) as relay:
        found = await asyncio.gather(echoed(relay.port, DATA), echoed(relay.port, DATA))
    assert max(took_s for _, took_s in found) >= 2 * len(DATA) / 4e4


async def test_an_echo_takes_a_round_trip(echo_port: int) -> None:
    async with Relay("127.0.0.1", echo_port, link(rtt_s=0.2)) as relay:
        received, took_s = await echoed(relay.port, b"x")
    assert received == b"x" and took_s >= 0.2


async def test_lost_segments_are_stalls_and_nothing_is_missing(echo_port: int) -> None:
    async with Relay("127.0.0.1", echo_port, link(loss=0.2), seed=3) as relay:
        received, took_s = await echoed(relay.port, DATA * 3)
        assert received == DATA * 3 and relay.stalls > 0 and took_s >= RETRANSMISSION_S


def test_one_seed_gives_one_sequence_of_delays() -> None:
    def delays(seed: int) -> list[float]:
        relay = Relay("127.0.0.1", 1, link(rtt_s=0.1, loss=0.1, jitter_s=0.02), seed=seed)
        return [relay._delay_s(1448) for _ in range(200)]

    first = delays(1)
    assert first == delays(1) != delays(2)
    assert all(0.05 <= one <= 0.07 or one >= 0.05 + 0.1 + RETRANSMISSION_S for one in first)
    assert 5 <= sum(one > 0.07 for one in first) <= 50


async def test_a_server_that_cannot_be_reached_ends_the_connection() -> None:
    async with Relay("127.0.0.1", 1, link()) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_what_was_sent_before_the_end_arrives_and_is_answered(echo_port: int) -> None:
    async with Relay("127.0.0.1", echo_port, link(rtt_s=0.1)) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        writer.write(DATA)
        writer.write_eof()
        assert await reader.read() == DATA
        writer.close()
        await writer.wait_closed()


async def test_the_next_connection_may_get_the_number_of_a_closed_socket(echo_port: int) -> None:
    async with Relay("127.0.0.1", echo_port, link()) as relay:
        for _ in range(5):
            async with asyncio.timeout(20):
                received, _ = await echoed(relay.port, b"x")
            assert received == b"x"


async def test_the_next_address_of_a_name_is_tried(echo_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    (found,) = await loop.getaddrinfo("127.0.0.1", echo_port, type=socket.SOCK_STREAM)

    async def resolve(*_: object, **__: object) -> list[object]:  # as localhost, where the server listens on one only
        return [(*found[:4], ("127.0.0.1", 1)), found]

    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    async with Relay("localhost", echo_port, link()) as relay:
        received, _ = await echoed(relay.port, b"x")
    assert received == b"x"
