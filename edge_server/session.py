"""One stream: hello, then pictures, views, questions and cancellations in any order.

    client   Hello ─ Picture ─ View … View ─ Ask ──────────── Cancel
    server   Welcome ─ PictureState ─ ViewAck … ─ Token … Done | Error | NeedPicture

Promises that limits are checked before anything is allocated, that a broken rule of the protocol ends
the session with an Error that says which, and that nothing goes on when the stream is closed. Leaves
one question's life to `answer` and memory for pictures to `pictures`.
"""

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterable

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from edge_server.answer import Question, Workshop, sampling_of, turns_of
from edge_server.handshake import Identity, check_hello
from edge_server.outbox import Outbox
from edge_server.pictures import Picture, PictureCache
from edge_server.settings import SessionLimits
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

ID_BYTES = 16


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
    ) -> None:
        self._name = name
        self._identity = identity
        self._limits = limits
        self._pictures = pictures
        self._shop = shop
        self._outbox = outbox
        self._hello_timeout = hello_timeout
        self._announced: dict[int, tofc_pb2.Picture] = {}  # by ref
        self._uploads: dict[bytes, Picture] = {}  # incomplete when announced, oldest first
        self._questions: dict[int, Question] = {}  # in flight
        self._asked: set[int] = set()
        self._views = asyncio.Semaphore(limits.views_in_flight)
        self._ended: asyncio.Future[TofcError] = asyncio.get_running_loop().create_future()
        self._counts = {"views": 0, "bytes": 0}

    def end(self, error: TofcError) -> None:
        """Ends the session from outside, with an Error that says why."""
        if not self._ended.done():
            self._ended.set_result(error)

    async def run(self, requests: AsyncIterable[tofc_pb2.SessionRequest]) -> TofcError | None:
        """Serves the stream to its end; the error that ended it has been sent already."""
        began = time.perf_counter()
        error: TofcError | None = None
        outcome = "the client went away"
        try:
            try:
                async with asyncio.TaskGroup() as group:
                    watch = group.create_task(self._watch())
                    await self._serve(requests, group)
                    watch.cancel()
            except BaseExceptionGroup as several:
                error = self._reason(several)
            if error is not None:
                await self._outbox.send(error=to_message(error))
            await self._outbox.finish()
            outcome = "closed" if error is None else error.reason
        finally:
            self._outbox.abandon()
            for picture in self._uploads.values():
                self._let_go(picture)
            log.info(
                "%s ended after %.1f s: %d pictures, %d views, %d bytes of packets, %d questions, %s",
                *(self._name, time.perf_counter() - began, len(self._announced), self._counts["views"]),
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
        if first.WhichOneof("request") != "hello":
            raise MismatchError(
                f"the first request is {first.WhichOneof('request') or 'empty'}; a session begins with Hello",
                reason="HELLO_FIRST",
            )
        check_hello(first.hello, self._identity)
        await self._outbox.send(welcome=self._identity.welcome(self._limits))
        async for request in incoming:
            await self._take(request, group)
        # The client has said everything; what it asked is still answered.
        await asyncio.gather(*(question.task for question in self._questions.values() if question.task is not None))

    async def _take(self, request: tofc_pb2.SessionRequest, group: asyncio.TaskGroup) -> None:
        match request.WhichOneof("request"):
            case "picture":
                await self._picture(request.picture)
            case "view":
                await self._view(request.view, group)
            case "ask":
                await self._ask(request.ask, group)
            case "cancel":
                await self._cancel(request.cancel)
            case "hello":
                raise MismatchError("a second Hello; a session has one, open another session", reason="HELLO_TWICE")
            case other:
                raise InvalidRequestError(
                    f"a request of unknown kind ({other}); the client may be newer than the server: update the server",
                    reason="UNKNOWN_REQUEST",
                )

    # pictures

    async def _picture(self, announced: tofc_pb2.Picture) -> None:
        known = self._announced.get(announced.ref)
        if known is not None and known != announced:
            raise DuplicateError(
                f"ref {announced.ref} stands for picture {known.picture_id.hex()} already; number another picture "
                "differently",
                reason="DUPLICATE_REF",
            )
        if known is None:
            self._check_announcement(announced)
        picture = self._pictures.open(announced.picture_id, announced.rows, announced.columns)
        self._announced[announced.ref] = announced
        self._upload(picture)
        await self._outbox.send(picture_state=tofc_pb2.PictureState(ref=announced.ref, complete=picture.complete))

    def _check_announcement(self, announced: tofc_pb2.Picture) -> None:
        if len(self._announced) >= self._limits.numbers:
            raise LimitError(
                f"the session has numbered {self._limits.numbers} pictures; open another", reason="SESSION_USED_UP"
            )
        if len(announced.picture_id) != ID_BYTES:
            raise InvalidRequestError(
                f"picture_id has {len(announced.picture_id)} bytes; it is a hash of {ID_BYTES}",
                reason="PICTURE_ID_INVALID",
            )
        rows, columns = announced.rows, announced.columns
        if (rows == 0) != (columns == 0):
            raise InvalidRequestError(
                f"{rows} x {columns} crops; both are 0 (only the global view) or both at least 1",
                reason="LAYOUT_INVALID",
            )
        if rows * columns + 1 > self._limits.views_per_picture:
            raise InvalidRequestError(
                f"{rows} x {columns} crops and the global view are {rows * columns + 1} views, allowed are "
                f"{self._limits.views_per_picture}; scale the picture down",
                reason="TOO_MANY_VIEWS",
            )

    def _upload(self, picture: Picture) -> None:
        """Keeps an incomplete picture while this session may send it; the oldest of too many goes."""
        for picture_id in [one for one, upload in self._uploads.items() if upload.complete]:
            self._let_go(self._uploads.pop(picture_id))
        if picture.complete or self._uploads.get(picture.picture_id) is picture:
            return
        picture.uploaders += 1
        self._uploads[picture.picture_id] = picture
        if len(self._uploads) > self._limits.pictures_under_way:
            oldest = next((one for one in self._uploads.values() if not one.questions), None)
            if oldest is not None:
                self._let_go(self._uploads.pop(oldest.picture_id))

    def _let_go(self, picture: Picture) -> None:
        picture.uploaders -= 1
        self._pictures.settle(picture)

    # views

    async def _view(self, view: tofc_pb2.View, group: asyncio.TaskGroup) -> None:
        announced = self._announced.get(view.ref)
        if announced is None:
            raise UnknownReferenceError(
                f"view {view.index} of ref {view.ref}, which no Picture announced; announce a picture before its views",
                reason="PICTURE_UNKNOWN",
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
            picture = self._pictures.get(announced.picture_id)
            if picture is not None and not picture.has(view.index):
                loop = asyncio.get_running_loop()
                rows, took = await loop.run_in_executor(
                    self._shop.pool, functools.partial(_timed_view, self._shop, view.packet, last)
                )
                self._pictures.put(picture, view.index, rows, took)
        finally:
            self._views.release()
        await self._outbox.send(view_ack=tofc_pb2.ViewAck(ref=view.ref, index=view.index))

    # questions

    async def _ask(self, ask: tofc_pb2.Ask, group: asyncio.TaskGroup) -> None:
        if ask.request == 0:
            raise InvalidRequestError(
                "request 0 stands for the session; number questions from 1", reason="REQUEST_ZERO"
            )
        try:
            question, gone = self._accept(ask)
        except TofcError as error:
            await self._outbox.send(error=to_message(error, ask.request))
            return
        self._questions[question.number] = question
        for ref in gone:
            await self._outbox.send(need_picture=tofc_pb2.NeedPicture(request=ask.request, ref=ref))
        question.task = group.create_task(question.answer(self._shop, self._outbox, self._name))
        # Not inside the task: one that is cancelled before its first step runs nothing of it.
        question.task.add_done_callback(lambda _: self._forget(question))

    def _accept(self, ask: tofc_pb2.Ask) -> tuple[Question, list[int]]:
        """The question, its pictures held, and the refs of those that have to be sent again."""
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
        for ref in ask.refs:
            if ref not in self._announced:
                raise UnknownReferenceError(
                    f"question {ask.request} names ref {ref}, which no Picture announced; announce it first",
                    reason="PICTURE_UNKNOWN",
                )
        turns, sampling = turns_of(ask, self._limits), sampling_of(ask, self._limits)
        pictures, gone = self._hold(list(ask.refs))
        question = Question(
            number=ask.request, turns=turns, sampling=sampling, pictures=pictures, deadline_ms=ask.deadline_ms
        )
        return question, gone

    def _forget(self, question: Question) -> None:
        self._questions.pop(question.number, None)
        self._release(question.pictures)

    def _hold(self, refs: list[int]) -> tuple[list[Picture], list[int]]:
        """Pictures that cannot be evicted until released. One that is gone is opened anew and asked for."""
        pictures: list[Picture] = []
        gone: list[int] = []
        try:
            for ref in refs:
                announced = self._announced[ref]
                held = self._pictures.get(announced.picture_id)
                if held is None or not (held.complete or self._uploads.get(announced.picture_id) is held):
                    gone.append(ref)
                picture = self._pictures.open(announced.picture_id, announced.rows, announced.columns)
                picture.questions += 1
                pictures.append(picture)
                self._upload(picture)
        except TofcError:
            self._release(pictures)
            raise
        return pictures, gone

    def _release(self, pictures: list[Picture]) -> None:
        for picture in pictures:
            picture.questions -= 1
            self._pictures.settle(picture)

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


def _timed_view(shop: Workshop, packet: bytes, last: bool) -> tuple[NDArray[np.float32], float]:
    began = time.perf_counter()
    rows = shop.assembler.view(packet, last=last)
    return rows, (time.perf_counter() - began) * 1e3
