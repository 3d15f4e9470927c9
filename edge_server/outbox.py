"""What a session has to say, in order, to a client that may read slowly.

Promises that any number of tasks may send and be cancelled while doing so, that a bounded number of
messages waits, and that nobody waits for a client that does not read at all; leaves what is said to
`session` and `answer`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from edge_server.shortage import shortage
from shared.rpc.errors import DeadlineError
from shared.rpc.tofc.v1 import tofc_pb2

log = logging.getLogger(__name__)

WAITING = 64  # messages; a sender waits when as many are unwritten
PATIENCE = 30.0  # seconds in which a client must read one of them when so many wait

Write = Callable[[tofc_pb2.SessionResponse], Awaitable[None]]


class Outbox:
    """A bounded queue before the one writer that gRPC allows a stream."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._queue: asyncio.Queue[tofc_pb2.SessionResponse | None] = asyncio.Queue(WAITING)
        self._written = 0
        self._writer = asyncio.create_task(self._run())

    async def send(
        self,
        *,
        welcome: tofc_pb2.Welcome | None = None,
        picture_state: tofc_pb2.PictureState | None = None,
        view_ack: tofc_pb2.ViewAck | None = None,
        token: tofc_pb2.Token | None = None,
        done: tofc_pb2.Done | None = None,
        error: tofc_pb2.Error | None = None,
        need_picture: tofc_pb2.NeedPicture | None = None,
        image_ack: tofc_pb2.ImageAck | None = None,
    ) -> None:
        """Puts one response in line; give exactly one. Dropped when the client has gone.

        Raises ``DeadlineError`` (NOT_READ) when the line is full and does not move.
        """
        await self._put(
            tofc_pb2.SessionResponse(
                welcome=welcome,
                picture_state=picture_state,
                view_ack=view_ack,
                token=token,
                done=done,
                error=error,
                need_picture=need_picture,
                image_ack=image_ack,
            )
        )

    async def finish(self) -> None:
        """Waits until everything is written, or the client has gone; nothing may be sent after it."""
        await self._put(None)
        await asyncio.wait([self._writer])

    def abandon(self) -> None:
        """Drops what is unwritten."""
        self._writer.cancel()

    async def _put(self, response: tofc_pb2.SessionResponse | None) -> None:
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
                    [putting, self._writer], timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            putting.cancel()

    async def _run(self) -> None:
        while (response := await self._queue.get()) is not None:
            try:
                await self._write(response)
            except Exception as error:  # gRPC has several for a stream that is over, some of them private
                if shortage(error, "a response") is None:
                    log.debug("a client went away: %s", error)
                return
            self._written += 1


def not_read() -> DeadlineError:
    """For a client that keeps its place without reading."""
    return DeadlineError(
        f"responses were not read for {PATIENCE:g} s; read while you write, or close the session", reason="NOT_READ"
    )
