"""The queue of a session's responses, for a client that may read slowly.

Promises that any number of tasks may send and be cancelled while sending, that the queue is bounded, and that sending
fails if the client reads nothing for READ_TIMEOUT_S. Leaves what is sent to `session` and `answer`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from edge_server.memory_errors import memory_limit_error
from tofc.errors import DeadlineError
from tofc.v1 import tofc_pb2 as pb

log = logging.getLogger(__name__)

# Raised by a mistake in this code, never by gRPC.
DEFECTS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)

MAX_WAITING = 64  # queued messages; a sender waits while there are that many
READ_TIMEOUT_S = 30.0  # within which a client must read a message while the queue is full

Write = Callable[[pb.SessionResponse], Awaitable[None]]


class Outbox:
    """A bounded queue in front of the one task that may write to a gRPC stream."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._queue: asyncio.Queue[pb.SessionResponse | None] = asyncio.Queue(MAX_WAITING)
        self._written = 0
        self._writer = asyncio.create_task(self._run())

    async def send(
        self,
        *,
        welcome: pb.Welcome | None = None,
        picture_state: pb.PictureState | None = None,
        view_ack: pb.ViewAck | None = None,
        token: pb.Token | None = None,
        done: pb.Done | None = None,
        error: pb.Error | None = None,
        need_picture: pb.NeedPicture | None = None,
        image_ack: pb.ImageAck | None = None,
        rollout: pb.Rollout | None = None,
    ) -> None:
        """Queue a response; give exactly one of the arguments. It is dropped if the client has gone.

        Raises `DeadlineError` (NOT_READ) when the queue is full and the client reads nothing.
        """
        await self._put(
            pb.SessionResponse(
                welcome=welcome,
                picture_state=picture_state,
                view_ack=view_ack,
                token=token,
                done=done,
                error=error,
                need_picture=need_picture,
                image_ack=image_ack,
                rollout=rollout,
            )
        )

    def offer(self, progress: pb.Progress) -> None:
        """Queue a response that may be missed; it is dropped if the client reads too slowly, or has gone."""
        if not self._writer.done() and not self._queue.full():
            self._queue.put_nowait(pb.SessionResponse(progress=progress))

    async def finish(self) -> None:
        """Wait until everything is written, or the client has gone; nothing may be sent afterwards."""
        await self._put(None)
        await asyncio.wait([self._writer])

    def abandon(self) -> None:
        """Drop what is not written yet."""
        self._writer.cancel()

    async def _put(self, response: pb.SessionResponse | None) -> None:
        if self._writer.done():
            return
        putting = asyncio.ensure_future(self._queue.put(response))
        try:
            written, done = -1, set[asyncio.Future[None]]()
            while not done:
                if self._written == written:
                    raise not_read()
                written = self._written
                done, _ = await asyncio.wait(
                    [putting, self._writer], timeout=READ_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            putting.cancel()

    async def _run(self) -> None:
        while (response := await self._queue.get()) is not None:
            try:
                await self._write(response)
            except Exception as error:  # gRPC raises several classes for a stream that is over, some of them private
                if isinstance(error, DEFECTS):
                    log.exception("a response could not be written")
                elif memory_limit_error(error, "a response") is None:
                    log.debug("a client went away: %s", error)
                return
            self._written += 1


def not_read() -> DeadlineError:
    """Return the error for a client that keeps its session open without reading."""
    return DeadlineError(
        f"responses were not read for {READ_TIMEOUT_S:g} s; read while you write, or close the session",
        reason="NOT_READ",
    )
