"""One connection to a server: from Hello to its end.

    send() ─ outbox ─ writer task ══ stream ══ reader task ─┬─ picture states, acks → deliveries
                                                            └─ tokens, done, errors → the question's queue

Promises that what is ready at one time leaves as one message, that a message is handed to whom it concerns, that at
most 8 views or chunks are unacknowledged, and that when the connection ends everybody who waits on it hears why.
Leaves trying again to `session`, and how much of a file a slow link can take to `pace`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import grpc.aio

from device_client.allowance import Allowance
from device_client.errors import ReplyError
from device_client.meter import Meter, Traffic, attach
from device_client.pace import Flight, Pace
from device_client.stream import LOST, Stream
from shared.out_of_memory import out_of_memory
from shared.rpc.channel import (
    CHUNK_BYTES,
    CONNECT_S,
    DEFAULT_PORT,
    KEEPALIVE,
    ClientSecurity,
    Keepalive,
    dial,
)
from shared.rpc.errors import MismatchError, TofcError, UnavailableError, UnsupportedError, from_message
from shared.rpc.picture_id import KEY_BYTES
from shared.rpc.tofc.v1 import tofc_pb2 as pb
from shared.rpc.tofc.v1.tofc_pb2_grpc import TofcServiceStub
from shared.rpc.unreachable import Dialled, short
from shared.rpc.version import software_version
from shared.sentence import sentence, shortened

BATCH_BYTES = CHUNK_BYTES  # of what leaves as one message: a cancel soon gets its turn
CONVERSATIONS = 8  # the last ones, which a server keeps as the protocol says; it tells when it does not
VIEWS_IN_FLIGHT = 8  # views or chunks that are unacknowledged, of all pictures together
NOT_BACK = "NOT_BACK"  # a link that was lost, in a question's time
SESSION_CLOSED = "the session was closed; open another one"
LEAVE_S = 2.0  # how long a farewell may take

Conversation = tuple[tuple[str, str], ...]  # questions and answers
Event = pb.Token | pb.Done | pb.NeedPicture | Exception


class LinkLost(UnavailableError):
    """The connection ended before what was asked for came; asking again may work."""

    reason = "LINK_LOST"


@dataclass(frozen=True, kw_only=True)
class Target:
    """Which server, and how it is reached."""

    address: str = f"127.0.0.1:{DEFAULT_PORT}"
    security: ClientSecurity = field(default_factory=ClientSecurity)
    connect_s: float = CONNECT_S  # until Welcome
    keepalive: Keepalive = KEEPALIVE


class PictureListener(Protocol):
    """Who is told what happens to a picture."""

    def on_state(self, state: pb.PictureState) -> None: ...
    def on_ack(self, number: int) -> None:
        """A view's index, or a chunk's offset."""

    def on_end(self) -> None: ...


class Link:
    """An open connection. Made by `open`; ended by `close` or by the other side (`failure`)."""

    def __init__(
        self, channel: grpc.aio.Channel, stream: Stream, welcome: pb.Welcome, meter: Meter | None, pace: Pace
    ) -> None:
        self.welcome = welcome
        self.failure: TofcError | None = None
        # In flight, as the server counts them; one that was given up has no queue any more.
        self.questions: dict[int, asyncio.Queue[Event] | None] = {}
        self._allowances: dict[int, Allowance] = {}
        self.pictures: dict[int, PictureListener] = {}  # by ref
        # Their last question's number. Least recently used first, as the server keeps them.
        self._conversations: OrderedDict[Conversation, int] = OrderedDict()
        self._window = asyncio.Semaphore(VIEWS_IN_FLIGHT)
        self._slots = asyncio.Semaphore(welcome.limits.questions_in_flight or 1)
        self._pace = pace
        self._taken = asyncio.Event()  # a chunk was acknowledged
        # By ref and number; what is sent again has two acknowledgements to come. A view has no flight.
        self._unacknowledged: defaultdict[tuple[int, int], deque[Flight | None]] = defaultdict(deque)
        self._channel = channel
        self._stream = stream
        self._meter = meter
        self._last_request = 0
        self._outbox: deque[pb.SessionRequest] = deque()
        self._leaving = False  # nothing is sent after what the outbox holds
        self._filled = asyncio.Event()  # there is something for the writer to do
        # gRPC cancels a call whose read or write is cancelled, so only these two tasks ever wait on it.
        self._writer = asyncio.create_task(self._write())
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, target: Target, model_id: str, codec_id: str) -> Link:
        """Connect and shake hands.

        Raises:
            UnavailableError: nobody answers there, in time or at all.
            TlsError: whoever answers there is not to be trusted, or speaks no TLS.
            MismatchError, TokenError, …: the server refuses, or runs another model.
            ValueError: the address is none, or may not be dialled without TLS and token.
        """
        dialled = Dialled.of(target.address)
        channel = dial(target.address, target.security, target.keepalive)
        try:
            stream = Stream(TofcServiceStub(channel).Session(metadata=target.security.metadata))
            hello = pb.Hello(client_version=software_version(), model_id=model_id, codec_id=codec_id)
            try:
                async with asyncio.timeout(target.connect_s):
                    welcome = await _shake_hands(stream, hello)
            except TimeoutError:
                raise dialled.silent(target.connect_s) from None
            except UnavailableError as error:
                if error.reason == UnavailableError.reason:
                    raise await dialled.explain(target.security, error.message) from None
                raise
            except UnsupportedError as error:
                raise UnsupportedError(
                    f"whoever listens at {dialled} speaks gRPC, but does not know this call ({short(error.message)}); "
                    "name an edge server with --server HOST:PORT, or update the older of device and server"
                ) from None
            _check_ids(welcome, model_id, codec_id)
            if len(welcome.picture_key) not in KEY_BYTES:
                raise ReplyError(
                    f"the server's picture key has {len(welcome.picture_key)} bytes, allowed are {KEY_BYTES.start} to "
                    f"{KEY_BYTES.stop - 1}; device and server may be of different versions"
                )
            return cls(channel, stream, welcome, await attach(target.address), Pace(target.keepalive.timeout / 1e3))
        except BaseException:
            await channel.close()
            raise

    @property
    def limits(self) -> pb.Limits:
        return self.welcome.limits

    def traffic(self) -> Traffic | None:
        """Bytes on this connection's socket so far; None where the kernel does not tell."""
        return self._meter.read() if self._meter else None

    def send(self, **request: Any) -> None:
        """Queue parts of a message: ``send(asks=[pb.Ask(…)])``. Raises the link's failure if it has ended."""
        if self.failure is not None:
            raise self.failure
        self._outbox.append(pb.SessionRequest(**request))
        self._filled.set()

    async def send_view(self, ref: int, index: int, packet: bytes) -> None:
        """Send a packet as soon as fewer than 8 are unacknowledged."""
        await self._window.acquire()
        self._unacknowledged[ref, index].append(None)
        self.send(views=[pb.View(ref=ref, index=index, packet=packet)])

    async def send_chunk(self, ref: int, offset: int, data: bytes, *, begins: bool) -> int:
        """Send a piece of the image file ``data`` as soon as the link takes more; returns how long it was.

        ``begins``: it is the first of this announcement.
        """
        await self._window.acquire()
        while not self._pace.fits(len(piece := data[offset : offset + self._pace.chunk])):
            self._taken.clear()
            await self._taken.wait()
        self._unacknowledged[ref, offset].append(self._pace.leaves(len(piece)))
        self.send(image_chunks=[pb.ImageChunk(ref=ref, offset=offset, total=len(data) if begins else 0, data=piece)])
        return len(piece)

    async def new_question(self, *, most_tokens: int = 0, pictures: int = 0) -> tuple[int, asyncio.Queue[Event]]:
        """A request number and the queue that everything about it comes to, as soon as the server takes one more.

        ``most_tokens``: of its answer, 0 for as many as the server allows.
        """
        await self._slots.acquire()
        self._last_request += 1
        allowance = Allowance(most_tokens=most_tokens or self.limits.new_tokens, pictures=pictures)
        self._allowances[self._last_request] = allowance
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self.questions[self._last_request] = queue
        return self._last_request, queue

    def drop_question(self, request: int, *, cancel: bool) -> None:
        """Stop listening; with ``cancel`` (the question was put) the server is told to stop, unless it has already."""
        if request not in self.questions:
            return
        if cancel:
            self.questions[request] = None  # keeps its place until the server says that it is over
            self.send(cancels=[pb.Cancel(request=request)])
        else:
            self._over(request)

    def remember(self, conversation: Conversation, request: int) -> None:
        """This was answered: a question that goes on from it need not repeat it."""
        self._conversations[conversation] = request
        self._conversations.move_to_end(conversation)
        if len(self._conversations) > CONVERSATIONS:
            self._conversations.popitem(last=False)

    def known(self, conversation: Conversation) -> int:
        """The last question of one that the server is taken to know, which counts as a use of it; else 0."""
        if conversation in self._conversations:
            self._conversations.move_to_end(conversation)
        return self._conversations.get(conversation, 0)

    def unlearn(self, conversation: Conversation, request: int) -> None:
        """The server does not know it up to this question any more. (It may up to a later one with the same words.)"""
        if self._conversations.get(conversation) == request:
            del self._conversations[conversation]

    def _over(self, request: int) -> asyncio.Queue[Event] | None:
        """The question takes no place any more; returns who listened."""
        self._slots.release()
        del self._allowances[request]
        return self.questions.pop(request)

    async def close(self) -> None:
        """Send what is queued, end the stream, free the socket. Never raises, never takes long."""
        self.end(LinkLost(SESSION_CLOSED))
        self._leaving = True
        self._filled.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await asyncio.wait([self._writer])
                await asyncio.wait([self._reader])
        for task in (self._writer, self._reader):
            task.cancel()
        await asyncio.wait([self._writer, self._reader])
        if self._meter is not None:
            self._meter.close()
        await self._channel.close()

    async def _write(self) -> None:
        while self._outbox or not self._leaving:
            await self._filled.wait()
            await asyncio.sleep(0)  # views that are known already, for instance, leave with their announcement
            self._filled.clear()
            while self._outbox:
                if not await self._stream.write(self._batch()):
                    return  # the reader hears why
        await self._stream.done_writing()

    def _batch(self) -> pb.SessionRequest:
        """What the outbox holds, as one message as far as it fits into one.

        The server takes a message's pictures before its questions: pictures that came ahead of the questions before
        them would be too many under way, and the server would let go of those that the questions are about.
        """
        batch = self._outbox.popleft()
        size = batch.ByteSize()
        # (A chunk is acknowledged when its whole message is there, and tells how fast the link is.)
        while self._outbox and not batch.image_chunks and not (batch.asks and self._outbox[0].pictures):
            size += self._outbox[0].ByteSize()
            if size > BATCH_BYTES:
                break
            batch.MergeFrom(self._outbox.popleft())
        return batch

    async def _read(self) -> None:
        failure: TofcError = LinkLost("the server ended the session")
        try:
            while (response := await self._stream.read()) is not grpc.aio.EOF:
                self._dispatch(_parsed(response))
            if (error := await self._stream.ended()) is not None:
                lost = isinstance(error, UnavailableError)
                failure = LinkLost(f"the link was lost ({short(error.message)})") if lost else error
        except Exception as error:  # whatever it was, nobody may wait for ever
            told = sentence(MemoryError(str(error))) if out_of_memory(error) else f"{ReplyError.sentence} ({error!r})"
            failure = error if isinstance(error, ReplyError) else ReplyError(told)
            self._stream.cancel()
        self.end(failure)

    def _dispatch(self, response: pb.SessionResponse) -> None:
        kind = response.WhichOneof("response")
        if kind == "picture_state":
            if listener := self.pictures.get(response.picture_state.ref):
                listener.on_state(response.picture_state)
        elif kind == "view_ack":
            for index in response.view_ack.indexes:
                self._acknowledged(response.view_ack.ref, index)
        elif kind == "image_ack":
            self._acknowledged(response.image_ack.ref, response.image_ack.offset)
        elif kind == "error" and response.error.request == 0:
            error = from_message(response.error)
            self.end(LinkLost(error.message, reason=error.reason) if error.status in LOST else error)
        elif kind in ("token", "done", "error", "need_picture"):
            event = getattr(response, kind)
            if event.request not in self.questions:
                return
            over = kind in ("done", "error")
            if not over:
                self._allowances[event.request].take(event)
            queue = self._over(event.request) if over else self.questions[event.request]
            if queue is not None:
                queue.put_nowait(from_message(event) if kind == "error" else event)
        elif kind == "welcome":
            raise ReplyError("the server said Welcome twice; device and server may be of different versions")
        # A kind that a newer server may send is nothing that this version waits for.

    def _acknowledged(self, ref: int, number: int) -> None:
        if not (waiting := self._unacknowledged.get((ref, number))):
            return
        if flight := waiting.popleft():
            self._pace.arrived(flight)
            self._taken.set()
        if not waiting:
            del self._unacknowledged[ref, number]
        self._window.release()
        if listener := self.pictures.get(ref):
            listener.on_ack(number)

    def end(self, failure: TofcError) -> None:
        """Tell everybody who waits that nothing more comes, and why. The first reason counts."""
        if self.failure is not None:
            return
        self.failure = failure
        for listener in self.pictures.values():
            listener.on_end()
        for request in list(self.questions):
            if queue := self._over(request):
                queue.put_nowait(failure)


async def _shake_hands(stream: Stream, hello: pb.Hello) -> pb.Welcome:
    reading = asyncio.create_task(stream.read())  # before writing: a server that refuses does not wait for Hello
    try:
        await stream.write(pb.SessionRequest(hello=hello))
        response = await reading
    finally:
        reading.cancel()
    if response is grpc.aio.EOF:
        raise await stream.ended() or ReplyError("the server ended the session without a Welcome; its log may say why")
    response = _parsed(response)
    kind = response.WhichOneof("response")
    if kind == "error":
        raise from_message(response.error)
    if kind != "welcome":
        raise ReplyError(f"the server's first word was {kind!r}, not 'welcome'; is this a TOFC server of this version?")
    welcome: pb.Welcome = response.welcome
    return welcome


def _parsed(response: pb.SessionResponse | None) -> pb.SessionResponse:
    if response is None:  # gRPC's word for bytes that are no such message
        raise ReplyError("what the server sent cannot be read; device and server may be of different versions")
    return response


def _check_ids(welcome: pb.Welcome, model_id: str, codec_id: str) -> None:
    for what, ours, theirs in (("model", model_id, welcome.model_id), ("codec", codec_id, welcome.codec_id)):
        if ours != theirs:
            raise MismatchError(
                f"the server runs {what} {shortened(theirs, 64)}, this device {ours}; give both sides halves of one "
                "checkpoint (--model PATH)",
                reason=f"{what.upper()}_MISMATCH",
            )
