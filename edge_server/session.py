"""One session's stream: hello, then pictures, views, questions and cancellations in any order.

    client   Hello ─ Picture + Ask ─ View … View ──────────── Cancel        (or ImageChunk … ImageChunk)
    server   Welcome ─ PictureState ─ ViewAck … ─ Token … Done | Error | NeedPicture

Promises that limits are checked before anything is allocated, that a request which breaks the protocol ends the session
with an Error that says how, and that nothing runs on after the stream is closed. Leaves each question to `answer`,
announcements of pictures to `uploads`, their views to `view_uploads` and their image files to `image_uploads`.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import AsyncIterable, Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from edge_server.answer import QuestionJob
from edge_server.conversations import Conversations
from edge_server.engine.sampling import SamplingParams
from edge_server.handshake import ServerIdentity, check_hello
from edge_server.image_uploads import ImageUploads
from edge_server.memory_errors import memory_limit_error
from edge_server.outbox import READ_TIMEOUT_S, Outbox, not_read
from edge_server.pacore.rounds import Rounds, sample_sampling
from edge_server.picture_cache import HeldPicture, PictureCache
from edge_server.runtime import Runtime
from edge_server.settings import SessionLimits
from edge_server.turns import check_stop, collect_turns
from edge_server.uploads import Uploads
from edge_server.view_uploads import ViewUploads
from tofc.errors import (
    CallError,
    DeadlineError,
    DuplicateError,
    InternalError,
    InvalidRequestError,
    LimitError,
    MismatchError,
    UnknownReferenceError,
)
from tofc.rpc.errors import to_message
from tofc.rpc.implied import ImpliedNumbers
from tofc.v1 import tofc_pb2 as pb

log = logging.getLogger(__name__)

LOST = "the client went away"  # in the log, for a session whose link was lost: its device may come back
PARTS_PER_TURN = 64  # parts of a request that are handled before other sessions get a turn of the event loop


class ServerSession:
    """Serves one stream; `run` returns when it has ended. `name` identifies it in the log.

    `client` identifies whose it is, if several sessions may be of one client; else each is of a client of its own.
    """

    def __init__(
        self,
        *,
        name: str,
        client: str = "",
        identity: ServerIdentity,
        limits: SessionLimits,
        pictures: PictureCache,
        runtime: Runtime,
        outbox: Outbox,
        hello_timeout_s: float,
        on_hello: Callable[[ServerSession], None] = lambda _: None,
    ) -> None:
        """Prepare to serve a stream; `run` does.

        `client`: the device, if it is known by name. `on_hello` is called after Hello, and may refuse the session by
        raising CallError.
        """
        self._name = name
        self._client = client or name
        self._identity = identity
        self._limits = limits
        self._pictures = pictures
        self._runtime = runtime
        self._observer = runtime.observer
        decoder = runtime.image_decoder
        self._uploads = Uploads(pictures, limits, None if decoder is None else decoder.encoder.rule)
        self._slots = asyncio.Semaphore(limits.views_in_flight)  # one for each view or image file being decoded
        self._views = ViewUploads(
            name=name, pictures=pictures, limits=limits, runtime=runtime, outbox=outbox, slots=self._slots
        )
        self._images = ImageUploads(pictures, limits, decoder)
        self._conversations = Conversations(limits.question_bytes)
        self._outbox = outbox
        self._hello_timeout_s = hello_timeout_s
        self._on_hello = on_hello
        self._questions: dict[int, QuestionJob] = {}  # in flight
        self._asked: set[int] = set()
        self._implied = ImpliedNumbers()
        self._end_error: asyncio.Future[CallError] = asyncio.get_running_loop().create_future()
        self._heard = False  # the client has sent something
        self._codec_id = ""  # of the device's packets; known from Hello on
        self._draining: CallError | None = None  # why no further question is accepted
        self._counts = {"views": 0, "bytes": 0}

    def end(self, error: CallError) -> None:
        """End the session from outside, with an Error that says why."""
        if not self._end_error.done():
            self._end_error.set_result(error)

    def drain(self, error: CallError) -> None:
        """Refuse further questions with `error`, and end with it once those in flight are answered."""
        self._draining = error
        if not self._questions:
            self.end(error)

    async def run(self, requests: AsyncIterable[pb.SessionRequest]) -> CallError | None:
        """Serve the stream to its end. Return the error that ended it, which is the call's status too."""
        started = time.perf_counter()
        error: CallError | None = None
        outcome = LOST
        try:
            try:
                async with asyncio.TaskGroup() as group:
                    watch = group.create_task(self._wait_for_end())
                    await self._serve(requests, group)
                    watch.cancel()
            except BaseExceptionGroup as failures:
                error = self._runtime.admission.advise(self._choose_error(failures))
                _clear_frames(failures)
            try:
                async with asyncio.timeout(READ_TIMEOUT_S):
                    if error is not None and self._heard:  # else the call's status says it, which needs no reader
                        await self._outbox.send(error=to_message(error))
                    await self._outbox.finish()
            except TimeoutError:  # the client reads nothing; other sessions need the slot
                error = error or not_read()
            outcome = "closed" if error is None else error.reason
        finally:
            self._outbox.abandon()
            # gRPC reports some lost links as an orderly end, so the two are treated alike.
            self._images.close(keep=error is None)
            self._uploads.close(keep=error is None)
            duration_s = time.perf_counter() - started
            self._observer.session(duration_s)
            if error is not None:
                self._observer.error("session", error)
            counts = {"pictures": len(self._uploads), **self._counts, "questions": len(self._asked)}
            log.info(
                "%s ended after %.1f s: %d pictures, %d views, %d bytes of them, %d questions, %s",
                *(self._name, duration_s, *counts.values(), outcome),
                extra={"session": self._name, "duration_s": round(duration_s, 3), **counts, "outcome": outcome},
            )
        return error

    async def _wait_for_end(self) -> None:
        """Raise the error that `end` is called with, which ends the task group."""
        raise await self._end_error

    def _choose_error(self, failures: BaseExceptionGroup[BaseException]) -> CallError:
        """Return the error to send: a CallError among those that ended the session, or INTERNAL for a defect."""
        if failures.subgroup(DecodeError) is not None:
            return InvalidRequestError(
                "the bytes that arrived are not a request of this protocol; update the older of client and server",
                reason="UNKNOWN_REQUEST",
            )
        known, others = failures.split(CallError)
        if others is not None and (limit := memory_limit_error(others, self._name)) is not None:
            return limit
        if others is not None:
            log.error("%s failed", self._name, exc_info=others)
        found: BaseException | None = known
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        return found if isinstance(found, CallError) else InternalError()

    async def _serve(self, requests: AsyncIterable[pb.SessionRequest], group: asyncio.TaskGroup) -> None:
        incoming = aiter(requests)
        try:
            async with asyncio.timeout(self._hello_timeout_s):
                first = await anext(incoming, None)
        except TimeoutError:
            raise DeadlineError(
                f"no Hello arrived within {self._hello_timeout_s:g} s; send it first, try again if the link is slow",
                reason="HELLO_MISSING",
            ) from None
        except DecodeError:
            self._heard = True
            raise
        if first is None:
            return
        self._heard = True
        if not first.HasField("hello"):
            kinds = ", ".join(field.name for field, _ in first.ListFields())
            raise MismatchError(
                f"the first request must have Hello, got {kinds or 'an empty one'}", reason="HELLO_FIRST"
            )
        check_hello(first.hello, self._identity)
        if self._end_error.done():  # while Hello was on its way: a Welcome would only be followed by this error
            raise self._end_error.result()
        self._codec_id = first.hello.codec_id
        self._on_hello(self)
        backend = self._runtime.backend
        welcome = self._identity.welcome(
            self._limits,
            self._pictures.key,
            codec_id=self._codec_id,
            samples_by_default=backend.generation_config.temperature > 0,
            thinking=backend.think_tokens is not None,
        )
        await self._outbox.send(welcome=welcome)
        await self._take_parts(first, group)
        async for request in incoming:
            if request.HasField("hello"):
                raise MismatchError(
                    "a session must have one Hello, got a second; open another session", reason="HELLO_TWICE"
                )
            if not request.ListFields():
                raise _unknown("an empty request")
            await self._take_parts(request, group)
        # The client sends nothing more; its questions are still answered.
        await asyncio.gather(*(question.task for question in self._questions.values() if question.task is not None))

    async def _take_parts(self, request: pb.SessionRequest, group: asyncio.TaskGroup) -> None:
        if unknown := UnknownFieldSet(request):  # ignored, it would leave its client waiting for ever
            raise _unknown(f"a request with an unknown field ({unknown[0].field_number})")
        self._implied.restore(request)
        for count, handling in enumerate(self._parts(request, group), 1):
            await handling
            if count % PARTS_PER_TURN == 0:
                await asyncio.sleep(0)

    def _parts(self, request: pb.SessionRequest, group: asyncio.TaskGroup) -> Iterator[Coroutine[Any, Any, None]]:
        yield from (self._picture(announced) for announced in request.pictures)
        for view in request.views:
            if view.views and len(view.packets) != 1:
                raise InvalidRequestError(
                    f"several views must be in one packet, got {view.views} views in {len(view.packets)} packets; "
                    "leave `views` out for a packet for each",
                    reason="VIEW_COUNT_INVALID",
                )
            packets = view.packets or (b"",)  # refused like an empty packet
            count = view.views or 1
            yield from (self._view(view.ref, index, count, one, group) for index, one in enumerate(packets, view.index))
        yield from (self._image_chunk(chunk, group) for chunk in request.image_chunks)
        yield from (self._ask(ask, group) for ask in request.asks)
        yield from (self._cancel(cancel) for cancel in request.cancels)

    async def _picture(self, announced: pb.Picture) -> None:
        known = len(self._uploads)
        picture = self._uploads.announce(announced)
        if len(self._uploads) > known:
            self._observer.picture("image" if announced.HasField("image") else "features")
        if picture.complete or announced.want_state:
            await self._outbox.send(picture_state=_picture_state(announced.ref, picture))

    async def _view(self, ref: int, index: int, count: int, packet: bytes, group: asyncio.TaskGroup) -> None:
        announced = self._announced(ref, f"view {index}")
        self._views.check(index, count, packet, announced)
        self._counts["views"] += count
        self._counts["bytes"] += len(packet)
        self._observer.received("features", len(packet))
        await self._views.take(index, count, packet, announced, self._codec_id, group)

    def _announced(self, ref: int, what: str) -> pb.Picture:
        announced = self._uploads.get(ref)
        if announced is None:
            raise UnknownReferenceError(
                f"{what} names ref {ref}, which no Picture announced; announce a picture before sending it",
                reason="PICTURE_UNKNOWN",
            )
        return announced

    async def _image_chunk(self, chunk: pb.ImageChunk, group: asyncio.TaskGroup) -> None:
        announced = self._announced(chunk.ref, "an image chunk")
        self._counts["bytes"] += len(chunk.data)
        self._observer.received("image", len(chunk.data))
        try:
            self._counts["views"] += await self._images.take(chunk, announced, self._slots, group)
        except Exception as error:
            limit = memory_limit_error(error, f"the image of ref {chunk.ref} of {self._name}")
            if limit is None:
                raise
            self._images.fail(chunk.ref, announced, limit)
        await self._outbox.send(image_ack=pb.ImageAck(ref=chunk.ref, offset=chunk.offset))

    # questions

    async def _ask(self, ask: pb.Ask, group: asyncio.TaskGroup) -> None:
        try:
            question = self._accept(ask)
        except CallError as error:
            self._observer.error("question", error)
            await self._outbox.send(error=to_message(self._runtime.admission.advise(error), ask.request))
            return
        self._questions[question.number] = question
        question.task = group.create_task(question.run(self._runtime, self._outbox, self._name))
        # A callback, because a task that is cancelled before its first step runs none of its own code.
        question.task.add_done_callback(lambda _: self._forget(question))

    def _accept(self, ask: pb.Ask) -> QuestionJob:
        """Check a question and hold its pictures.

        The caller must not await anything before it has made sure that `_forget` will be called.
        """
        if self._draining is not None:
            raise self._draining
        if ask.request in self._asked:
            raise DuplicateError(
                f"question {ask.request} was asked already in this session; give each question its own number",
                reason="DUPLICATE_REQUEST",
            )
        if len(self._asked) >= self._limits.numbers:
            raise LimitError(
                f"the session has asked {self._limits.numbers} questions, which is its limit; open another session",
                reason="SESSION_USED_UP",
            )
        self._asked.add(ask.request)
        if len(self._questions) >= self._limits.questions_in_flight:
            raise LimitError(
                f"a session may have {self._limits.questions_in_flight} questions in flight, and has "
                f"{len(self._questions)}; wait for an answer or cancel one",
                reason="TOO_MANY_QUESTIONS",
            )
        if len(ask.refs) > self._limits.pictures_per_question:
            raise InvalidRequestError(
                f"a question must name at most {self._limits.pictures_per_question} pictures, got {len(ask.refs)}; ask "
                "about fewer at once",
                reason="TOO_MANY_PICTURES",
            )
        turns = collect_turns(ask, self._conversations.until(ask.previous_request), self._limits)
        defaults = self._runtime.backend.generation_config
        sampling = SamplingParams.merge(ask.sampling, defaults, self._limits.new_tokens)
        rounds = sampled = None
        if ask.HasField("reasoning"):
            rounds = Rounds.of(ask.reasoning, self._limits.samples)
            sampled = sample_sampling(ask.sampling, sampling)
        budget = min(ask.thinking_budget, self._limits.new_tokens) if ask.HasField("thinking_budget") else None
        if sampled is not None and budget is not None and self._runtime.backend.think_tokens is not None:
            sampled = replace(sampled, max_tokens=sampled.max_tokens + budget)  # a sample is not closed
        stop = check_stop(ask.stop)
        pictures, evicted = self._uploads.hold(list(ask.refs))
        return QuestionJob(
            number=ask.request,
            turns=turns,
            sampling=sampling,
            rounds=rounds,
            sample_sampling=sampled,
            thinking=ask.thinking,
            thinking_budget=budget,
            limited=ask.sampling.max_tokens > 0,
            stop=stop,
            pictures=pictures,
            evicted=evicted,
            deadline_ms=ask.deadline_ms,
            conversations=self._conversations,
            client=self._client,
            traceparent=ask.traceparent,
        )

    def _forget(self, question: QuestionJob) -> None:
        self._questions.pop(question.number, None)
        self._uploads.release(question.pictures)
        if self._draining is not None and not self._questions:
            self.end(self._draining)

    async def _cancel(self, cancel: pb.Cancel) -> None:
        if cancel.request not in self._asked:
            unknown = UnknownReferenceError(
                f"Cancel names question {cancel.request}, which was not asked in this session; cancel one that was",
                reason="QUESTION_UNKNOWN",
            )
            if cancel.request == 0:
                raise unknown
            self._observer.error("question", unknown)
            await self._outbox.send(error=to_message(unknown, cancel.request))
        elif cancel.request in self._questions:  # else its Done crossed the Cancel
            self._questions[cancel.request].cancel()


def _picture_state(ref: int, picture: HeldPicture) -> pb.PictureState:
    if picture.complete:
        return pb.PictureState(ref=ref, complete=True)
    state = pb.PictureState(ref=ref, views=picture.view_indexes)
    if file := picture.longest_file:
        state.image.bytes, state.image.crc32 = len(file.data), file.crc32
    return state


def _clear_frames(error: BaseException | None) -> None:
    """Release what the frames in an error's traceback refer to, such as requests.

    The frames refer to the error too (also in asyncio's task groups), and only a full garbage collection finds cycles.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        for one in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
            _clear_frames(one)
        context, error.__traceback__, error.__context__ = error.__context__, None, None
        error = context


def _unknown(what: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"this server cannot handle {what}; the client may be newer: update the server", reason="UNKNOWN_REQUEST"
    )
