"""A slow link: a TCP relay on this machine with a limited rate and a delay, which can be cut or die silently.

Promises that only a few kilobytes wait in the kernel's buffers; more would hide how slow the link is.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Self

BUFFER_BYTES = 4096  # the kernel doubles it


class Relay:
    """Relays between clients and the server at `port` of this machine; `async with` opens and closes it."""

    def __init__(self, port: int, *, rate: float, delay_s: float = 0.0) -> None:
        """Prepare a relay of `rate` bytes a second in each direction, with a delay of `delay_s` in each."""
        self.links = 0  # connections that were opened
        self.carried = 0  # bytes from clients to the server
        self.cuts: list[int] = []  # ascending values of `carried` at which all connections are cut
        self._to, self._rate, self._delay_s = port, rate, delay_s
        self.dies_at: int | None = None  # the value of `carried` at which it dies
        self._dead = False
        self._sockets: set[socket.socket] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listener = _with_small_buffers(socket.socket())
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for one in (self._listener, *self._sockets):
            one.close()

    def cut(self) -> None:
        """Cut every connection at once. New ones can be opened."""
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def die(self) -> None:
        """Deliver nothing any more in either direction, and close nothing, as if a cable was pulled."""
        self._dead = True

    def _start(self, work: object) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        return task

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(self._listener)
            self.links += 1
            self._start(self._serve(client))

    async def _serve(self, client: socket.socket) -> None:
        server = _with_small_buffers(socket.socket())
        self._sockets |= {client, server}
        with suppress(OSError):
            await asyncio.get_running_loop().sock_connect(server, ("127.0.0.1", self._to))
            directions = [self._start(self._carry(client, server, up=True)), self._start(self._carry(server, client))]
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        for one in (client, server):
            self._sockets.discard(one)
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    async def _carry(self, source: socket.socket, target: socket.socket, *, up: bool = False) -> None:
        loop = asyncio.get_running_loop()
        free_at = loop.time()
        delayed: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivering = self._start(self._deliver(delayed, target))
        try:
            while data := await loop.sock_recv(source, max(1, int(self._rate / 50))):
                if self._dead:
                    await asyncio.Event().wait()
                free_at = max(free_at, loop.time()) + len(data) / self._rate
                await asyncio.sleep(free_at - loop.time())
                delayed.put_nowait((loop.time() + self._delay_s, data))
                self.carried += len(data) * up
                if self.dies_at is not None and self.carried >= self.dies_at:
                    self.die()
                if self.cuts and self.carried >= self.cuts[0]:
                    del self.cuts[0]
                    self.cut()
        except OSError:
            pass
        finally:
            delivering.cancel()

    async def _deliver(self, delayed: asyncio.Queue[tuple[float, bytes]], target: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            while True:
                at, data = await delayed.get()
                await asyncio.sleep(at - loop.time())
                if not self._dead:
                    await loop.sock_sendall(target, data)


def _with_small_buffers(connection: socket.socket) -> socket.socket:
    connection.setblocking(False)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    return connection
