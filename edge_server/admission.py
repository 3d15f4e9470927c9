"""The engine's slots, shared fairly among sessions.

    question ─ is a slot free? ─ yes ─→ engine ─→ its slot goes to the question that has waited longest
                     └ no: a session that holds no slot waits; one that holds or awaits a slot is refused

Promises that no session gets a second slot while another waits for its first, and that at most one question of each
session waits here. Leaves the order within the engine to the engine.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tofc.errors import LimitError


class Admission:
    """`slots`: how many questions the engine takes, running and queued."""

    def __init__(self, slots: int) -> None:
        self._slots = self._free = slots
        self._held: Counter[str] = Counter()  # slots that each session holds or waits for
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def admitted(self) -> int:
        """Questions that hold a slot."""
        return self._slots - self._free

    @property
    def waiting(self) -> int:
        """Questions that wait for a slot."""
        return sum(not one.done() for one in self._waiting)

    @asynccontextmanager
    async def slot(self, session: str) -> AsyncIterator[Callable[[], None]]:
        """Hold a slot until the block ends or the yielded function is called. Raises LimitError (ENGINE_BUSY)."""
        if self._held[session] and not self._free:
            raise LimitError(
                f"{self._slots} questions are running or queued, which is as many as this server takes, some of them "
                "from this session; ask again when one is answered",
                reason="ENGINE_BUSY",
            )
        self._held[session] += 1
        try:
            await self._acquire()
        except BaseException:
            self._uncount(session)
            raise
        released = False

        def release() -> None:
            nonlocal released
            if not released:
                released = True
                self._release()
                self._uncount(session)

        try:
            yield release
        finally:
            release()

    def _uncount(self, session: str) -> None:
        self._held[session] -= 1
        if not self._held[session]:
            del self._held[session]

    async def _acquire(self) -> None:
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it got its slot just as the question was cancelled
                self._release()
            raise

    def _release(self) -> None:
        while self._waiting:
            if not (turn := self._waiting.popleft()).cancelled():
                turn.set_result(None)
                return
        self._free += 1
