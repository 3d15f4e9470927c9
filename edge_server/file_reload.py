"""A value that is read from files again when they change, so that a server uses new credentials without a restart.

Promises that the last good value stays in use while a file is damaged or missing, and that the log says so once.
Leaves the meaning of the files to `read`, and to the caller when to check them.
"""

from __future__ import annotations

import logging
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from tofc.error_text import describe
from tofc.errors import UsageError

log = logging.getLogger(__name__)

SETTLED_NS = 1_000_000_000  # time stamps are coarse: a file that was read this soon after its last change is read again
REREAD_INTERVAL_NS = 50_000_000  # least time between two such reads

T = TypeVar("T")


class ReloadedFiles(Generic[T]):
    """Call it for the current value of `read`, which reads `paths`. A call costs one `stat` per file, in any thread."""

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        """Read the files. Raises what `read` raises."""
        self._paths = paths
        self._read = read
        self._lock = threading.Lock()
        self._problem = ""
        self._stamps = self._stat()
        self._read_at = time.time_ns()
        self._value = read()

    def __call__(self) -> T:
        with self._lock:
            stamps = self._stat()
            if stamps != self._stamps or self._unsettled():
                self._stamps, self._read_at = stamps, time.time_ns()
                self._read_again()
            return self._value

    def _stat(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._paths]

    def _unsettled(self) -> bool:
        early = any(stamp is not None and abs(self._read_at - stamp[0]) < SETTLED_NS for stamp in self._stamps)
        return early and abs(time.time_ns() - self._read_at) > REREAD_INTERVAL_NS

    def _read_again(self) -> None:
        names = ", ".join(map(str, self._paths))
        try:
            value = self._read()
        except (UsageError, OSError) as error:
            problem = describe(error)
            if problem != self._problem:
                log.error("%s; what was read before stays in use", problem)
            self._problem = problem
            return
        if value != self._value or self._problem:
            log.info("%s: read again", names)
        self._problem, self._value = "", value


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):  # a pipe, as in <(…), can be read only once
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
