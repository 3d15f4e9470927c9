"""Who has a place on the server: sessions, and apart from them streams that have not said Hello yet.

Promises that whoever opens streams and says nothing keeps no session out: of too many such streams, one of the peer
that has most of them ends. Leaves how a session ends to `session`.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from shared.rpc.errors import LimitError, TofcError

SILENT = 32  # streams that have not said Hello


class Ends(Protocol):
    """What has a place, and hears why it has it no more."""

    def end(self, error: TofcError) -> None: ...


Stream = TypeVar("Stream", bound=Ends)


class Places(Generic[Stream]):
    """At most ``most`` sessions."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._silent: dict[Stream, str] = {}  # with their peers, oldest first
        self._sessions: set[Stream] = set()

    def __iter__(self) -> Iterator[Stream]:
        yield from [*self._silent, *self._sessions]

    def check(self) -> None:
        """Raises LimitError while there is no place for one more session."""
        if len(self._sessions) >= self._most:
            raise LimitError(
                f"every place of this server is taken (--sessions {self._most}); try again later",
                reason="TOO_MANY_SESSIONS",
            )

    def open(self, stream: Stream, peer: str) -> None:
        """A stream of a peer ("ipv4:192.0.2.7:41234"), whose port does not matter."""
        self._silent[stream] = peer.rpartition(":")[0]
        if len(self._silent) > SILENT:
            (greediest, count), *_ = Counter(self._silent.values()).most_common(1)
            oldest = next(one for one, peer in self._silent.items() if peer == greediest)
            del self._silent[oldest]
            oldest.end(
                LimitError(
                    f"{count} streams of one client wait without Hello; say Hello first, or close them",
                    reason="HELLO_MISSING",
                )
            )

    def enter(self, stream: Stream) -> None:
        """It has said Hello. Raises LimitError."""
        self.check()
        if self._silent.pop(stream, None) is not None:  # else it is being ended
            self._sessions.add(stream)

    def leave(self, stream: Stream) -> None:
        self._silent.pop(stream, None)
        self._sessions.discard(stream)
