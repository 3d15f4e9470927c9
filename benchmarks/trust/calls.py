"""Attacks by gRPC calls: valid HTTP/2 frames with wrong or too many messages.

Promises that a session has done the handshake before it attacks. Leaves attacks on HTTP/2 to `attacks`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from benchmarks.trust.attacks import PAUSE_S, Assault
from tofc.rpc import channel
from tofc.v1 import tofc_pb2 as pb

METHOD = "/tofc.v1.TofcService/Session"
IN_FLIGHT = 8
EMPTY_PARTS = pb.SessionRequest(views=[pb.View()] * 100_000).SerializeToString()


class RawSession:
    """One session after Hello, whose requests and responses are raw bytes."""

    def __init__(self, assault: Assault, call: Any) -> None:
        self.assault = assault
        self.call = call


async def sessions(assault: Assault, count: int, talk: Callable[[RawSession], Awaitable[None]]) -> None:
    """Keep this many sessions open at once; each is opened again when it ends."""

    async def one() -> None:
        while not assault.over:
            async with channel.dial(f"127.0.0.1:{assault.port}") as dialled:
                call: Any = dialled.stream_stream(METHOD)()
                try:
                    await call.write(assault.hello)
                    await call.read()
                    assault.done["sessions"] += 1
                    await talk(RawSession(assault, call))
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    assault.done["refused"] += 1
            await asyncio.sleep(PAUSE_S)

    await asyncio.gather(*(one() for _ in range(count)))


async def write_empty_parts(session: RawSession) -> None:
    """Send one request, then wait until the server ends the session."""
    await session.call.write(EMPTY_PARTS)
    while await session.call.read() is not grpc.aio.EOF:
        pass


async def ask_without_end(session: RawSession) -> None:
    """Ask another question whenever one is answered or refused."""
    numbers = itertools.count(1)

    async def ask() -> None:
        asked = pb.Ask(request=next(numbers), question="how many are there?")
        await session.call.write(pb.SessionRequest(asks=[asked]).SerializeToString())

    for _ in range(IN_FLIGHT):
        await ask()
    while not session.assault.over and (data := await session.call.read()) is not grpc.aio.EOF:
        kind = pb.SessionResponse.FromString(data).WhichOneof("response")
        if kind in ("done", "error"):
            session.assault.done["answered" if kind == "done" else "refused questions"] += 1
            await asyncio.sleep(0 if kind == "done" else PAUSE_S)
            await ask()
