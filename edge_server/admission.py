"""The engine's places, shared fairly among clients.

    question ─ is a place free, and has its client fewer than its share? ─ yes ─→ engine
                  └ no: it waits; a place that becomes free goes to the waiting client that holds fewest
                       └ too many wait, and its client holds or awaits a place already: refused, with a time to return

Promises that a client never holds more than half of the places, so that another one's question starts at once or with
the next answer that ends; that a client without a question is never refused; and that a question which is cancelled or
runs out of time frees its place at once. Leaves the order within the engine to the engine.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tofc.errors import CallError, LimitError

MEASURED = 32  # the last answers, whose times the estimates are made from
UNMEASURED_S = 1.0  # the estimate before any answer
MIN_RETRY_S, MAX_RETRY_S = 0.2, 30.0
PROMISES = 8  # refused questions of one client that lengthen the wait of others
#: reasons of errors that may be gone after some questions have been answered
PASSING = frozenset({"ENGINE_BUSY", "ENGINE_MEMORY", "NO_MEMORY", "CACHE_FULL"})


class Admission:
    """`places`: how many answers the engine computes at once. `queue`: how many questions may wait for one.

    Beyond `queue`, each client may have one question, running or waiting.
    """

    def __init__(self, places: int, queue: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._places = self._free = places
        self._queue = queue
        self._clock = clock
        self._held: Counter[str] = Counter()  # places by client
        # By client, in the order in which their first waiting question came; their questions in the order of asking.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._times_s: deque[float] = deque(maxlen=MEASURED)  # how long the last questions held their places
        self._started: dict[Callable[[], None], float] = {}  # when those that run got their places
        self._returns: dict[str, deque[float]] = {}  # by client: when those that were refused will ask again

    @property
    def running(self) -> int:
        """Questions that hold a place."""
        return self._places - self._free

    @property
    def waiting(self) -> int:
        """Questions that wait for a place."""
        return sum(map(len, self._waiting.values()))

    @property
    def places(self) -> int:
        """Places in all."""
        return self._places

    @property
    def share(self) -> int:
        """The most places that one client holds."""
        return max(self._places // 2, 1)

    def retry_after_s(self) -> float:
        """Estimate the seconds until those that wait now, or were told to come back, have been answered.

        It follows from the times of the last answers. Counting those that will come back keeps them from coming
        together, when only a few could be taken.
        """
        now = self._clock()
        for client in list(self._returns):
            returns = deque((when for when in self._returns[client] if when > now), maxlen=PROMISES)
            if returns:
                self._returns[client] = returns
            else:
                del self._returns[client]
        ahead = self.waiting + sum(map(len, self._returns.values()))
        return min(max(self._mean_s(now) * (ahead + 1) / self._places, MIN_RETRY_S), MAX_RETRY_S)

    def _mean_s(self, now: float) -> float:
        """Return how long an answer takes: as the last ones did, or as those that run have so far, if longer."""
        ended = sum(self._times_s) / len(self._times_s) if self._times_s else UNMEASURED_S
        ages = [now - started for started in self._started.values()]
        return max(ended, sum(ages) / len(ages) if ages else 0.0)

    def _refuse(self, client: str) -> LimitError:
        after_s = self.retry_after_s()
        self._returns.setdefault(client, deque(maxlen=PROMISES)).append(self._clock() + after_s)
        return LimitError(
            f"{self.running} questions are being answered and {self.waiting} wait, which is as many as this server "
            "takes, some of them from this device; ask again when one is answered",
            reason="ENGINE_BUSY",
            retry_after_s=after_s,
        )

    def advise(self, error: CallError) -> CallError:
        """Return the error, with the time after which to ask again if its cause passes as questions are answered."""
        if error.reason in PASSING and error.retry_after_s is None:
            error.retry_after_s = self.retry_after_s()
        return error

    @asynccontextmanager
    async def place(self, client: str) -> AsyncIterator[Callable[[], None]]:
        """Hold a place until the block ends or the yielded function is called. Raises LimitError (ENGINE_BUSY)."""
        if self.waiting >= self._queue and (self._held[client] or client in self._waiting):
            raise self._refuse(client)
        await self._acquire(client)
        release = self._releaser(client)
        self._started[release] = self._clock()

        def end() -> None:
            release()
            if (started := self._started.pop(release, None)) is not None:
                self._times_s.append(self._clock() - started)

        try:
            yield end
        finally:
            end()

    def more(self, client: str, most: int) -> list[Callable[[], None]]:
        """Take up to `most` further places for a client, without waiting; return what releases each of them.

        Only places that are free within its share, and none while a question waits.
        """
        count = 0 if self._waiting else max(min(most, self._free, self.share - self._held[client]), 0)
        self._free -= count
        if count:
            self._held[client] += count
        return [self._releaser(client) for _ in range(count)]

    def _releaser(self, client: str) -> Callable[[], None]:
        released = False

        def release() -> None:
            nonlocal released
            if not released:
                released = True
                self._release(client)

        return release

    async def _acquire(self, client: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._withdraw(client, turn)
            else:  # it got its place just as the question was cancelled
                self._release(client)
            raise

    def _release(self, client: str) -> None:
        self._free += 1
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]
        self._grant()

    def _grant(self) -> None:
        """Give free places to the waiting clients that hold fewest, among equals to the one that waits longest."""
        while self._free:
            client = min(self._waiting, key=lambda one: self._held[one], default=None)
            if client is None or self._held[client] >= self.share:
                return
            turns = self._waiting.pop(client)
            turn = turns.popleft()
            if turns:
                self._waiting[client] = turns  # now behind those of the other clients
            if not turn.done():  # else it was cancelled, and its task has not run yet
                self._free -= 1
                self._held[client] += 1
                turn.set_result(None)

    def _withdraw(self, client: str, turn: asyncio.Future[None]) -> None:
        turns = self._waiting.get(client, deque())
        if turn in turns:  # else `_grant` has removed it
            turns.remove(turn)
            if not turns:
                del self._waiting[client]
