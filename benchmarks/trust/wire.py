"""Hand-written HTTP/2, for frames that no gRPC client would send.

Promises to send frames as they are given, valid or not. Leaves choosing them to `attacks`.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable
from types import TracebackType
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
END_HEADERS = 4


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """Build an HTTP/2 frame (RFC 9113, 4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def message(data: bytes) -> bytes:
    """Build an uncompressed message of a gRPC call: gRPC's prefix, then `data`."""
    return b"\0" + struct.pack(">I", len(data)) + data


def literal(name: bytes, value: bytes) -> bytes:
    """Encode a literal header field without indexing (RFC 7541, 6.2.2)."""
    return b"\0" + _length(len(name)) + name + _length(len(value)) + value


def _length(size: int) -> bytes:
    if size < 127:
        return bytes([size])
    rest, coded = size - 127, b"\x7f"
    while rest >= 128:
        coded, rest = coded + bytes([rest % 128 | 128]), rest // 128
    return coded + bytes([rest])


def call(path: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """Build the header block of a gRPC call."""
    fields = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"here"),
        (b"te", b"trailers"), (b"content-type", b"application/grpc"), *more,
    ]  # fmt: skip
    return b"".join(literal(name, value) for name, value in fields)


class Wire:
    """A plain connection that has sent the HTTP/2 preface."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.closed = asyncio.Event()  # set by `reading`

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        await self.send(PREFACE + frame(SETTINGS))
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.writer.close()

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def call(self, block: bytes, stream: int = 1) -> None:
        await self.send(frame(HEADERS, block, flags=END_HEADERS, stream=stream))

    async def receive(self) -> tuple[int, int, bytes]:
        """Receive the next frame: (type, stream, payload)."""
        head = await self.reader.readexactly(9)
        payload = await self.reader.readexactly(int.from_bytes(head[:3], "big"))
        return head[3], int.from_bytes(head[5:], "big"), payload

    async def reading(self, talk: Awaitable[None]) -> None:
        """Run `talk` until it ends or the other side closes; received data is discarded."""

        async def read() -> None:
            try:
                while await self.reader.read(1 << 16):
                    pass
            finally:
                self.closed.set()

        tasks = [asyncio.ensure_future(talk), asyncio.create_task(read())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
