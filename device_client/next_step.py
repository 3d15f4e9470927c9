"""What to do about a question whose attempt failed.

    CallError ─ next_step ─┬─ AskAgain   over the same link, which still works, when the server wants it
                           ├─ Retry      over another link, after a pause
                           └─ Raise      give up and tell the user

Promises to decide only: nothing is sent, awaited or changed here. Leaves carrying it out to `session`, and a server
that opens no session to `server_wait`.
"""

from __future__ import annotations

from dataclasses import dataclass

from device_client.question import PendingQuestion
from device_client.retry_policy import SPREAD
from device_client.server_wait import ENGINE_LOST
from device_client.servers import LEAVING
from tofc.errors import CallError, LimitError, UnavailableError

BUSY = "ENGINE_BUSY"


@dataclass(frozen=True, kw_only=True)
class AskAgain:
    """Ask again over the same link. The server keeps the pictures, so they are not sent again."""

    after_s: float = 0.0
    """How long to wait before, because the server is busy."""
    forget_conversation: bool = False
    """The server dropped the conversation that the question continues: send all its turns."""


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Ask again over another link, after a pause."""

    fruitless_losses: int
    """Links lost in a row without progress, this one included; 0 if there was progress."""
    end_session: bool = False
    """The link still works, but the server takes no more questions in this session."""
    after_s: float = 0.0
    """The shortest pause, because the server is busy."""


@dataclass(frozen=True)
class Raise:
    """Give the question up with the error."""


Step = AskAgain | Retry | Raise


def next_step(
    error: CallError,
    question: PendingQuestion,
    *,
    closed: bool = False,
    left_s: float | None = None,
    others: bool = False,
) -> Step:
    """Return the step after `error` ended an attempt.

    `closed`: the user has closed the session. `left_s`: how long a busy server may be waited for; None: no limit.
    `others`: there are other servers, so that one which stops is left at once. A server whose engine was lost takes no
    question over an open session, but says to a new one when it is back: `server_wait` waits for that.

    >>> question = PendingQuestion(pictures=(), text="how many?")
    >>> next_step(UnavailableError(), question)
    Retry(fruitless_losses=1, end_session=False, after_s=0.0)
    >>> next_step(LimitError(reason="ENGINE_BUSY", retry_after_s=2.0), question, left_s=10.0)
    AskAgain(after_s=2.0, forget_conversation=False)
    """
    policy = question.policy
    if question.attempts >= policy.attempts:
        return Raise()
    if isinstance(error, LimitError) and error.retry_after_s is not None:
        return _when_busy(error, error.retry_after_s, question, closed=closed, left_s=left_s)
    if error.reason == "VIEWS_MISSING" and question.uploading:
        return AskAgain()  # the server waited too short for a slow upload, which still runs
    if error.reason == "CONVERSATION_GONE" and question.previous_request:
        return AskAgain(forget_conversation=True)
    used_up = error.reason == "SESSION_USED_UP"
    lost = isinstance(error, UnavailableError) and not closed
    if not (used_up or lost) or question.fruitless_losses >= policy.losses:
        return Raise()
    return Retry(
        fruitless_losses=0 if question.progressed else question.fruitless_losses + 1,
        end_session=used_up or error.reason == ENGINE_LOST or (others and error.reason in LEAVING),
    )


def _when_busy(
    error: LimitError, after_s: float, question: PendingQuestion, *, closed: bool, left_s: float | None
) -> Step:
    """Return the step after a refusal that says when to ask again.

    A queue becomes shorter, so it is waited for as long as there is time. Memory may be too small for the question at
    any time, so a question that lacked it is asked `losses` times more.
    """
    after_s = min(after_s, question.policy.busy_max_s)
    too_late = left_s is not None and after_s * SPREAD >= left_s
    hopeless = error.reason != BUSY and question.shortages >= question.policy.losses
    if closed or too_late or hopeless:
        return Raise()
    if question.link_ended:
        return Retry(fruitless_losses=question.fruitless_losses, after_s=after_s)
    return AskAgain(after_s=after_s)
