"""Reading and writing one call, so that the server's words outlive a write that failed.

Promises that whatever the server said before it ended the call is read, and that `ended` tells the server's own status.
Leaves what is said to `link`.

A server that refuses ends the call while its client still writes. grpc.aio then takes the failed write for the end
of the call: `read` gives up what has arrived already, and the call's status becomes "Internal error from Core".
(https://github.com/grpc/grpc/issues/36066)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc
import grpc.aio

from shared.rpc.errors import TofcError, UnavailableError, from_call
from shared.rpc.tofc.v1 import tofc_pb2 as pb

T = TypeVar("T")

WRITE_FAILED = "Internal error from Core"  # what grpc.aio says of a call when a write fails
STATUS_S = 5.0  # for the status that a failed write came before; it is on its way, or the link has gone
LOOK_S = 0.01  # between two looks at whether it has come
LOST = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})


class Stream:
    """A bidirectional call, read by one task and written by another. A task that is cancelled within ends the call."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._responses = aiter(call)  # unlike `read`, it goes on after a write failed
        self._status: asyncio.Future[grpc.aio.AioRpcError] = asyncio.get_running_loop().create_future()
        call.add_done_callback(self._note)  # called for each status that grpc.aio takes for the last one

    async def write(self, request: pb.SessionRequest) -> bool:
        """Whether it was written; where not, reading tells why."""
        try:
            await self._call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return False
        return True

    async def read(self) -> Any:
        """The next response (None: it cannot be parsed); EOF when there are no more, and then see `ended`."""
        try:
            return await anext(self._responses, grpc.aio.EOF)
        except grpc.aio.AioRpcError:
            return grpc.aio.EOF

    async def done_writing(self) -> None:
        """Nothing more will be written."""
        with contextlib.suppress(grpc.aio.InternalError):  # the call has ended meanwhile
            await self._call.done_writing()

    async def ended(self) -> TofcError | None:
        """Why the call ended, None where all was well: UnavailableError if the link was lost, under whatever status."""
        try:
            async with asyncio.timeout(STATUS_S):
                while not self._status.done():
                    if self._call.done():  # a status that comes after a failed write's is not always told
                        self._note(self._call)
                    await asyncio.wait({self._status}, timeout=LOOK_S)
        except TimeoutError:
            return UnavailableError()
        status = self._status.result()
        if status.code() is grpc.StatusCode.OK:
            return None
        error = from_call(status)
        lost = error.status in LOST and not isinstance(error, UnavailableError)
        return UnavailableError(error.message) if lost else error

    def cancel(self) -> None:
        self._call.cancel()

    def _note(self, call: Any) -> None:
        details = _known(call.details())
        if details != WRITE_FAILED and not self._status.done():
            code, trailing = _known(call.code()), _known(call.trailing_metadata())
            self._status.set_result(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details=details))


def _known(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that has nothing to wait for: a call's status may be another one after waiting."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("the status of a call that is done was not there")
