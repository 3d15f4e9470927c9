"""How long a device waits for a server that opens no session: its model is not ready, it is full, busy or not running.

Promises to decide only, by the errors that it was given: nothing is awaited here. Leaves sleeping and connecting to
`connection`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from device_client.stream import UNHEARD
from tofc.errors import CallError, LimitError, LinkLostError, UnavailableError

LOADING, ENGINE_LOST, FULL = "LOADING", "ENGINE_LOST", "TOO_MANY_SESSIONS"  # reasons not to open a session now
HANDSHAKES = "TOO_MANY_HANDSHAKES"  # reason: others crowded this device's stream out before its Hello was read
NOT_READY = frozenset({LOADING, ENGINE_LOST})  # the server runs, and will serve when its model does


def max_wait_s(error: CallError, wait_s: float | None, *, reconnecting: bool) -> float:
    """Return how long to wait in all for a server that refused a session with `error`.

    `wait_s` is what the user set, None if nothing; `reconnecting`: there was a session with this server before.

    >>> [max_wait_s(UnavailableError(reason=reason), None, reconnecting=False) for reason in (LOADING, "")]
    [inf, 0.0]
    """
    full = error.reason == FULL or (isinstance(error, LimitError) and error.retry_after_s is not None)
    if full and reconnecting:
        return math.inf  # this session's old link may hold the place until the server notices that it is lost
    if error.reason in NOT_READY or error.reason == HANDSHAKES:
        return math.inf if wait_s is None else wait_s
    if full or isinstance(error, UnavailableError):
        return wait_s or 0.0
    return 0.0


@dataclass(kw_only=True)
class ServerWait:
    """The wait for one server, from the first try to connect to the last."""

    address: str
    wait_s: float | None
    reconnecting: bool
    connects: int  # tries to get a lost link back, or one that carried no Hello in time, however long they take
    tries: int = 0
    _unreached: int = 0  # tries in which no server was reached
    _waited_s: float = 0.0
    _shown: set[str] = field(default_factory=set)

    def next_pause_s(self, error: UnavailableError | LimitError, took_s: float, max_pause_s: float) -> float:
        """Return the seconds until the next try, up to `max_pause_s`, after a try that failed in `took_s`.

        Raises `error`, or LinkLostError where a link was lost, when there is no next try.
        """
        self.tries += 1
        lost = self._slow(error) or (
            self.reconnecting and isinstance(error, UnavailableError) and error.reason not in NOT_READY
        )
        self._unreached += lost
        self._waited_s += took_s
        left_s = max_wait_s(error, self.wait_s, reconnecting=self.reconnecting) - self._waited_s
        if left_s > 0:
            pause_s = min(max_pause_s, left_s)
        elif not lost:
            waited = f" (waited {self.wait_s:g} s)" if self.wait_s else ""
            raise type(error)(
                f"{error.message}{waited}", reason=error.reason, retry_after_s=error.retry_after_s
            ) from None
        elif self._unreached >= self.connects:
            if not self.reconnecting:
                raise UnavailableError(f"{error.message} ({self._unreached} tries)", reason=error.reason)
            raise LinkLostError(
                f"{self.address} was lost and did not come back in {self._unreached} tries ({error.message})"
            )
        else:
            pause_s = max_pause_s
        self._waited_s += pause_s
        return pause_s

    def pauses_deadlines(self, error: UnavailableError | LimitError) -> bool:
        """Return whether the time of questions stands still during this wait."""
        return error.reason in NOT_READY or not (self.reconnecting or error.reason in (HANDSHAKES, UNHEARD))

    def _slow(self, error: UnavailableError | LimitError) -> bool:
        """Return whether there is a server, but the link or the server was too slow for a handshake."""
        return error.reason == UNHEARD and self.wait_s is None

    def notice(self, error: UnavailableError | LimitError) -> str:
        """Return what to tell the user about the wait; "" if that was told already, or a lost link is replaced."""
        if self.reconnecting and error.reason not in NOT_READY:
            return ""
        if error.reason == HANDSHAKES:
            what = f"the server at {self.address} is busy opening sessions"
        elif error.reason == UNHEARD:
            what = f"the link to the server at {self.address} is slow"
        elif error.reason == LOADING:
            what = f"the server at {self.address} is loading its model"
        elif error.reason == ENGINE_LOST:
            what = f"the server at {self.address} has lost the engine that runs its model"
        elif isinstance(error, LimitError):
            what = f"the server at {self.address} is full"
        else:
            what = f"no server at {self.address} yet"
        notice = f"{what}; waiting" + (f" up to {self.wait_s:g} s" if self.wait_s is not None else "")
        if notice in self._shown:
            return ""
        self._shown.add(notice)
        return notice
