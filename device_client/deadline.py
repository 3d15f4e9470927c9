"""The time limit of one question.

Promises that it can be extended while it runs: the time that a server takes to load its model does not count. Leaves
when to extend it to `connection`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tofc.errors import CallError


class Deadline:
    """The time limit of a question: `timeout_s` from now; None: no limit."""

    def __init__(self, timeout_s: float | None) -> None:
        self.timeout_s = timeout_s
        self._end = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        self._running: asyncio.Timeout | None = None

    @property
    def left_s(self) -> float | None:
        """Return the seconds left; None without a limit."""
        return None if self._end is None else self._end - asyncio.get_running_loop().time()

    @asynccontextmanager
    async def within(self, error: CallError) -> AsyncIterator[None]:
        """Raise `error` if the time is over before the block has ended."""
        try:
            async with asyncio.timeout_at(self._end) as self._running:
                yield
        except TimeoutError:
            raise error from None
        finally:
            self._running = None

    def extend(self, seconds: float) -> None:
        """Allow `seconds` more, also to a block that is running."""
        if self._end is not None:
            self._end += seconds
            if self._running is not None and not self._running.expired():
                self._running.reschedule(self._end)
