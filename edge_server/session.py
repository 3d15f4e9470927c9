"""One stream: hello, then pictures, views, questions and cancellations in any order.

    client   Hello ─ Picture + Ask ─ View … View ──────────── Cancel        (or ImageChunk … ImageChunk)
    server   Welcome ─ PictureState ─ ViewAck … ─ Token … Done | Error | NeedPicture

Promises that limits are checked before anything is allocated, that a broken rule of the protocol ends
the session with an Error that says which, and that nothing goes on when the stream is closed. Leaves
one question's life to `answer` and the pictures a session may name to `uploads`.
"""

import asyncio
import functools
import logging
import time
import traceback
from collections.abc import AsyncIterable, Callable, Coroutine, Iterator
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from numpy.typing import NDArray

from edge_server.answer import Question, Workshop, sampling_of, turns_of
from edge_server.conversations import Conversations
from edge_server.handshake import Identity, check_hello
from edge_server.image_uploads import ImageUploads
from edge_server.outbox import PATIENCE, Outbox, not_read
from edge_server.pictures import Picture, PictureCache
from edge_server.receipts import Receipts
from edge_server.settings import SessionLimits
from edge_server.shortage import shortage
from edge_server.uploads import Uploads
from shared.rpc.errors import (
    DeadlineError,
    DuplicateError,
    InternalError,
    InvalidRequestError,
    LimitError,
    MismatchError,
    TofcError,
    UnknownReferenceError,
    to_message,
)
from shared.rpc.tofc.v1 import tofc_pb2

log = logging.getLogger(__name__)

LOST = "the client went away"  # in the log, of a session that was cut off: its device may come back
PARTS_A_TURN = 64  # of a request: so many are taken, then others have their turn


class Session:
    """`run` lives as long as the stream. `name` stands for it in the log."""

    def __init__(
        self,
        *,
        name: str,
        identity: Identity,
        limits: SessionLimits,
        pictures: PictureCache,
        shop: Workshop,
        outbox: Outbox,
        hello_timeout: float,
        greeted: "Callable[[Session], None]" = lambda _: None,
    ) -> None:
        """`greeted` is called with the first Hello, and may refuse the session."""
        self._name = name
        self._identity = identity
        self._limits = limits
        self._pictures = pictures
        self._shop = shop
        self._uploads = Uploads(pictures, limits, None if shop.darkroom is None else shop.darkroom.looker.rule)
        self._images = ImageUploads(pictures, limits, shop.darkroom)
        self._receipts = Receipts()
        self._conversations = Conversations(limits.question_bytes)
        self._outbox = outbox
        self._hello_timeout = hello_timeout
        self._greeted = greeted
        self._questions: dict[int, Question] = {}  # in flight
        self._asked: set[int] = set()
        self._views = asyncio.Semaphore(limits.views_in_flight)
        self._ended: asyncio.Future[TofcError] = asyncio.get_running_loop().create_future()
        self._draining: TofcError | None = None  # why no question is taken any more
        self._counts = {"views": 0, "bytes": 0}

    def end(self, error: TofcError) -> None:
        """Ends the session from outside, with an Error that says why."""
        if not self._ended.done():
            self._ended.set_result(error)

    def drain(self, error: TofcError) -> None:
        """Refuses further questions with `error`, and ends with it once those in flight are answered."""
        self._draining = error
        if not self._questions:
            self.end(error)

    async def run(self, requests: AsyncIterable[tofc_pb2.SessionRequest]) -> TofcError | None:
        """Serves the stream to its end; the error that ended it has been sent already."""
        began = time.perf_counter()
        error: TofcError | None = None
        outcome = LOST
        try:
            try:
                async with asyncio.TaskGroup() as group:
                    watch = group.create_task(self._watch())
                    await self._serve(requests, group)
                    watch.cancel()
            except BaseExceptionGroup as several:
                error = self._reason(several)
                _release(several)
            try:
                async with asyncio.timeout(PATIENCE):
                    if error is not None:
                        await self._outbox.send(error=to_message(error))
                    await self._outbox.finish()
            except TimeoutError:  # its place is for others
                error = error or not_read()
            outcome = "closed" if error is None else error.reason
        finally:
            self._outbox.abandon()
            self._images.close(lost=outcome == LOST)
            self._uploads.close(lost=outcome == LOST)
            log.info(
                "%s ended after %.1f s: %d pictures, %d views, %d bytes of them, %d questions, %s",
                *(self._name, time.perf_counter() - began, len(self._uploads), self._counts["views"]),
                *(self._counts["bytes"], len(self._asked), outcome),
            )
        return error

    async def _watch(self) -> None:
        raise await self._ended

    def _reason(self, several: BaseExceptionGroup[BaseException]) -> TofcError:
        """Of the errors that ended the session: one that has a sentence, else INTERNAL."""
        if several.subgroup(DecodeError) is not None:
            return InvalidRequestError(
                "what arrived is no request of this protocol; update the older of client and server",
                reason="UNKNOWN_REQUEST",
            )
        told, others = several.split(TofcError)
        if others is not None and (told_of := shortage(others, self._name)) is not None:
            return told_of
        if others is not None:
            log.error("%s failed", self._name, exc_info=others)
        found: BaseException | None = told
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        return found if isinstance(found, TofcError) else InternalError()

    async def _serve(self, requests: AsyncIterable[tofc_pb2.SessionRequest], group: asyncio.TaskGroup) -> None:
        incoming = aiter(requests)
        try:
            async with asyncio.timeout(self._hello_timeout):
                first = await anext(incoming, None)
        except TimeoutError:
            raise DeadlineError(
                f"no Hello within {self._hello_timeout:g} s; send it first", reason="HELLO_MISSING"
            ) from None
        if first is None:
            return
        if not first.HasField("hello"):
            kinds = ", ".join(field.name for field, _ in first.ListFields())
            raise MismatchError(
                f"the first request is {kinds or 'empty'}; a session begins with Hello", reason="HELLO_FIRST"
            )
        check_hello(first.hello, self._identity)
        self._greeted(self)
        draws = self._shop.defaults.temperature > 0
        await self._outbox.send(welcome=self._identity.welcome(self._limits, self._pictures.key, draws=draws))
        await self._take_parts(first, group)
        async for request in incoming:
            if request.HasField("hello"):
                raise MismatchError("a second Hello; a session has one, open another session", reason="HELLO_TWICE")
            if not request.ListFields():
                raise _unknown("an empty request")
            await self._take_parts(request, group)
        # The client has said everything; what it asked is still answered.
        await asyncio.gather(*(question.task for question in self._questions.values() if question.task is not None))

    async def _take_parts(self, request: tofc_pb2.SessionRequest, group: asyncio.TaskGroup) -> None:
        if unknown := UnknownFieldSet(request):  # to leave a part out in silence would let its client wait for ever
            raise _unknown(f"a request with a part of unknown kind ({unknown[0].field_number})")
        for count, taken in enumerate(self._parts(request, group), 1):
            await taken
            if count % PARTS_A_TURN == 0:
                await asyncio.sleep(0)

    def _parts(self, request: tofc_pb2.SessionRequest, group: asyncio.TaskGroup) -> Iterator[Coroutine[Any, Any, None]]:
        yield from (self._picture(announced) for announced in request.pictures)
        yield from (self._view(view, group) for view in request.views)
        yield from (self._image_chunk(chunk, group) for chunk in request.image_chunks)
        yield from (self._ask(ask, group) for ask in request.asks)
        yield from (self._cancel(cancel) for cancel in request.cancels)

    async def _picture(self, announced: tofc_pb2.Picture) -> None:
        picture = self._uploads.announce(announced)
        if picture.complete or announced.reply:
            await self._outbox.send(picture_state=_state(announced.ref, picture))

    async def _view(self, view: tofc_pb2.View, group: asyncio.TaskGroup) -> None:
        announced = self._announced(view.ref, f"view {view.index}")
        if announced.HasField("image"):
            raise InvalidRequestError(
                f"view {view.index} of ref {view.ref}, which was announced as an image; send its file in chunks",
                reason="VIEW_OF_IMAGE",
            )
        count = announced.rows * announced.columns + 1
        if view.index >= count:
            raise InvalidRequestError(
                f"view {view.index} of ref {view.ref}, which has {count} views; they are numbered from 0",
                reason="VIEW_INDEX_INVALID",
            )
        size = len(view.packet)
        if size > self._limits.packet_bytes:
            raise InvalidRequestError(
                f"the packet of view {view.index} of ref {view.ref} has {size} bytes, allowed are "
                f"{self._limits.packet_bytes}; keep fewer features",
                reason="PACKET_TOO_LARGE",
            )
        self._counts["views"] += 1
        self._counts["bytes"] += size
        await self._views.acquire()  # a client that sends faster than this decodes is slowed down here
        group.create_task(self._decode(view, announced, last=view.index == count - 1))

    async def _decode(self, view: tofc_pb2.View, announced: tofc_pb2.Picture, *, last: bool) -> None:
        try:
            # A view that is there already, or of a picture that has gone since, is acknowledged and
            # forgotten: a question that names the picture asks for it again.
            picture = self._pictures.get(announced.picture_id, (announced.rows, announced.columns))
            if picture is not None and not picture.has(view.index):
                loop = asyncio.get_running_loop()
                decoding = functools.partial(_timed_view, self._shop, view.packet, last)
                try:
                    rows, took = await loop.run_in_executor(self._shop.pool, decoding)
                    self._pictures.put(picture, view.index, rows, took)
                except Exception as error:
                    told = shortage(error, f"view {view.index} of ref {view.ref} of {self._name}")
                    if told is None:
                        raise
                    self._pictures.lose(picture, told)
                    picture = None
            # Still in flight until then: else a client that reads nothing makes the server hold views without end.
            for ack in self._receipts.add(view.ref, view.index, last=picture is None or picture.complete):
                await self._outbox.send(view_ack=ack)
        finally:
            self._views.release()

    def _announced(self, ref: int, what: str) -> tofc_pb2.Picture:
        announced = self._uploads.get(ref)
        if announced is None:
            raise UnknownReferenceError(
                f"{what} of ref {ref}, which no Picture announced; announce a picture before its views",
                reason="PICTURE_UNKNOWN",
            )
        return announced

    async def _image_chunk(self, chunk: tofc_pb2.ImageChunk, group: asyncio.TaskGroup) -> None:
        announced = self._announced(chunk.ref, "a chunk")
        self._counts["bytes"] += len(chunk.data)
        try:
            self._counts["views"] += await self._images.take(chunk, announced, self._views, group)
        except Exception as error:
            told = shortage(error, f"the image of ref {chunk.ref} of {self._name}")
            if told is None:
                raise
            self._images.lose(chunk.ref, announced, told)
        await self._outbox.send(image_ack=tofc_pb2.ImageAck(ref=chunk.ref, offset=chunk.offset))

    # questions

    async def _ask(self, ask: tofc_pb2.Ask, group: asyncio.TaskGroup) -> None:
        if ask.request == 0:
            raise InvalidRequestError(
                "request 0 stands for the session; number questions from 1", reason="REQUEST_ZERO"
            )
        try:
            question = self._accept(ask)
        except TofcError as error:
            await self._outbox.send(error=to_message(error, ask.request))
            return
        self._questions[question.number] = question
        question.task = group.create_task(question.answer(self._shop, self._outbox, self._name))
        # Not inside the task: one that is cancelled before its first step runs nothing of it.
        question.task.add_done_callback(lambda _: self._forget(question))

    def _accept(self, ask: tofc_pb2.Ask) -> Question:
        """The question, its pictures held: nothing may be awaited before `_forget` is sure to be called."""
        if self._draining is not None:
            raise self._draining
        if ask.request in self._asked:
            raise DuplicateError(
                f"question {ask.request} was asked in this session; what was asked first goes on, number another "
                "question differently",
                reason="DUPLICATE_REQUEST",
            )
        if len(self._asked) >= self._limits.numbers:
            raise LimitError(
                f"the session has asked {self._limits.numbers} questions; open another", reason="SESSION_USED_UP"
            )
        self._asked.add(ask.request)
        if len(self._questions) >= self._limits.questions_in_flight:
            raise LimitError(
                f"{len(self._questions)} questions are in flight, allowed are {self._limits.questions_in_flight}; "
                "wait for an answer or cancel one",
                reason="TOO_MANY_QUESTIONS",
            )
        if len(ask.refs) > self._limits.pictures_per_question:
            raise InvalidRequestError(
                f"the question names {len(ask.refs)} pictures, allowed are {self._limits.pictures_per_question}; "
                "ask about fewer at once",
                reason="TOO_MANY_PICTURES",
            )
        turns = turns_of(ask, self._conversations.until(ask.after), self._limits)
        sampling = sampling_of(ask, self._limits, self._shop.defaults)
        pictures, gone = self._uploads.hold(list(ask.refs))
        return Question(
            number=ask.request,
            turns=turns,
            sampling=sampling,
            thinking=ask.thinking,
            pictures=pictures,
            gone=gone,
            deadline_ms=ask.deadline_ms,
            conversations=self._conversations,
        )

    def _forget(self, question: Question) -> None:
        self._questions.pop(question.number, None)
        self._uploads.release(question.pictures)
        if self._draining is not None and not self._questions:
            self.end(self._draining)

    async def _cancel(self, cancel: tofc_pb2.Cancel) -> None:
        if cancel.request not in self._asked:
            unknown = UnknownReferenceError(
                f"cancel of question {cancel.request}, which was not asked in this session", reason="QUESTION_UNKNOWN"
            )
            if cancel.request == 0:
                raise unknown
            await self._outbox.send(error=to_message(unknown, cancel.request))
        elif cancel.request in self._questions:  # else its Done crossed the cancel on the way
            self._questions[cancel.request].cancel()


def _state(ref: int, picture: Picture) -> tofc_pb2.PictureState:
    if picture.complete:
        return tofc_pb2.PictureState(ref=ref, complete=True)
    state = tofc_pb2.PictureState(ref=ref, views=picture.held)
    if file := picture.received:
        state.image.bytes, state.image.crc32 = len(file.data), file.crc32
    return state


def _release(error: BaseException | None) -> None:
    """Let go of what the frames of an error hold, requests among it: they are in cycles with it (in asyncio's task
    groups too), which only a full collection finds.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        for one in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
            _release(one)
        before, error.__traceback__, error.__context__ = error.__context__, None, None
        error = before


def _unknown(what: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{what}; the client may be newer than the server: update the server", reason="UNKNOWN_REQUEST"
    )


def _timed_view(shop: Workshop, packet: bytes, last: bool) -> tuple[NDArray[np.float32], float]:
    began = time.perf_counter()
    rows = shop.assembler.view(packet, last=last)
    return rows, (time.perf_counter() - began) * 1e3
