"""Loads encoders: one at a time in a process, and only while a session waits for it.

Promises that sessions which are opened and closed faster than a model loads leave neither threads nor weights behind,
and that the last thread which uses an encoder frees its weights, unless its owner had loaded it before. Leaves loading
and freeing to the encoder.
"""

from __future__ import annotations

import atexit
import threading
from collections import Counter
from collections.abc import Callable
from typing import Protocol


class Loadable(Protocol):
    """What the loader needs of an encoder."""

    @property
    def ready(self) -> bool: ...
    def load(self) -> None: ...
    def unload(self) -> None: ...


class Loader:
    """Loads one encoder at a time: loading several would share the cores and hold all their memory at once."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy = False
        self._exiting = False
        self._users: Counter[int] = Counter()  # threads that use an encoder, by the encoder's id()
        atexit.register(self._exit)

    def load(self, encoder: Loadable, closed: Callable[[], bool]) -> bool:
        """Load for the calling thread when its turn comes; return False if `closed()` is true by then.

        Raises what `encoder.load` raises.
        """
        with self._changed:
            self._changed.wait_for(lambda: closed() or not self._busy)
            if closed():
                return False
            if encoder.ready:
                if id(encoder) in self._users:  # else its owner loaded it: it is not counted and stays loaded
                    self._users[id(encoder)] += 1
                return True
            self._busy = True
            self._users[id(encoder)] += 1
        try:
            encoder.load()
        except BaseException:
            self.release(encoder)
            raise
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
        return True

    def release(self, encoder: Loadable) -> None:
        """Count a thread that no longer uses the encoder; the last one unloads it."""
        with self._changed:
            if id(encoder) not in self._users:
                return
            self._users[id(encoder)] -= 1
            if not self._users[id(encoder)] and not self._exiting:
                del self._users[id(encoder)]
                encoder.unload()

    def wake(self) -> None:
        """Have waiting threads check whether they were closed."""
        with self._changed:
            self._changed.notify_all()

    def _exit(self) -> None:
        """Free no weights from now on: if Python ends a thread in which torch frees weights, the process aborts."""
        with self._changed:
            self._exiting = True


LOADER = Loader()
