"""What the service tells those who watch it: questions, errors, bytes, sessions.

    session, answer, service ─→ Observer ─┬─ does nothing (the default)
                                          ├─ Metrics: /metrics
                                          └─ Traces: spans

Promises that observing never waits and never raises, so that a call needs no guard, and that times are in seconds.
Leaves how busy the server is at a moment, which nobody needs to be told, to the collectors of `metrics`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tofc.errors import CallError
from tofc.v1 import tofc_pb2 as pb

Scope = Literal["session", "question"]
Form = Literal["features", "image"]
NOT_LOGGED = ("arrived_s", "decodes_s", "traceparent")
Write = Callable[[pb.SessionResponse], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class EndedQuestion:
    """A question that was accepted and has ended. A time is 0 if that point was not reached."""

    outcome: str
    """stop, length or cancelled; error; or disconnected, if its session ended first."""
    reason: str  # of the error, else the outcome
    prompt_tokens: int
    visual_tokens: int  # of the prompt
    new_tokens: int
    thinking_tokens: int  # of the new ones
    samples: int  # that the answer was made from
    answer_tokens: int  # of the new ones, without those of samples
    views_s: float  # waiting for views that had not arrived
    queue_s: float  # waiting for the engine
    prefill_s: float
    first_token_s: float  # from the question's arrival
    total_s: float
    arrived_s: float = 0.0  # of time.perf_counter
    decodes_s: tuple[tuple[float, float], ...] = ()  # the same: when pictures that it waited for were decoded
    traceparent: str = ""  # the device's, see `tofc.tracing`

    @property
    def fields(self) -> dict[str, Any]:
        """What a log shows, by name; times in seconds, to the microsecond."""
        shown = {name: value for name, value in vars(self).items() if name not in NOT_LOGGED}
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in shown.items()}

    @property
    def tokens_per_s(self) -> float:
        """Speed behind the answer's first token; 0 for an answer of fewer than two tokens, or by votes."""
        seconds = self.total_s - self.first_token_s
        return (
            (self.answer_tokens - 1) / seconds if self.first_token_s and self.answer_tokens > 1 and seconds > 0 else 0.0
        )


class Observer:
    """Does nothing. Called in the event loop only."""

    def question(self, ended: EndedQuestion) -> None:
        """Take note of a question that has ended."""

    def error(self, scope: Scope, error: CallError) -> None:
        """Take note of an error that a client was sent, about one of its questions or its whole session."""

    def session(self, seconds: float) -> None:
        """Take note of a session that has ended."""

    def picture(self, form: Form) -> None:
        """Take note of a picture that a session announced."""

    def received(self, form: Form, n_bytes: int) -> None:
        """Take note of bytes of a picture, without what frames them."""

    def view(self, decode_s: float) -> None:
        """Take note of a view that was decoded."""

    def counting(self, write: Write) -> Write:
        """Return a function that writes responses like `write`, and counts their bytes."""
        return write


SILENT = Observer()


class Observers(Observer):
    """Tells several, in their order."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def question(self, ended: EndedQuestion) -> None:
        for one in self._observers:
            one.question(ended)

    def error(self, scope: Scope, error: CallError) -> None:
        for one in self._observers:
            one.error(scope, error)

    def session(self, seconds: float) -> None:
        for one in self._observers:
            one.session(seconds)

    def picture(self, form: Form) -> None:
        for one in self._observers:
            one.picture(form)

    def received(self, form: Form, n_bytes: int) -> None:
        for one in self._observers:
            one.received(form, n_bytes)

    def view(self, decode_s: float) -> None:
        for one in self._observers:
            one.view(decode_s)

    def counting(self, write: Write) -> Write:
        for one in self._observers:
            write = one.counting(write)
        return write
