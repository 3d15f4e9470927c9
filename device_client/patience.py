"""How long a session waits: for an answer, and for a server that is not ready.

Promises that the time in which a server loads its model is no question's time. Leaves connecting to `session`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared.rpc.errors import TofcError, UnavailableError

LOADING, FULL = "LOADING", "TOO_MANY_SESSIONS"  # a server's reasons to open no session now


class Clock:
    """The time limit of one question (None: it has none)."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else asyncio.get_running_loop().time() + seconds
        self._running: asyncio.Timeout | None = None

    @property
    def left_s(self) -> float | None:
        return None if self._end is None else self._end - asyncio.get_running_loop().time()

    @asynccontextmanager
    async def within(self, late: TofcError) -> AsyncIterator[None]:
        """Raises ``late`` when the time is over."""
        try:
            async with asyncio.timeout_at(self._end) as self._running:
                yield
        except TimeoutError:
            raise late from None
        finally:
            self._running = None

    def put_off(self, seconds: float) -> None:
        """It stood still for so long."""
        if self._end is not None:
            self._end += seconds
            if self._running is not None and not self._running.expired():
                self._running.reschedule(self._end)


def most_s(error: TofcError, wait_s: float | None, *, repairing: bool) -> float:
    """How long a server is waited for in all, of which a try to connect ended with ``error``.

    ``wait_s`` is what the person said, None if nothing; ``repairing``: there was a session with this server before.

    >>> [most_s(UnavailableError(reason=reason), None, repairing=False) for reason in (LOADING, "")]
    [inf, 0.0]
    """
    if error.reason == LOADING:
        return math.inf if wait_s is None else wait_s
    if error.reason == FULL and repairing:
        return math.inf  # what it has no room beside may be this session's own link, whose end it has not heard of
    if error.reason == FULL or isinstance(error, UnavailableError):
        return wait_s or 0.0
    return 0.0


def waiting_for(error: TofcError, address: str, wait_s: float | None) -> str:
    """A line for the person."""
    if error.reason == LOADING:
        what = f"the server at {address} is loading its model"
    elif error.reason == FULL:
        what = f"the server at {address} is full"
    else:
        what = f"no server at {address} yet"
    return f"{what}; waiting" + (f" up to {wait_s:g} s" if wait_s is not None else "")
