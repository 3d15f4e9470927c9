"""One connection to a server: from Hello to its end.

    send() ─ outbox ─ writer task ─ implied numbers ══ stream ══ reader task ─┬─ picture states, acks → uploads
                                                            └─ tokens, done, errors → the question's queue

Promises that everything that is ready at one time is sent as one message, that what may wait for more leaves within
HOLD_S, that every response reaches its question or
upload, that at most 8 views or chunks are unacknowledged, and that every question in flight ends with the error that
ended the connection. Leaves trying again to `session`, the handshake to `handshake`, and how many bytes of an image
file may be in flight to `send_window`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import grpc.aio

from device_client.conversations import Conversations
from device_client.estimates import Opening
from device_client.handshake import shake_hands
from device_client.meter import Meter, Traffic, attach
from device_client.reply_limit import ReplyLimit
from device_client.send_window import SendWindow, SentChunk
from device_client.stream import Stream, is_lost
from tofc.error_text import describe
from tofc.errors import CallError, LinkLostError, ReplyError, UnavailableError
from tofc.out_of_memory import out_of_memory
from tofc.rpc.address import DEFAULT_PORT
from tofc.rpc.channel import (
    CHUNK_BYTES,
    CONNECT_TIMEOUT_S,
    DEFAULT_KEEPALIVE,
    Keepalive,
    dial,
)
from tofc.rpc.connection_errors import DialTarget, root_cause
from tofc.rpc.errors import from_message
from tofc.rpc.implied import ImpliedNumbers
from tofc.rpc.security import ClientSecurity
from tofc.v1 import tofc_pb2 as pb
from tofc.v1.tofc_pb2_grpc import TofcServiceStub
from tofc.version import software_version

BATCH_BYTES = CHUNK_BYTES  # the most of one message: a cancel behind it should not wait long
HOLD_S = 0.2  # the longest that parts wait for others that will leave with them
VIEWS_IN_FLIGHT = 8  # the most views or chunks that are unacknowledged, of all pictures together
NOT_BACK = "NOT_BACK"  # reason of a LinkLostError: the link did not come back within the question's time
SESSION_CLOSED = "the session was closed; open another one"
CLOSE_S = 2.0  # the most that closing may take
OPENING_BYTES = 600  # of opening a link, both ways, where the kernel does not count them

Event = pb.Token | pb.Progress | pb.Rollout | pb.Done | pb.NeedPicture | Exception


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server, and how it is reached."""

    address: str = f"127.0.0.1:{DEFAULT_PORT}"
    """HOST:PORT."""
    security: ClientSecurity = field(default_factory=ClientSecurity)
    """TLS and token; by default neither."""
    connect_s: float = CONNECT_TIMEOUT_S
    """The longest that connecting may take, the handshake included."""
    keepalive: Keepalive = DEFAULT_KEEPALIVE
    """When a link that does not answer counts as lost."""
    via: str = ""
    """HOST:PORT of a relay that leads there; empty: none."""


class PictureListener(Protocol):
    """Receives what happens to a picture on the link."""

    def on_state(self, state: pb.PictureState) -> None:
        """Take the server's reply to an announcement."""

    def on_ack(self, number: int) -> None:
        """Take the acknowledgement of a view (its index) or a chunk (its offset)."""

    def on_end(self) -> None:
        """Take note that the link has ended."""


@dataclass(frozen=True, kw_only=True)
class _Sent:
    """A view or a chunk that is not acknowledged yet."""

    chunk: SentChunk | None = None
    ends_packet: bool = True  # its acknowledgement makes room for another packet: not so for a packet's earlier views


class Link:
    """An open connection. Made by `open`; ended by `close` or by the other side (`failure`)."""

    def __init__(
        self,
        address: str,
        channel: grpc.aio.Channel,
        stream: Stream,
        welcome: pb.Welcome,
        meter: Meter | None,
        window: SendWindow,
        opening_ms: float = 0.0,
    ) -> None:
        self.address = address
        self.welcome = welcome
        traffic = meter.read() if meter else None
        opening_bytes = traffic.up + traffic.down if traffic else OPENING_BYTES
        self.opening = Opening(ms=opening_ms, n_bytes=max(opening_bytes, 1))
        self.failure: Exception | None = None  # a CallError, unless it is a defect
        # By request, in flight as the server counts them; None: cancelled, but the server has not ended it yet.
        self.questions: dict[int, asyncio.Queue[Event] | None] = {}
        self._reply_limits: dict[int, ReplyLimit] = {}  # by request
        self.pictures: dict[int, PictureListener] = {}  # by ref
        self.conversations = Conversations()
        self._question_slots = asyncio.Semaphore(welcome.limits.questions_in_flight or 1)
        self._view_slots = asyncio.Semaphore(VIEWS_IN_FLIGHT)
        self._send_window = window
        self._chunk_acknowledged = asyncio.Event()
        # By ref and number; a view or chunk that is sent twice is acknowledged twice. None: a view, whose bytes do not
        # count for the window.
        self._unacknowledged: defaultdict[tuple[int, int], deque[_Sent]] = defaultdict(deque)
        self._channel = channel
        self._stream = stream
        self._meter = meter
        self._last_request = 0
        self._outbox: deque[pb.SessionRequest] = deque()
        self._send_at = math.inf  # when the outbox must leave, in the loop's time
        self._implied = ImpliedNumbers()
        self._closing = False  # nothing more is added to the outbox
        self._wake_writer = asyncio.Event()
        # gRPC cancels a call whose read or write is cancelled, so only these two tasks ever wait on it.
        self._writer = asyncio.create_task(self._write())
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, target: Target, model_id: str, codec_id: str) -> Link:
        """Connect and shake hands. Raises as `shake_hands`, and UsageError for an address that is not allowed."""
        dialled = DialTarget.of(target.address)
        started = time.perf_counter()
        channel = dial(target.address, target.security, target.keepalive, via=target.via)
        try:
            stream = Stream(TofcServiceStub(channel).Session(metadata=target.security.metadata))
            hello = pb.Hello(client_version=software_version(), model_id=model_id, codec_id=codec_id)
            welcome = await shake_hands(
                stream, hello, dialled=dialled, security=target.security, connect_s=target.connect_s
            )
            opening_ms = (time.perf_counter() - started) * 1e3
            window = SendWindow(ping_timeout_s=target.keepalive.timeout_ms / 1e3)
            meter = await attach(target.via or target.address)
            return cls(target.address, channel, stream, welcome, meter, window, opening_ms)
        except BaseException:
            await channel.close()
            raise

    @property
    def limits(self) -> pb.Limits:
        """Return what the server allows."""
        return self.welcome.limits

    def traffic(self) -> Traffic | None:
        """Return the bytes on this connection's socket so far; None where the kernel does not count them."""
        return self._meter.read() if self._meter else None

    def send(self, *, hold: bool = False, **request: Any) -> None:
        """Queue parts of a message: `send(asks=[pb.Ask(…)])`. Raises the link's failure if it has ended.

        `hold`: others that will follow soon may leave with them, so that they wait for these, at most HOLD_S.
        """
        if self.failure is not None:
            raise self.failure
        self._outbox.append(pb.SessionRequest(**request))
        self._send_within(HOLD_S if hold else 0.0)

    def _send_within(self, wait_s: float) -> None:
        self._send_at = min(self._send_at, asyncio.get_running_loop().time() + wait_s)
        self._wake_writer.set()

    async def send_view(self, ref: int, index: int, packet: bytes, *, views: int = 1, hold: bool = False) -> None:
        """Send a packet of `views` views, the first of which is view `index`, once fewer than 8 are unacknowledged.

        `hold`: see `send`.
        """
        if self._view_slots.locked():
            self._send_within(0.0)
        await self._view_slots.acquire()
        for one in range(index, index + views):
            self._unacknowledged[ref, one].append(_Sent(ends_packet=one == index + views - 1))
        self.send(views=[pb.View(ref=ref, index=index, packets=[packet], views=views if views > 1 else 0)], hold=hold)

    async def send_chunk(self, ref: int, offset: int, data: bytes, *, first: bool) -> int:
        """Send the next chunk of the image file `data` as soon as the link can take it; return its length in bytes.

        `first`: it is the first chunk after the announcement.
        """
        await self._view_slots.acquire()
        while not self._send_window.admits(len(chunk := data[offset : offset + self._send_window.chunk_bytes])):
            self._chunk_acknowledged.clear()
            await self._chunk_acknowledged.wait()
        self._unacknowledged[ref, offset].append(_Sent(chunk=self._send_window.send(len(chunk))))
        self.send(image_chunks=[pb.ImageChunk(ref=ref, offset=offset, total=len(data) if first else 0, data=chunk)])
        return len(chunk)

    async def reserve_question(
        self, *, max_tokens: int = 0, pictures: int = 0, samples: int = 0, rollouts: bool = False
    ) -> tuple[int, asyncio.Queue[Event]]:
        """Wait until the server takes one more question; return a request number and the queue of its events.

        `max_tokens`: the most of its answer; 0: the server's limit. `pictures`: how many the question names. `samples`:
        how many it is answered from. `rollouts`: the server is to send them.
        """
        await self._question_slots.acquire()
        self._last_request += 1
        limit = ReplyLimit(
            max_tokens=max_tokens or self.limits.new_tokens, pictures=pictures, samples=samples, rollouts=rollouts
        )
        self._reply_limits[self._last_request] = limit
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self.questions[self._last_request] = queue
        return self._last_request, queue

    def drop_question(self, request: int, *, cancel: bool) -> None:
        """Discard a question's later events. With `cancel` (it was sent) the server is told to stop, unless it has."""
        if request not in self.questions:
            return
        if cancel:
            self.questions[request] = None  # keeps its place until the server says that it has ended
            self.send(cancels=[pb.Cancel(request=request)])
        else:
            self._release(request)

    def _release(self, request: int) -> asyncio.Queue[Event] | None:
        """Free the question's place; return its queue, None if it was cancelled."""
        self._question_slots.release()
        del self._reply_limits[request]
        return self.questions.pop(request)

    async def close(self) -> None:
        """Send what is queued, end the stream, free the socket. Does not raise; takes a few seconds at most."""
        self.end(LinkLostError(SESSION_CLOSED))
        self._closing = True
        self._send_within(0.0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await asyncio.wait([self._writer])
                await asyncio.wait([self._reader])
        for task in (self._writer, self._reader):
            task.cancel()
        await asyncio.wait([self._writer, self._reader])
        if self._meter is not None:
            self._meter.close()
        await self._channel.close()

    async def _write(self) -> None:
        try:
            await self._write_outbox()
        except Exception as error:
            self._fail(error)

    async def _write_outbox(self) -> None:
        while self._outbox or not self._closing:
            await self._wake_writer.wait()
            await asyncio.sleep(0)  # other tasks add their parts: views encoded earlier go with their announcement
            self._wake_writer.clear()
            await self._wait_for_more()
            while self._outbox:
                batch = self._batch()
                self._implied.shorten(batch)
                if not await self._stream.write(batch):
                    return  # the reader gets the error
        await self._stream.done_writing()

    async def _wait_for_more(self) -> None:
        """Return when the outbox must leave: at once, unless all of it may wait."""
        while (left_s := self._send_at - asyncio.get_running_loop().time()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._wake_writer.wait()
            self._wake_writer.clear()
        self._send_at = math.inf

    def _batch(self) -> pb.SessionRequest:
        """Take from the outbox what fits into one message.

        The server reads a message's pictures before its questions. So pictures that were announced after a question go
        into the next message: too many pictures at once would make the server drop those that the question needs.
        """
        batch = self._outbox.popleft()
        size = batch.ByteSize()
        # A chunk ends its message: the time until its acknowledgement measures the speed of the link.
        while self._outbox and not batch.image_chunks and not (batch.asks and self._outbox[0].pictures):
            size += self._outbox[0].ByteSize()
            if size > BATCH_BYTES:
                break
            batch.MergeFrom(self._outbox.popleft())
        return batch

    async def _read(self) -> None:
        failure: CallError = LinkLostError("the server ended the session")
        try:
            while (response := await self._stream.read()) is not grpc.aio.EOF:
                self._dispatch(response)
            if (error := await self._stream.ended()) is not None:
                lost = isinstance(error, UnavailableError)
                failure = LinkLostError(f"the link was lost ({root_cause(error.message)})") if lost else error
        except Exception as error:
            self._fail(error)
        else:
            self.end(failure)

    def _fail(self, error: Exception) -> None:
        """End the link and the call after an error on this side: even a defect must not leave questions waiting."""
        self.end(_expected(error) or error)
        self._stream.cancel()

    def _dispatch(self, response: pb.SessionResponse) -> None:
        kind = response.WhichOneof("response")
        if kind == "picture_state":
            if listener := self.pictures.get(response.picture_state.ref):
                listener.on_state(response.picture_state)
        elif kind == "view_ack":
            for index in response.view_ack.indexes:
                self._on_ack(response.view_ack.ref, index)
        elif kind == "image_ack":
            self._on_ack(response.image_ack.ref, response.image_ack.offset)
        elif kind == "error" and response.error.request == 0:
            error = from_message(response.error)
            self.end(LinkLostError(error.message, reason=error.reason) if is_lost(error) else error)
        elif kind in ("token", "progress", "rollout", "done", "error", "need_picture"):
            event = getattr(response, kind)
            if event.request not in self.questions:
                return
            ended = kind in ("done", "error")
            if not ended:
                self._reply_limits[event.request].count(event)
            queue = self._release(event.request) if ended else self.questions[event.request]
            if queue is not None:
                queue.put_nowait(from_message(event) if kind == "error" else event)
        elif kind == "welcome":
            raise ReplyError("the server sent Welcome twice; device and server may be of different versions")
        # Other kinds, which a newer server may send, are ignored: this version does not wait for them.

    def _on_ack(self, ref: int, number: int) -> None:
        if not (sent := self._unacknowledged.get((ref, number))):
            return
        acknowledged = sent.popleft()
        if acknowledged.chunk:
            self._send_window.acknowledge(acknowledged.chunk)
            self._chunk_acknowledged.set()
        if not sent:
            del self._unacknowledged[ref, number]
        if acknowledged.ends_packet:
            self._view_slots.release()
        if listener := self.pictures.get(ref):
            listener.on_ack(number)

    def end(self, failure: Exception) -> None:
        """End the link; every question on it raises `failure`. The first failure counts."""
        if self.failure is not None:
            return
        self.failure = failure
        for listener in self.pictures.values():
            listener.on_end()
        for request in list(self.questions):
            if queue := self._release(request):
                queue.put_nowait(failure)


def _expected(error: Exception) -> CallError | None:
    """Return the error that ends a link after `error` on this side; None if that is a defect."""
    if isinstance(error, CallError):
        return error
    if out_of_memory(error):
        return ReplyError(describe(MemoryError(str(error))))
    if isinstance(error, (grpc.RpcError, grpc.aio.BaseError)):
        return ReplyError(f"gRPC failed on this device ({error!r}); ask again")
    return None
