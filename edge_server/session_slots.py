"""How many streams a server keeps open: sessions, and separately streams that have not sent Hello yet.

Promises that clients which open streams and send nothing cannot keep others from opening sessions: a new stream is
always taken, and beyond the limit for such streams the oldest one of the client that has most of them is ended. It may
be that of a device whose Hello is on its way, so it is told when to try again, as a session that is refused is. Leaves
how a session ends to `session`.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from tofc.errors import CallError, LimitError

MIN_SILENT = 32  # streams that have not sent Hello, however few sessions are allowed
HANDSHAKE_RETRY_S = 1.0  # a stream that comes later is taken at once: it need only not come with the same others
MEASURED = 32  # the last sessions, whose times the estimate of the next free place is made from
UNMEASURED_S = 5.0  # the estimate before any session has ended
MIN_RETRY_S, MAX_RETRY_S = 1.0, 60.0


class Endable(Protocol):
    """A stream that can be ended."""

    def end(self, error: CallError) -> None:
        """End with an error that says why."""


Stream = TypeVar("Stream", bound=Endable)


class SessionSlots(Generic[Stream]):
    """Holds at most `max_sessions` sessions, and in addition `max_silent` streams that have not sent Hello."""

    def __init__(self, max_sessions: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_sessions = max_sessions
        self._clock = clock
        self._silent: dict[Stream, str] = {}  # streams without Hello and whose they are, oldest first
        self._sessions: dict[Stream, float] = {}  # when each opened
        self._lengths_s: deque[float] = deque(maxlen=MEASURED)  # of the last sessions

    def __iter__(self) -> Iterator[Stream]:
        yield from [*self._silent, *self._sessions]

    @property
    def max_silent(self) -> int:
        """The most streams without Hello: after a restart the devices of all sessions may come back at once."""
        return max(MIN_SILENT, self._max_sessions)

    @property
    def silent(self) -> int:
        """Streams that have not sent Hello."""
        return len(self._silent)

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

    def open(self, stream: Stream, peer: str, device: str = "") -> None:
        """Add a stream that has not sent Hello, which may end another one.

        It counts as the device's, where that is known by name; else as the address's of its peer
        ("ipv4:192.0.2.7:41234"; the port is ignored).
        """
        self._silent[stream] = f"device {device}" if device else peer.rpartition(":")[0]
        if len(self._silent) > self.max_silent:
            (greediest, count), *_ = Counter(self._silent.values()).most_common(1)
            oldest = next(one for one, client in self._silent.items() if client == greediest)
            del self._silent[oldest]
            oldest.end(
                LimitError(
                    f"{count} streams of one device or address have not sent Hello, and the server keeps at most "
                    f"{self.max_silent} such streams in all; try again in a moment, and send Hello first",
                    reason="TOO_MANY_HANDSHAKES",
                    retry_after_s=HANDSHAKE_RETRY_S,
                )
            )

    def enter(self, stream: Stream) -> None:
        """Make a stream that has sent Hello a session. Raises LimitError."""
        self.check()
        if self._silent.pop(stream, None) is not None:  # else it has been ended
            self._sessions[stream] = self._clock()

    def leave(self, stream: Stream) -> None:
        """Remove a stream that has ended."""
        self._silent.pop(stream, None)
        opened = self._sessions.pop(stream, None)
        if opened is not None:
            self._lengths_s.append(self._clock() - opened)
