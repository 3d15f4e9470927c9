"""How long a session waits: for an answer, and for a server that is not ready.

Promises that the time in which a server loads its model is no question's time. Leaves connecting to `session`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from device_client.link import LinkLost
from shared.rpc.errors import LimitError, TofcError, UnavailableError

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


@dataclass(kw_only=True)
class Missing:
    """A server that opens no session yet, from the first try to connect to the last."""

    address: str
    wait_s: float | None
    repairing: bool
    connects: int  # tries to get a lost link back, however long they take
    tries: int = 0
    _unreached: int = 0  # of them, in which no server said that it will be there
    _waited_s: float = 0.0
    _told: set[str] = field(default_factory=set)

    def pause_s(self, error: UnavailableError | LimitError, took_s: float, next_s: float) -> float:
        """Seconds until the next try, ``next_s`` at most, after one that took ``took_s``.

        Raises ``error``, or what it means to who had a link, when the time is up.
        """
        self.tries += 1
        lost = self.repairing and isinstance(error, UnavailableError) and error.reason != LOADING
        self._unreached += lost
        self._waited_s += took_s
        left_s = most_s(error, self.wait_s, repairing=self.repairing) - self._waited_s
        if left_s > 0:
            next_s = min(next_s, left_s)
        elif lost and self._unreached >= self.connects:
            raise LinkLost(
                f"{self.address} was lost and did not come back in {self._unreached} tries ({error.message})"
            )
        elif not lost:
            waited = f" (waited {self.wait_s:g} s)" if self.wait_s else ""
            raise type(error)(f"{error.message}{waited}", reason=error.reason) from None
        self._waited_s += next_s
        return next_s

    def stands_still(self, error: UnavailableError | LimitError) -> bool:
        """Whether the wait is no question's time."""
        return error.reason == LOADING or not self.repairing

    def line(self, error: UnavailableError | LimitError) -> str:
        """What to tell the person about the wait; nothing if that was told."""
        if error.reason == LOADING:
            what = f"the server at {self.address} is loading its model"
        elif error.reason == FULL:
            what = f"the server at {self.address} is full"
        else:
            what = f"no server at {self.address} yet"
        line = f"{what}; waiting" + (f" up to {self.wait_s:g} s" if self.wait_s is not None else "")
        if line in self._told:
            return ""
        self._told.add(line)
        return line
