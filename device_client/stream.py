"""One gRPC call, read and written so that a failed write does not lose what the server has sent.

Promises that everything the server sent before it ended the call is read, and that `ended` returns the server's own
status. Leaves the meaning of messages to `link`.

A server that refuses ends the call while its client still writes. grpc.aio then takes the failed write for the end
of the call: its `read` drops what has arrived already, and its status becomes "Internal error from Core".
(https://github.com/grpc/grpc/issues/36066)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc
import grpc.aio

from tofc.errors import CallError, ReplyError, Status, UnavailableError
from tofc.rpc.errors import from_call
from tofc.v1 import tofc_pb2 as pb

T = TypeVar("T")

WRITE_FAILED = "Internal error from Core"  # the status that grpc.aio gives a call when a write fails
STATUS_S = 5.0  # how long to wait for the server's status after a failed write; later the link counts as lost
POLL_S = 0.01  # between two checks whether the status has arrived
LOST_STATUSES = frozenset({Status.UNAVAILABLE, Status.CANCELLED})
UNHEARD = "HELLO_MISSING"  # reason: the server did not receive Hello in time
STALLED = frozenset({UNHEARD, "NOT_READ"})  # reasons of a server that a link carried nothing to, or from, in time


def is_lost(error: CallError) -> bool:
    """Return whether the error that ended a session is the link's: another link may do.

    >>> [is_lost(CallError(reason=reason)) for reason in ("NOT_READ", "CHECKSUM_MISMATCH")]
    [True, False]
    """
    return error.status in LOST_STATUSES or error.reason in STALLED


class Stream:
    """A bidirectional call, read by one task and written by another. Cancelling a task that reads or writes ends it."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._responses = aiter(call)  # unlike `call.read`, it continues after a write failed
        self._status: asyncio.Future[grpc.aio.AioRpcError] = asyncio.get_running_loop().create_future()
        call.add_done_callback(self._note)  # called for each status that grpc.aio takes for the last one

    async def write(self, request: pb.SessionRequest) -> bool:
        """Write a message; return False if that failed, then `ended` says why."""
        try:
            await self._call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return False
        return True

    async def read(self) -> Any:
        """Return the next response; EOF when there are no more, then see `ended`. Raises ReplyError."""
        try:
            response = await anext(self._responses, grpc.aio.EOF)
        except grpc.aio.AioRpcError:
            return grpc.aio.EOF
        if response is None:  # what gRPC returns for bytes that it cannot parse
            raise ReplyError("a message of the server cannot be read; device and server may be of different versions")
        return response

    async def done_writing(self) -> None:
        """Tell the server that nothing more will be written."""
        with contextlib.suppress(grpc.aio.InternalError):  # the call has ended meanwhile
            await self._call.done_writing()

    async def ended(self) -> CallError | None:
        """Return why the call ended, None if it was successful; UnavailableError for every status of a lost link."""
        try:
            async with asyncio.timeout(STATUS_S):
                while not self._status.done():
                    if self._call.done():  # grpc.aio does not always report a status that comes after a failed write
                        self._note(self._call)
                    await asyncio.wait({self._status}, timeout=POLL_S)
        except TimeoutError:
            return UnavailableError()
        status = self._status.result()
        if status.code() is grpc.StatusCode.OK:
            return None
        error = from_call(status)
        if error.reason in STALLED:
            return UnavailableError(error.message, reason=error.reason)
        return UnavailableError(error.message) if is_lost(error) and not isinstance(error, UnavailableError) else error

    def cancel(self) -> None:
        """End the call."""
        self._call.cancel()

    def _note(self, call: Any) -> None:
        details = _known(call.details())
        if details != WRITE_FAILED and not self._status.done():
            code, trailing = _known(call.code()), _known(call.trailing_metadata())
            self._status.set_result(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details=details))


def _known(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return a coroutine's result without waiting: during a wait the status of the call may change."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("a call that is done has a status")
