"""A narrow link: a TCP relay on this machine that carries few bytes a second, late, and can be cut.

Promises that little waits in the kernel's buffers, which would otherwise hide how slow the link is: a few kilobytes.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Self

BUFFER = 4096  # bytes; the kernel keeps twice as many


class Relay:
    """Between a client and the server at `port` of this machine; `async with` opens and closes it."""

    def __init__(self, port: int, *, rate: float, delay_s: float = 0.0) -> None:
        """`rate`: bytes a second, each way. `delay_s`: one way."""
        self.links = 0  # that were opened
        self.carried = 0  # bytes, from clients to the server
        self.cuts: list[int] = []  # each time so many were carried, the link is cut
        self._to, self._rate, self._delay_s = port, rate, delay_s
        self.dies_at: int | None = None  # when so many were carried
        self._dead = False
        self._sockets: set[socket.socket] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listener = _small(socket.socket())
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
        """Every link, at once; others may be opened."""
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def die(self) -> None:
        """Nothing arrives any more, either way, and nobody is told: as where a cable is pulled."""
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
        server = _small(socket.socket())
        self._sockets |= {client, server}
        with suppress(OSError):
            await asyncio.get_running_loop().sock_connect(server, ("127.0.0.1", self._to))
            ways = [self._start(self._carry(client, server, up=True)), self._start(self._carry(server, client))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for one in (client, server):
            self._sockets.discard(one)
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    async def _carry(self, source: socket.socket, target: socket.socket, *, up: bool = False) -> None:
        loop = asyncio.get_running_loop()
        free_at = loop.time()
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivering = self._start(self._deliver(late, target))
        try:
            while data := await loop.sock_recv(source, max(1, int(self._rate / 50))):
                if self._dead:
                    await asyncio.Event().wait()
                free_at = max(free_at, loop.time()) + len(data) / self._rate
                await asyncio.sleep(free_at - loop.time())
                late.put_nowait((loop.time() + self._delay_s, data))
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

    async def _deliver(self, late: asyncio.Queue[tuple[float, bytes]], target: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            while True:
                at, data = await late.get()
                await asyncio.sleep(at - loop.time())
                if not self._dead:
                    await loop.sock_sendall(target, data)


def _small(made: socket.socket) -> socket.socket:
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    return made
