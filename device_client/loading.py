"""Loading encoders: one at a time in a process, and nothing that nobody waits for any more.

Promises that sessions which are opened and closed sooner than a model loads leave neither threads nor weights, and
that weights go with the last thread that used them, unless they were there before the first. Leaves what is loaded to
the encoder.
"""

import atexit
import threading
from collections import Counter
from collections.abc import Callable
from typing import Protocol


class Loadable(Protocol):
    @property
    def ready(self) -> bool: ...
    def load(self) -> None: ...
    def unload(self) -> None: ...


class Loads:
    """Loads side by side would share the cores and hold all their memory at once."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy = False
        self._exiting = False
        self._users: Counter[int] = Counter()  # of encoders, by id
        atexit.register(self._exit)

    def load(self, encoder: Loadable, closed: Callable[[], bool]) -> bool:
        """Load for the thread that calls, when its turn comes; False if it was closed before. Raises as `load`."""
        with self._changed:
            self._changed.wait_for(lambda: closed() or not self._busy)
            if closed():
                return False
            if encoder.ready:  # one that whoever made it has loaded is not counted: it stays
                self._users[id(encoder)] += id(encoder) in self._users
                return True
            self._busy = True
            self._users[id(encoder)] += 1
        try:
            encoder.load()
        except BaseException:
            self.unload(encoder)
            raise
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
        return True

    def unload(self, encoder: Loadable) -> None:
        """The thread that loaded it ends. Others may use the same encoder."""
        with self._changed:
            if id(encoder) not in self._users:
                return
            self._users[id(encoder)] -= 1
            if not self._users[id(encoder)] and not self._exiting:
                del self._users[id(encoder)]
                encoder.unload()

    def closed(self) -> None:
        """To call when a thread was closed that may wait for its turn."""
        with self._changed:
            self._changed.notify_all()

    def _exit(self) -> None:
        """A thread that Python ends while torch frees weights in it would abort the process."""
        with self._changed:
            self._exiting = True


LOADS = Loads()
