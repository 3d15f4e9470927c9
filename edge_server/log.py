"""The server's log: one line per event on stderr, which never blocks the service.

    loggers ─ repeats are counted ─ bounded queue ─ one thread ─→ stderr

Promises that a stalled reader of stderr blocks nothing, not even the end of the process, that clients cannot fill a
disk with log lines, and that the log says how many lines were left out. Leaves levels and messages to the callers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time

from tofc.terminal import printable

MAX_WAITING = 1000  # lines; more are dropped while stderr is not read
MAX_ALIKE = 100  # lines of one kind (see `emit`) in a period; more are only counted
PERIOD_S = 10.0
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
CLOSE_S = 1.0  # time at the end of the process for lines that are still queued


class QueuedLog(logging.Handler):
    """Hands lines to a thread that writes them to a file descriptor; `close` waits up to CLOSE_S for it."""

    def __init__(self, descriptor: int = 2) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(FORMAT))
        self._descriptor = descriptor
        self._queue: queue.Queue[str | None] = queue.Queue(MAX_WAITING)
        self._dropped = 0
        self._kinds: dict[tuple[str, int, str], int] = {}  # lines of this period
        self._period_end = 0.0
        self._thread = threading.Thread(target=self._write, name="tofc-log", daemon=True)  # started by the first line

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line, in the thread that logs; the handler's lock is not held while lines are written."""
        now = time.monotonic()
        if now >= self._period_end:
            self._report()
            self._period_end = now + PERIOD_S
        # By the start of the message: lines that quote a client may differ after it.
        kind = (record.name, record.levelno, str(record.msg)[:24])
        count = self._kinds[kind] = self._kinds.get(kind, 0) + 1
        if count <= MAX_ALIKE:
            self._put(printable(self.format(record)))

    def close(self) -> None:
        """Write the lines that wait, within CLOSE_S."""
        self._report()
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._queue.put_nowait(None)
            self._thread.join(CLOSE_S)
        super().close()

    def _report(self) -> None:
        """Log how many lines of the period that ends were left out."""
        for (name, _, start), count in self._kinds.items():
            if count > MAX_ALIKE:
                self._put(f"{count - MAX_ALIKE} more lines of {name} that begin with {start!r} were left out")
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
            except OSError:  # stderr is closed
                continue
