"""HTTP/1.1 of one connection, with a time within which a client must speak, and one within which it must listen.

    connected ─ HEAD_S ─→ whole head of a request ─→ answer ─┬─ silent: uvicorn's keep-alive ─→ closed
                                                              └─ a byte ─ HEAD_S ─→ whole head …

Promises that a connection without a request, and one whose client does not read, do not hold their place for ever:
uvicorn alone starts its timer after the first response, and any byte ends it. Leaves bodies to `body`.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0  # from the connection, or the first byte after a response, to the end of a request's head
READ_S = 30.0  # for a client to read what fills its buffers


class TimedProtocol(H11Protocol):
    """uvicorn's protocol with both times."""

    _head: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._head = self.loop.call_later(HEAD_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Take what arrived; stop waiting where it completes a head."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            _stop(self._head)
            self._head = None
        elif self._head is None:
            self._head = self.loop.call_later(HEAD_S, self.transport.abort)

    def pause_writing(self) -> None:
        """Begin to wait for the client to read; then the answer ends as if the client had left."""
        super().pause_writing()
        self._unread = self._unread or self.loop.call_later(READ_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop waiting."""
        super().resume_writing()
        _stop(self._unread)
        self._unread = None

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection, also that of a client which has not read its response."""
        super().timeout_keep_alive_handler()
        self._unread = self._unread or self.loop.call_later(READ_S, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """End both timers."""
        _stop(self._head)
        _stop(self._unread)
        super().connection_lost(exc)


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
