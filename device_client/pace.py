"""How many bytes of image files may be on their way at once.

Promises that little enough is under way for a slow link to carry within seconds: what comes after it (a ping's reply,
a cancel, another question) waits behind it, and a link whose pings are not replied to counts as lost. Nobody tells how
fast a link is, so it is measured by acknowledgements. Leaves sending to `link`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from shared.rpc.channel import CHUNK_BYTES

PART = 0.4  # of the time in which a ping must be replied to: what is under way is what the link carries in it
FIRST_BYTES = 2 * 1024  # under way before the first acknowledgement
LEAST_BYTES = 256  # a chunk: of smaller ones headers would be a fourth
MOST_BYTES = 8 * CHUNK_BYTES


@dataclass(frozen=True, kw_only=True)
class Flight:
    """A chunk on its way, and what had been acknowledged when it left."""

    size: int
    left_at: float
    acknowledged: int


class Pace:
    """Of one link. ``patience_s``: the time in which a ping must be replied to.

    >>> now = 0.0
    >>> pace = Pace(10.0, clock=lambda: now)
    >>> chunk = pace.leaves(1024)
    >>> now = 4.0  # 256 bytes a second: two chunks may be on their way
    >>> pace.arrived(chunk)
    >>> another = pace.leaves(pace.chunk)
    >>> another.size, pace.fits(512), pace.fits(513)
    (512, True, False)
    """

    def __init__(self, patience_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._carried_s = PART * patience_s
        self._clock = clock
        self._most = FIRST_BYTES
        self._under_way = 0
        self._acknowledged = 0

    @property
    def chunk(self) -> int:
        """Bytes of the next chunk: half of what may be under way, so that the link is never idle."""
        return max(LEAST_BYTES, min(self._most // 2, CHUNK_BYTES))

    def fits(self, size: int) -> bool:
        """Whether so many bytes may leave now."""
        return not self._under_way or self._under_way + size <= self._most

    def leaves(self, size: int) -> Flight:
        """A chunk is sent."""
        self._under_way += size
        return Flight(size=size, left_at=self._clock(), acknowledged=self._acknowledged)

    def arrived(self, flight: Flight) -> None:
        """It was acknowledged."""
        self._under_way -= flight.size
        self._acknowledged += flight.size
        took = max(self._clock() - flight.left_at, 1e-3)
        rate = (self._acknowledged - flight.acknowledged) / took
        self._most = int(max(LEAST_BYTES, min(rate * self._carried_s, MOST_BYTES)))
