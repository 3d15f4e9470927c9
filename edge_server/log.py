"""The server's log: a line an event on stderr, never in the way of the service.

    loggers ─ repeats are counted ─ bounded queue ─ one thread ─→ stderr

Promises that a reader of stderr which stalls stops nothing, not even the end of the process, that strangers cannot
fill a disk with it, and that what was left out is said in a line. Leaves levels and sentences to whoever logs.
"""

import contextlib
import logging
import os
import queue
import threading
import time

from shared.terminal import printable

WAITING = 1000  # lines; more are dropped while stderr is not read
ALIKE = 100  # lines of one kind in a period; more are counted
PERIOD_S = 10.0
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LEAVE_S = 1.0  # for what waits at the end of the process


class QueuedLog(logging.Handler):
    """Hands lines to a thread that writes them to a file descriptor; `close` waits for it a moment."""

    def __init__(self, descriptor: int = 2) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(FORMAT))
        self._descriptor = descriptor
        self._queue: queue.Queue[str | None] = queue.Queue(WAITING)
        self._dropped = 0
        self._kinds: dict[tuple[str, int, str], int] = {}  # lines of this period
        self._until = 0.0  # the end of the period
        self._thread = threading.Thread(target=self._write, name="tofc-log", daemon=True)  # from the first line on

    def emit(self, record: logging.LogRecord) -> None:
        """In the thread that logs, under the handler's lock, which no writing holds."""
        now = time.monotonic()
        if now >= self._until:
            self._report()
            self._until = now + PERIOD_S
        # Sentences with a stranger's words in them differ behind their beginning.
        kind = (record.name, record.levelno, str(record.msg)[:24])
        count = self._kinds[kind] = self._kinds.get(kind, 0) + 1
        if count <= ALIKE:
            self._put(printable(self.format(record)))

    def close(self) -> None:
        self._report()
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._queue.put_nowait(None)
            self._thread.join(LEAVE_S)
        super().close()

    def _report(self) -> None:
        """What was left out of the period that ends."""
        for (name, _, begin), count in self._kinds.items():
            if count > ALIKE:
                self._put(f"{count - ALIKE} more lines of {name} that begin with {begin!r} were left out")
        self._kinds.clear()

    def _put(self, line: str) -> None:
        if self._thread.ident is None:
            self._thread.start()
        try:
            if self._dropped:
                self._queue.put_nowait(f"{self._dropped} lines were dropped: stderr was not read")
                self._dropped = 0
            self._queue.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def _write(self) -> None:
        while (line := self._queue.get()) is not None:
            data = f"{line}\n".encode(errors="backslashreplace")
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
            except OSError:  # nobody reads any more
                continue
