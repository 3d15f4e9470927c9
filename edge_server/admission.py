"""Places in the engine, shared out among sessions.

    question ─ free place? ─→ engine ─→ next in line
                 └ a session without a place waits, one that has some is refused

Promises that no session's second question goes before another's first, and that at most one question of each waits
here. Leaves the order within the engine to it.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from shared.rpc.errors import LimitError


class Admission:
    """`places` are the questions that the engine runs and keeps waiting."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._held: Counter[str] = Counter()  # places of each session, that it waits for included
        self._line: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def place(self, session: str) -> AsyncIterator[Callable[[], None]]:
        """Hold a place, until the end or until what this yields is called. Raises LimitError (ENGINE_BUSY)."""
        if self._held[session] and not self._free:
            raise LimitError(
                "as many questions are being answered or wait as this server takes, some of this session among them; "
                "ask again when one is answered",
                reason="ENGINE_BUSY",
            )
        self._held[session] += 1
        try:
            await self._enter()
        except BaseException:
            self._let_go(session)
            raise
        left = False

        def leave() -> None:
            nonlocal left
            if not left:
                left = True
                self._leave()
                self._let_go(session)

        try:
            yield leave
        finally:
            leave()

    def _let_go(self, session: str) -> None:
        self._held[session] -= 1
        if not self._held[session]:
            del self._held[session]

    async def _enter(self) -> None:
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its place came as the question was given up
                self._leave()
            raise

    def _leave(self) -> None:
        while self._line:
            if not (turn := self._line.popleft()).cancelled():
                turn.set_result(None)
                return
        self._free += 1
