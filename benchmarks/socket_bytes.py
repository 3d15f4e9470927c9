"""Every byte between a device and a server, by what it is for.

    python -m benchmarks.socket_bytes          # half a minute; writes benchmarks/results/socket_bytes.json
    python -m benchmarks.socket_bytes --table  # prints the tables of docs/latency.md

    device ══ TCP ══ Recorder ══ TCP ══ server
                        └─ FrameReader (one a direction): HTTP/2 frames ─→ gRPC messages ─→ protobuf fields ─→ Counter

Starts a real server and a real device with nano in one process, with a recorder between them, and asks about pictures
of `tests/e2e`. Promises that the parts sum to what crossed the socket: a byte that is not understood is an error.
Leaves times to `end_to_end`, and TLS, which hides the frames.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Self

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from device_client.encoder import Encoder, TowerEncoder
from device_client.link import Target
from device_client.session import Session
from edge_server.backend import Backend, load
from edge_server.server import start
from edge_server.settings import ServerSettings
from tofc import json_text
from tofc.model.shipped import NANO
from tofc.v1 import tofc_pb2 as pb

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "tests" / "e2e" / "pictures"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER, MESSAGE_PREFIX = 9, 5  # bytes of HTTP/2 and gRPC
FRAMES = {0: "DATA", 1: "HEADERS", 3: "RST_STREAM", 4: "SETTINGS", 6: "PING", 7: "GOAWAY", 8: "WINDOW_UPDATE"}
STATIC_NAMES = {1: ":authority", 2: ":method", 3: ":method", 4: ":path", 6: ":scheme", 7: ":scheme", 8: ":status"}
STATIC_NAMES |= {16: "accept-encoding", 31: "content-type", 58: "user-agent"}  # of HPACK, those that gRPC uses
CONTENT = {"View.packets": "packets", "Ask.question": "text", "Token.text": "text"}  # what is to be carried
TIMEOUT_S = 300.0  # of a question, as the command's

Parts = Counter[str]


class FrameReader:
    """Splits one direction of a connection into parts; `parts` counts their bytes."""

    def __init__(self, root: Descriptor, *, preface: bool) -> None:
        self.parts: Parts = Counter()
        self._root = root
        self._preface = preface
        self._waiting = b""  # of a frame that is not complete
        self._message = b""  # of a gRPC message that is not complete; a session has one stream

    @property
    def unread(self) -> int:
        """Return the bytes that arrived and are not counted yet."""
        return len(self._waiting) + len(self._message)

    def feed(self, data: bytes) -> None:
        """Count what arrived. Raises ValueError for bytes that are not understood."""
        self._waiting += data
        if self._preface and len(self._waiting) >= len(PREFACE):
            self._waiting = self._waiting.removeprefix(PREFACE)
            self.parts["HTTP/2 preface"] += len(PREFACE)
            self._preface = False
        while not self._preface and len(self._waiting) >= FRAME_HEADER:
            size = FRAME_HEADER + int.from_bytes(self._waiting[:3], "big")
            if len(self._waiting) < size:
                return
            frame, self._waiting = self._waiting[:size], self._waiting[size:]
            self._frame(frame[3], frame[4], frame[FRAME_HEADER:])

    def _frame(self, kind: int, flags: int, payload: bytes) -> None:
        name = FRAMES.get(kind, f"HTTP/2 frame {kind}")
        if name == "DATA":
            self.parts["DATA frame headers"] += FRAME_HEADER
            self._data(payload)
        elif name == "HEADERS":
            self.parts["HEADERS frame headers"] += FRAME_HEADER
            for header, size in _headers(payload):
                self.parts[f"header {header}"] += size
        else:
            ack = " acknowledged" if flags & 1 and name in ("SETTINGS", "PING") else ""
            self.parts[name + ack] += FRAME_HEADER + len(payload)

    def _data(self, payload: bytes) -> None:
        self._message += payload
        while len(self._message) >= MESSAGE_PREFIX:
            end = MESSAGE_PREFIX + int.from_bytes(self._message[1:MESSAGE_PREFIX], "big")
            if len(self._message) < end:
                return
            message, self._message = self._message[MESSAGE_PREFIX:end], self._message[end:]
            self.parts["gRPC message prefixes"] += MESSAGE_PREFIX
            self.parts.update(fields(self._root, message))


def fields(kind: Descriptor, message: bytes) -> Parts:
    """Return the bytes of a serialised message by field: the tag, length and value of each together.

    What is to be carried (`CONTENT`) counts apart from its tag and length.
    """
    parts: Parts = Counter()
    at = 0
    while at < len(message):
        start = at
        tag, at = _varint(message, at)
        field = kind.fields_by_number[tag >> 3]
        name = f"{kind.name}.{field.name}"
        if tag & 7 == 2:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                parts[name] += at - start - length
                parts.update(fields(field.message_type, value))
                continue
            if name in CONTENT:
                parts[CONTENT[name]] += length
                start += length
        else:
            at = {0: lambda at: _varint(message, at)[1], 1: lambda at: at + 8, 5: lambda at: at + 4}[tag & 7](at)
        parts[name] += at - start
    return parts


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at


def _headers(block: bytes) -> Iterator[tuple[str, int]]:
    """Yield name and bytes of each header of an HPACK block (RFC 7541, 6)."""
    at = 0
    while at < len(block):
        start, first = at, block[at]
        bits = 7 if first & 0x80 else 6 if first & 0x40 else 5 if first & 0x20 else 4
        number, at = _prefixed(block, at, bits)
        name = STATIC_NAMES.get(number, f"{number} of the table")
        if bits == 5:  # the size of the table changes
            name = "table size"
        elif bits != 7:
            if number == 0:
                length, at = _prefixed(block, at, 7)
                name, at = block[at : at + length].decode("ascii", "replace"), at + length
            length, at = _prefixed(block, at, 7)
            at += length
        yield name, at - start


def _prefixed(data: bytes, at: int, bits: int) -> tuple[int, int]:
    value, at = data[at] & (1 << bits) - 1, at + 1
    if value < (1 << bits) - 1:
        return value, at
    more, at = _varint(data, at)
    return value + more, at


class Recorder:
    """A TCP relay in front of a server at `port` of this machine; `async with` opens and closes it."""

    def __init__(self, port: int) -> None:
        self.up = FrameReader(pb.SessionRequest.DESCRIPTOR, preface=True)
        self.down = FrameReader(pb.SessionResponse.DESCRIPTOR, preface=False)
        self.carried = {"up": 0, "down": 0}  # bytes, whether understood or not
        self._to = port
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._to)
        for direction, source, target in (("up", reader, to_server), ("down", from_server, writer)):
            self._tasks.append(asyncio.create_task(self._carry(direction, source, target)))

    async def _carry(self, direction: str, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        frames = self.up if direction == "up" else self.down
        try:
            with suppress(ConnectionError):
                while data := await source.read(65536):
                    self.carried[direction] += len(data)
                    frames.feed(data)
                    target.write(data)
        finally:
            target.close()


Step = dict[str, dict[str, int]]


async def record(
    settings: ServerSettings,
    make: Callable[[ServerSettings], Backend],
    encoder: Encoder,
    first: Path,
    small: Path,
    large: Path,
) -> tuple[dict[str, Step], Recorder]:
    """Open a session, ask about pictures; return the parts of each step by direction.

    `first` and `small` have one view, `large` several. What crosses the link after an answer counts for the next step,
    as it would between any two questions.
    """
    server = await start(settings, make)
    steps: dict[str, Step] = {}
    async with Recorder(server.port) as recorder:
        counted: dict[str, Parts] = {"up": Counter(), "down": Counter()}

        def end(step: str) -> None:
            now = {"up": recorder.up.parts.copy(), "down": recorder.down.parts.copy()}
            steps[step] = {side: dict(sorted((now[side] - counted[side]).items())) for side in now}
            counted.update(now)

        async with Session(Target(address=f"127.0.0.1:{recorder.port}"), encoder) as session:
            await session.connect()
            end("opening a session")
            for name, path, question in (
                ("a first picture, while the tower is loaded", first, "is there a red circle?"),
                ("a new picture of one view", small, "is there a red circle?"),
                ("another question about it", small, "is there a blue square?"),
                ("a new picture in crops", large, "is there a red circle?"),
                ("another question about the crops", large, "is there a blue square?"),
            ):
                await session.ask([session.open(path)], question, timeout_s=TIMEOUT_S).result()
                end(name)
        end("closing the session")
    await server.stop()
    return steps, recorder


def tables(steps: dict[str, Step]) -> str:
    """Return the tables of docs/latency.md: a row for each part, a column for each step and direction."""
    lines = []
    for side, title in (("up", "To the server"), ("down", "To the device")):
        names = sorted({part for step in steps.values() for part in step[side]}, key=_rank)
        lines += [f"| {title}, bytes | {' | '.join(steps)} |", f"|{' --- |' * (len(steps) + 1)}"]
        for name in names:
            cells = [str(step[side].get(name, "")) for step in steps.values()]
            lines.append(f"| {_shown(name)} | {' | '.join(cells)} |")
        totals = (str(sum(step[side].values())) for step in steps.values())
        content = (str(sum(step[side].values()) - sum(_content(step[side]))) for step in steps.values())
        lines += [f"| **all** | {' | '.join(totals)} |", f"| **beside packets and text** | {' | '.join(content)} |", ""]
    return "\n".join(lines)


def _content(parts: dict[str, int]) -> tuple[int, ...]:
    return tuple(parts.get(name, 0) for name in sorted(set(CONTENT.values())))


def _rank(name: str) -> tuple[int, str]:
    if name in CONTENT.values():
        return 0, name
    return (3 if name.startswith("header") else 2 if "." in name and "HTTP" not in name else 1), name


def _shown(name: str) -> str:
    return f"`{name}`" if "." in name and "HTTP" not in name else name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=NANO)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "socket_bytes.json")
    parser.add_argument("--table", action="store_true", help="print the tables of the last run, measure nothing")
    chosen = parser.parse_args()
    if not chosen.table:
        pictures = [PICTURES / f"picture-{number}.jpg" for number in ("00", "01", "11")]
        settings = ServerSettings(model=chosen.model, port=0, grace_s=0.0)
        steps, recorder = asyncio.run(record(settings, load, TowerEncoder.open(chosen.model), *pictures))
        found = {
            "command": "python -m benchmarks.socket_bytes",
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, loopback",
            "carried": recorder.carried,
            "steps": steps,
        }
        json_text.write(chosen.out, found)
    print(tables(json.loads(chosen.out.read_text(encoding="utf-8"))["steps"]))


if __name__ == "__main__":
    main()
