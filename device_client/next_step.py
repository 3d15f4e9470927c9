"""What to do about a question whose attempt failed.

    CallError ─ next_step ─┬─ AskAgain   over the same link, which still works
                           ├─ Retry      over another link, after a pause
                           └─ Raise      give up and tell the user

Promises to decide only: nothing is sent, awaited or changed here. Leaves carrying it out to `session`, and a server
that opens no session to `server_wait`.
"""

from __future__ import annotations

from dataclasses import dataclass

from device_client.question import PendingQuestion
from tofc.errors import CallError, UnavailableError


@dataclass(frozen=True, kw_only=True)
class AskAgain:
    """Ask again over the same link, at once."""

    forget_conversation: bool = False
    """The server dropped the conversation that the question continues: send all its turns."""


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Ask again over another link, after a pause."""

    fruitless_losses: int
    """Links lost in a row without progress, this one included; 0 if there was progress."""
    end_session: bool = False
    """The link still works, but the server takes no more questions in this session."""


@dataclass(frozen=True)
class Raise:
    """Give the question up with the error."""


Step = AskAgain | Retry | Raise


def next_step(error: CallError, question: PendingQuestion, *, closed: bool = False) -> Step:
    """Return the step after `error` ended an attempt. `closed`: the user has closed the session.

    >>> question = PendingQuestion(pictures=(), text="how many?")
    >>> next_step(UnavailableError(), question)
    Retry(fruitless_losses=1, end_session=False)
    """
    policy = question.policy
    if question.attempts >= policy.attempts:
        return Raise()
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
        end_session=used_up,
    )
