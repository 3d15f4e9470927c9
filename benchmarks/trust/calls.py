"""Attacks that are calls of gRPC: what is said is wrong or much, the frames are good."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from benchmarks.trust.attacks import CALM_S, Assault
from shared.rpc import channel
from shared.rpc.tofc.v1 import tofc_pb2 as pb

METHOD = "/tofc.v1.TofcService/Session"
IN_FLIGHT = 8
EMPTY_PARTS = pb.SessionRequest(views=[pb.View()] * 100_000).SerializeToString()


class RawSession:
    """One call, in bytes; it has said Hello."""

    def __init__(self, assault: Assault, call: Any) -> None:
        self.assault = assault
        self.call = call


async def sessions(assault: Assault, count: int, talk: Callable[[RawSession], Awaitable[None]]) -> None:
    """So many at once, each opened again when it ends."""

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
            await asyncio.sleep(CALM_S)

    await asyncio.gather(*(one() for _ in range(count)))


async def write_empty_parts(session: RawSession) -> None:
    """One request, and then until the server ends the session."""
    await session.call.write(EMPTY_PARTS)
    while await session.call.read() is not grpc.aio.EOF:
        pass


async def ask_without_end(session: RawSession) -> None:
    """Asks another question whenever one is answered or refused."""
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
            await asyncio.sleep(0 if kind == "done" else CALM_S)
            await ask()
