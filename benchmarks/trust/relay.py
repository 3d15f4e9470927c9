"""A TCP relay between a device and a server on this machine, which can cut its connections or die silently.

Promises to cut after exact numbers of bytes. Leaves to `once` and `dead_link` what must then hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Self


class Relay:
    """Relays to the server at `port`; `async with` opens and closes it.

    Each of `cuts` is a number of bytes, of both directions together, after which all connections are cut.
    """

    def __init__(self, port: int, cuts: Iterable[int] = ()) -> None:
        self.cut = 0  # how often all connections were cut
        self.links = 0  # connections that were opened
        self._to = port
        self._cuts = iter(cuts)
        self._left = next(self._cuts, None)
        self._dead = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._abort()
        await asyncio.sleep(0)  # lets the sockets close

    def die(self) -> None:
        """Stop passing data on, without closing anything."""
        self._dead = True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.links += 1
        with suppress(OSError):
            there, here = await asyncio.open_connection("127.0.0.1", self._to)
            self._writers |= {writer, here}
            ways = [asyncio.create_task(self._carry(reader, here)), asyncio.create_task(self._carry(there, writer))]
            self._tasks.update(ways)
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            here.transport.abort()
            self._tasks.difference_update(ways)
            self._writers.discard(here)
            for way in ways:
                way.cancel()
        writer.transport.abort()
        self._writers.discard(writer)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(4096):
                if self._dead:
                    await asyncio.Event().wait()
                if self._left is not None:
                    data, beyond = data[: self._left], len(data) >= self._left
                    self._left -= len(data)
                    if beyond:
                        writer.write(data)
                        await writer.drain()
                        self.cut += 1
                        self._left = next(self._cuts, None)
                        self._abort()
                        return
                writer.write(data)
                await writer.drain()

    def _abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
