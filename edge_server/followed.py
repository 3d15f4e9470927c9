"""What files hold, read again when they change: a server takes new credentials without a restart.

Promises that a file which is damaged or gone leaves what was read before in use, and that the log says so once.
Leaves what the files mean to `read`, and when to look to whoever needs the value.
"""

import logging
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from shared.sentence import sentence

log = logging.getLogger(__name__)

SETTLED_NS = 1_000_000_000  # a file may change again within one tick of its time stamp: a read so soon is repeated
AGAIN_NS = 50_000_000  # between such reads

T = TypeVar("T")


class Followed(Generic[T]):
    """Calling it gives what `read` makes of `paths` now. To look costs a `stat` a file; any thread may."""

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        """Raises what `read` does."""
        self._paths = paths
        self._read = read
        self._lock = threading.Lock()
        self._trouble = ""
        self._stamps = self._look()
        self._read_at = time.time_ns()
        self._value = read()

    def __call__(self) -> T:
        with self._lock:
            stamps = self._look()
            if stamps != self._stamps or self._unsettled():
                self._stamps, self._read_at = stamps, time.time_ns()
                self._read_again()
            return self._value

    def _look(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._paths]

    def _unsettled(self) -> bool:
        early = any(stamp is not None and abs(self._read_at - stamp[0]) < SETTLED_NS for stamp in self._stamps)
        return early and abs(time.time_ns() - self._read_at) > AGAIN_NS

    def _read_again(self) -> None:
        names = ", ".join(map(str, self._paths))
        try:
            value = self._read()
        except (ValueError, OSError) as error:
            trouble = sentence(error)
            if trouble != self._trouble:
                log.error("%s; what was read before stays in use", trouble)
            self._trouble = trouble
            return
        if value != self._value or self._trouble:
            log.info("%s: read again", names)
        self._trouble, self._value = "", value


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):  # a pipe, as of <(…), is read once
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
