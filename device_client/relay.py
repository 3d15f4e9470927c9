"""A slow link without root: a TCP relay on this machine that is as fast, as far and as lossy as a `LinkShape`.

    client ══ TCP ══ recv ─ wait: bytes / rate ─ queue ─ wait: half a round trip, jitter, stalls ─ send ══ TCP ══ server

A lost segment is a stall: TCP notices after a round trip and 0.2 s (its shortest timeout), and what is behind it waits.
Promises that one seed gives one sequence of stalls and jitters, that all connections share the link's rate, and that
only a few kilobytes wait in the kernel's buffers; more would hide how slow the link is. Leaves TLS to both ends, and
what TCP does to its window after a loss to `benchmarks/link.py`, whose segments are really lost.
"""

from __future__ import annotations

import asyncio
import math
import random
import socket
from collections.abc import Coroutine
from typing import Any, Self

from device_client.link_shape import LinkShape

BUFFER_BYTES = 4096  # at least; the kernel doubles it
BUFFER_S = 0.005  # of a fast link in the kernel's buffers
SEGMENT_BYTES = 1448  # of TCP over Ethernet
RETRANSMISSION_S = 0.2  # Linux's shortest timeout, beyond the round trip
PIECE_S = 0.02  # a slow link takes smaller pieces than a segment, so that each takes no longer than this
WAITED_S = 0.001  # bytes that arrive later than this after they were asked for were not there before
LATE_S = 0.05  # the most that is made up for where this process was woken late
AHEAD_S = 0.002  # a fast link takes several segments before this process sleeps: it may be woken late


class Relay:
    """Relays between clients on this machine and the server at (host, port); `async with` opens and closes it."""

    def __init__(self, host: str, port: int, shape: LinkShape, *, seed: int = 0) -> None:
        self.shape = shape
        self.stalls = 0  # segments that were lost
        self._to = (host, port)
        self._random = random.Random(seed)
        self._free_at = {True: 0.0, False: 0.0}  # when the link can take more, by direction (up: True)
        self._sockets: set[socket.socket] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listener = self._with_small_buffers(socket.socket())
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept())
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in (self._listener, *self._sockets):
            one.close()

    @property
    def address(self) -> str:
        """HOST:PORT for clients."""
        return f"127.0.0.1:{self.port}"

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(self._listener)
            self._start(self._serve(client))

    async def _serve(self, client: socket.socket) -> None:
        self._sockets.add(self._with_small_buffers(client))
        server = None
        try:
            server = await self._connect()
            async with asyncio.TaskGroup() as ways:  # with the first that fails all end
                for source, target, up in ((client, server, True), (server, client, False)):
                    delayed: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
                    ways.create_task(self._receive(source, delayed, up=up))
                    ways.create_task(self._deliver(delayed, target))
        except* OSError:
            pass
        finally:  # not before: the number of a closed socket may at once be that of another connection
            for one in (client, server):
                if one is not None:
                    self._close(one)

    async def _connect(self) -> socket.socket:
        """Connect to the first address that answers: a server may listen on one of localhost's two."""
        loop = asyncio.get_running_loop()
        problem = OSError(f"{self._to[0]} has no address")
        for family, kind, proto, _, address in await loop.getaddrinfo(*self._to, type=socket.SOCK_STREAM):
            try:
                server = socket.socket(family, kind, proto)
            except OSError as error:  # no IPv6 on this machine
                problem = error
                continue
            self._sockets.add(self._with_small_buffers(server))
            try:
                await loop.sock_connect(server, address)
            except OSError as error:
                self._close(server)
                problem = error
            else:
                return server
        raise problem

    def _close(self, one: socket.socket) -> None:
        self._sockets.discard(one)
        one.close()

    async def _receive(self, source: socket.socket, delayed: asyncio.Queue[tuple[float, bytes]], *, up: bool) -> None:
        """Put what arrives, with the times when it is due; an empty piece at the end."""
        loop = asyncio.get_running_loop()
        rate = self.shape.up if up else self.shape.down
        piece = max(1, min(SEGMENT_BYTES, int(rate * PIECE_S)))
        arrives_at = 0.0
        asked_at = -math.inf
        while data := await loop.sock_recv(source, piece):
            now, free_at = loop.time(), self._free_at[up]
            late = now - asked_at <= WAITED_S and now - free_at <= LATE_S  # this process, while bytes were waiting
            self._free_at[up] = (free_at if late else max(free_at, now)) + len(data) / rate
            sent_at = self._free_at[up]
            arrives_at = max(arrives_at, sent_at + self._delay_s(len(data)))
            delayed.put_nowait((arrives_at, data))
            if (ahead_s := sent_at - loop.time()) > AHEAD_S:
                await asyncio.sleep(ahead_s)
            asked_at = loop.time()
        delayed.put_nowait((max(arrives_at, loop.time() + self.shape.rtt_s / 2), b""))

    def _delay_s(self, n_bytes: int) -> float:
        shape = self.shape
        delay_s = shape.rtt_s / 2
        if shape.jitter_s:
            delay_s += self._random.uniform(0, shape.jitter_s)
        if shape.loss and self._random.random() < shape.loss * max(1.0, n_bytes / SEGMENT_BYTES):
            self.stalls += 1
            delay_s += shape.rtt_s + RETRANSMISSION_S
        return delay_s

    async def _deliver(self, delayed: asyncio.Queue[tuple[float, bytes]], target: socket.socket) -> None:
        """Send on what is due, and the end after it; the other direction may go on."""
        loop = asyncio.get_running_loop()
        data = b"?"
        while data:
            at, data = await delayed.get()
            await asyncio.sleep(at - loop.time())
            await loop.sock_sendall(target, data)
        target.shutdown(socket.SHUT_WR)

    def _with_small_buffers(self, connection: socket.socket) -> socket.socket:
        size = max(BUFFER_BYTES, int(max(self.shape.up, self.shape.down) * BUFFER_S))
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        return connection
