"""A TCP relay on this machine: a link with a limited rate and a delay, which can be cut or die silently.

Promises to cut after exact numbers of bytes, and that a limited rate has only a few kilobytes waiting in the kernel's
buffers; more would hide how slow the link is. Leaves to others what must hold when a link is cut or dies.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import Self

BUFFER_BYTES = 4096  # the kernel doubles it
PIECES_S = 50  # at a limited rate
PIECES_AHEAD = 100  # read, but not delivered yet


class Relay:
    """Relays between clients and the server at `port` of this machine; `async with` opens and closes it."""

    def __init__(self, port: int, *, rate: float = math.inf, delay_s: float = 0.0, cuts: Iterable[int] = ()) -> None:
        """Prepare a relay of `rate` bytes a second in each direction, with a delay of `delay_s` in each.

        Each of `cuts` is a number of bytes, of both directions together, after which all connections are cut.
        """
        self.links = 0  # connections that were opened
        self.carried = 0  # bytes from clients to the server
        self.cut = 0  # how often all connections were cut
        self.dies_at: int | None = None  # the value of `carried` at which it dies
        self._to, self._rate, self._delay_s = port, rate, delay_s
        self._cuts = iter(cuts)
        self._left = next(self._cuts, None)
        self._dead = False
        self._sockets: set[socket.socket] = set()
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listener = self._socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.port: int = self._listener.getsockname()[1]
        self._accepting = asyncio.create_task(self._accept())
        return self

    async def __aexit__(self, *_: object) -> None:
        ending = [self._accepting, *self._connections]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        for one in (self._listener, *self._sockets):
            one.close()

    def die(self) -> None:
        """Deliver nothing any more in either direction, and close nothing, as if a cable was pulled."""
        self._dead = True

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(self._listener)
            self.links += 1
            self._sockets.add(client)
            connection = asyncio.create_task(self._serve(client))
            self._connections.add(connection)
            connection.add_done_callback(self._connections.discard)

    async def _serve(self, client: socket.socket) -> None:
        server = self._socket()
        self._sockets.add(server)
        try:
            await asyncio.get_running_loop().sock_connect(server, ("127.0.0.1", self._to))
            async with asyncio.TaskGroup() as ways:  # all end with the first, before the sockets are closed
                for source, target, up in ((client, server, True), (server, client, False)):
                    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(PIECES_AHEAD)
                    ways.create_task(self._receive(source, pieces))
                    ways.create_task(self._deliver(pieces, target, up))
        except* OSError:
            pass
        finally:  # not before: the number of a closed socket may at once be that of another connection
            for one in (client, server):
                self._sockets.discard(one)
                one.close()

    async def _receive(self, source: socket.socket, pieces: asyncio.Queue[tuple[float, bytes]]) -> None:
        """Put what arrives, with the times when it is due; an empty piece at the end."""
        loop = asyncio.get_running_loop()
        size = BUFFER_BYTES if math.isinf(self._rate) else max(1, int(self._rate / PIECES_S))
        free_at = loop.time()
        while data := await loop.sock_recv(source, size):
            free_at = max(free_at, loop.time()) + len(data) / self._rate
            await asyncio.sleep(free_at - loop.time())
            await pieces.put((loop.time() + self._delay_s, data))
        await pieces.put((loop.time(), b""))

    async def _deliver(self, pieces: asyncio.Queue[tuple[float, bytes]], target: socket.socket, up: bool) -> None:
        """Send on what is due. Raises ConnectionError when there is no more."""
        loop = asyncio.get_running_loop()
        while True:
            at, data = await pieces.get()
            await asyncio.sleep(at - loop.time())
            self.carried += len(data) * up
            if self.dies_at is not None and self.carried >= self.dies_at:
                self.die()
            if self._dead:
                await asyncio.Event().wait()
            if not data:
                raise ConnectionError("the other end has closed")
            last = self._left is not None and len(data) >= self._left
            data = data[: self._left] if last else data
            self._left = self._left - len(data) if self._left is not None else None
            await loop.sock_sendall(target, data)
            if last:
                self._cut()

    def _cut(self) -> None:
        self.cut += 1
        self._left = next(self._cuts, None)
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _socket(self) -> socket.socket:
        one = socket.socket()
        one.setblocking(False)
        if not math.isinf(self._rate):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        return one
