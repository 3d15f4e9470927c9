"""How many bytes of image files may be unacknowledged at once: a congestion window.

Promises that a slow link can carry what is unacknowledged within seconds: everything sent later (a ping's reply, a
cancel, another question) queues behind it, and a link whose pings are not answered in time counts as lost. The speed
of the link is measured by acknowledgements. Leaves sending to `link`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tofc.rpc.channel import CHUNK_BYTES

WINDOW_SHARE = 0.4  # the link carries a full window in this share of the time in which a ping must be answered
INITIAL_BYTES = 2 * 1024  # the window before the first acknowledgement
MIN_CHUNK_BYTES = 256  # headers would be a fourth of smaller chunks
MAX_WINDOW_BYTES = 8 * CHUNK_BYTES


@dataclass(frozen=True, kw_only=True)
class SentChunk:
    """A chunk that is not acknowledged yet."""

    n_bytes: int
    sent_at: float
    acknowledged_before: int  # bytes that had been acknowledged when it was sent


class SendWindow:
    """The window of one link. `ping_timeout_s`: the time in which a ping must be answered.

    >>> now = 0.0
    >>> window = SendWindow(10.0, clock=lambda: now)
    >>> first = window.send(1024)
    >>> now = 4.0  # 256 bytes a second: the window becomes 1024 bytes, two chunks
    >>> window.acknowledge(first)
    >>> second = window.send(window.chunk_bytes)
    >>> second.n_bytes, window.admits(512), window.admits(513)
    (512, True, False)
    """

    def __init__(self, ping_timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._window_s = WINDOW_SHARE * ping_timeout_s
        self._clock = clock
        self._window_bytes = INITIAL_BYTES
        self._in_flight = 0
        self._acknowledged = 0

    @property
    def chunk_bytes(self) -> int:
        """Return the size of the next chunk: half of the window, so that the link is never idle."""
        return max(MIN_CHUNK_BYTES, min(self._window_bytes // 2, CHUNK_BYTES))

    def admits(self, n_bytes: int) -> bool:
        """Return whether a chunk of this size may be sent now."""
        return not self._in_flight or self._in_flight + n_bytes <= self._window_bytes

    def send(self, n_bytes: int) -> SentChunk:
        """Count a chunk that is being sent."""
        self._in_flight += n_bytes
        return SentChunk(n_bytes=n_bytes, sent_at=self._clock(), acknowledged_before=self._acknowledged)

    def acknowledge(self, chunk: SentChunk) -> None:
        """Count a chunk that was acknowledged, and set the window by the speed measured with it."""
        self._in_flight -= chunk.n_bytes
        self._acknowledged += chunk.n_bytes
        took_s = max(self._clock() - chunk.sent_at, 1e-3)
        bytes_per_s = (self._acknowledged - chunk.acknowledged_before) / took_s
        self._window_bytes = int(max(MIN_CHUNK_BYTES, min(bytes_per_s * self._window_s, MAX_WINDOW_BYTES)))
