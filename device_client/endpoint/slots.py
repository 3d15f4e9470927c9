"""How many requests the endpoint takes, and how many of them it answers at one time.

Promises that a request beyond the limit is refused at once, with a time to wait, and that the pictures of few requests
are in memory as pixels. Leaves fairness to the order of arrival.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from device_client.endpoint.errors import ApiError

RUNNING = 8  # as many questions as a session has in flight by default


class Slots:
    """Places for `most` requests, of which RUNNING are answered at one time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._running = asyncio.Semaphore(RUNNING)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place while the block runs. Raises ApiError where there is none."""
        if self._held >= self._most:
            raise ApiError(
                429,
                "endpoint_busy",
                f"{self._held} requests are being answered, at most {self._most} are taken; ask again",
                kind="rate_limit_error",
                retry_after_s=1.0,
            )
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Wait for a turn, and hold it while the block runs."""
        async with self._running:
            yield
