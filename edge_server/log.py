"""The server's log: one line per event on stderr, which never blocks the service.

    loggers ─ repeats are counted ─ bounded queue ─ one thread ─→ stderr

A line is text for people, or a JSON object with the fields that callers give (`extra`): session, question, tokens, …
Promises that a stalled reader of stderr blocks nothing, not even the end of the process, that clients cannot fill a
disk with log lines, and that the log says how many lines were left out. Leaves levels and messages to the callers.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from tofc.terminal import printable

MAX_WAITING = 1000  # lines; more are dropped while stderr is not read
MAX_ALIKE = 100  # lines of one kind (see `emit`) in a period; more are only counted
PERIOD_S = 10.0
CLOSE_S = 1.0  # time at the end of the process for lines that are still queued
STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", None, None))) | {"message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """Time, level, logger and message, for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")


class JsonFormatter(logging.Formatter):
    """One object a line: time (UTC), level, logger, message, then what the caller gave as `extra`; ASCII only.

    >>> record = logging.makeLogRecord({"msg": "%s went", "args": ("ünit",), "levelname": "INFO", "views": 3})
    >>> print(JsonFormatter().format(record))
    {"time": "...Z", "level": "info", "logger": null, "message": "\\u00fcnit went", "views": 3}
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        time_utc = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": time_utc.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in STANDARD and name not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


FORMATTERS: dict[str, Callable[[], logging.Formatter]] = {"text": TextFormatter, "json": JsonFormatter}


class QueuedLog(logging.Handler):
    """Hands lines to a thread that writes them to a file descriptor; `close` waits up to CLOSE_S for it."""

    def __init__(self, descriptor: int = 2, formatter: logging.Formatter | None = None) -> None:
        super().__init__()
        self.setFormatter(formatter or TextFormatter())
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
                self._tell(f"{count - MAX_ALIKE} more lines of {name} that begin with {start!r} were left out")
        self._kinds.clear()

    def _tell(self, text: str) -> None:
        """Log something about the log itself."""
        self._put(self._own_line(text))

    def _own_line(self, text: str) -> str:
        record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None)
        return printable(self.format(record))

    def _put(self, line: str) -> None:
        if self._thread.ident is None:
            self._thread.start()
        try:
            if self._dropped:
                self._queue.put_nowait(self._own_line(f"{self._dropped} lines were dropped: stderr was not read"))
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
