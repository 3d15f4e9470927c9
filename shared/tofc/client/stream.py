"""An answer that is being received, with asyncio.

Promises that several tasks may wait for one answer, and that giving it up ends their waiting and cancels it on the
server. Leaves receiving the pieces to `connection`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Self

from tofc.client.answer import Answer, Piece
from tofc.errors import CancelledError


class AsyncAnswerStream:
    """An answer that is being received: iterate over its pieces, or await `result()`, or both in this order.

    The question is sent when the first piece is waited for. Raises what `ask` raises. An answer is given up by
    `close()`, at the end of an `async with`, or when it is garbage-collected; the server then stops.
    """

    def __init__(self, pieces: AsyncGenerator[Piece | Answer, None]) -> None:
        self._pieces = pieces
        self._lock = asyncio.Lock()
        self._step: asyncio.Task[Piece | Answer | None] | None = None
        self._answer: Answer | None = None
        self._given_up = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        if (piece := await self.next_piece()) is None:
            raise StopAsyncIteration
        return piece

    async def next_piece(self) -> Piece | None:
        """Wait for the next piece; None at the end."""
        async with self._lock:
            item = await self._next()
            if isinstance(item, Answer):  # the last item
                self._answer = item
                return None
            return item

    async def result(self) -> Answer:
        """Wait for the end and return the whole answer; after the end, return it again."""
        while self._answer is None:
            if await self.next_piece() is None and self._answer is None:
                raise CancelledError("the question was given up, or failed, before its answer ended; ask it again")
        return self._answer

    async def close(self) -> None:
        """Give the question up if it has not ended. Calling twice is harmless."""
        self._given_up = True
        if self._step is not None:
            self._step.cancel()
        async with self._lock:
            await self._pieces.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.close()

    async def _next(self) -> Piece | Answer | None:
        if self._given_up:
            return None
        self._step = asyncio.create_task(_anext(self._pieces))  # `close` cancels it, not the task that waits
        try:
            return await self._step
        except asyncio.CancelledError:
            waiting = asyncio.current_task()
            if self._given_up and waiting is not None and not waiting.cancelling():
                raise CancelledError("the question was given up before its answer ended; ask it again") from None
            raise


async def _anext(pieces: AsyncGenerator[Piece | Answer, None]) -> Piece | Answer | None:
    return await anext(pieces, None)
