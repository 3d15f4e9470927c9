"""How many streams a server keeps open: sessions, and separately streams that have not sent Hello yet.

Promises that clients which open streams and send nothing cannot keep others from opening sessions: beyond the limit for
such streams, the oldest one of the peer that has most of them is ended. A session that is refused is told when to try
again. Leaves how a session ends to `session`.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from tofc.errors import CallError, LimitError

MAX_SILENT = 32  # streams that have not sent Hello
MEASURED = 32  # the last sessions, whose times the estimate of the next free place is made from
UNMEASURED_S = 5.0  # the estimate before any session has ended
MIN_RETRY_S, MAX_RETRY_S = 1.0, 60.0


class Endable(Protocol):
    """A stream that can be ended."""

    def end(self, error: CallError) -> None:
        """End with an error that says why."""


Stream = TypeVar("Stream", bound=Endable)


class SessionSlots(Generic[Stream]):
    """Holds at most `max_sessions` sessions, and in addition MAX_SILENT streams that have not sent Hello."""

    def __init__(self, max_sessions: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_sessions = max_sessions
        self._clock = clock
        self._silent: dict[Stream, str] = {}  # streams without Hello and their peers, oldest first
        self._sessions: dict[Stream, float] = {}  # when each opened
        self._lengths_s: deque[float] = deque(maxlen=MEASURED)  # of the last sessions

    def __iter__(self) -> Iterator[Stream]:
        yield from [*self._silent, *self._sessions]

    @property
    def sessions(self) -> int:
        """Sessions that are open: streams that have sent Hello."""
        return len(self._sessions)

    def check(self) -> None:
        """Check that one more session may open. Raises LimitError."""
        if len(self._sessions) >= self._max_sessions:
            raise LimitError(
                f"the server has as many sessions open as it allows (--sessions {self._max_sessions}); try again later",
                reason="TOO_MANY_SESSIONS",
                retry_after_s=self.retry_after_s(),
            )

    def retry_after_s(self) -> float:
        """Estimate the seconds until a session ends, from how long the last ones were open."""
        if not self._lengths_s:
            return UNMEASURED_S
        mean_s = sum(self._lengths_s) / len(self._lengths_s)
        return min(max(mean_s / self._max_sessions, MIN_RETRY_S), MAX_RETRY_S)

    def open(self, stream: Stream, peer: str) -> None:
        """Add a stream of a peer ("ipv4:192.0.2.7:41234"; the port is ignored), which has not sent Hello."""
        self._silent[stream] = peer.rpartition(":")[0]
        if len(self._silent) > MAX_SILENT:
            (greediest, count), *_ = Counter(self._silent.values()).most_common(1)
            oldest = next(one for one, peer in self._silent.items() if peer == greediest)
            del self._silent[oldest]
            oldest.end(
                LimitError(
                    f"{count} streams of one client have not sent Hello, and the server keeps at most {MAX_SILENT} "
                    "such streams; send Hello first, or close them",
                    reason="HELLO_MISSING",
                )
            )

    def enter(self, stream: Stream) -> None:
        """Make a stream that has sent Hello a session. Raises LimitError."""
        self.check()
        if self._silent.pop(stream, None) is not None:  # else `open` has ended it
            self._sessions[stream] = self._clock()

    def leave(self, stream: Stream) -> None:
        """Remove a stream that has ended."""
        self._silent.pop(stream, None)
        opened = self._sessions.pop(stream, None)
        if opened is not None:
            self._lengths_s.append(self._clock() - opened)
