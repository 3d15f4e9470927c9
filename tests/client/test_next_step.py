"""What follows an error, as a table: error and state of the question → step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from device_client.link import NOT_BACK, SESSION_CLOSED
from device_client.next_step import AskAgain, Raise, Retry, Step, next_step
from device_client.question import PendingQuestion
from device_client.retry_policy import RetryPolicy
from tofc.errors import (
    CallError,
    CancelledError,
    CorruptPacketError,
    DeadlineError,
    DuplicateError,
    InternalError,
    InvalidRequestError,
    LimitError,
    LinkLostError,
    MismatchError,
    ReplyError,
    TlsError,
    TokenError,
    UnavailableError,
    UnknownReferenceError,
    UnsupportedError,
)

POLICY = RetryPolicy(losses=3, attempts=10)


def upload(*, complete: bool = False, failed: bool = False, acknowledged: int = 0) -> Any:
    """Return what `next_step` sees of an upload."""
    return None, SimpleNamespace(complete=complete, failed=failed, acknowledged=acknowledged)


STARTED = {"uploads": {1: upload()}}
MOVING = {"uploads": {1: upload(acknowledged=5)}}
UPLOADED = {"uploads": {1: upload(complete=True, acknowledged=21)}}
FAILED = {"uploads": {1: upload(failed=True, acknowledged=5)}}
TWO = {"uploads": {1: upload(complete=True, acknowledged=21), 2: upload()}}  # one of them is there
CONTINUING = {"previous_request": 7}
LOST = [{"fruitless_losses": losses} for losses in range(4)]
LAST = {"attempts": POLICY.attempts}

MISSING = UnknownReferenceError(reason="VIEWS_MISSING")
GONE = UnknownReferenceError(reason="CONVERSATION_GONE")
BUSY = LimitError(reason="ENGINE_BUSY", retry_after_s=2.0)
NO_MEMORY = LimitError(reason="CACHE_FULL", retry_after_s=2.0)
ENDED = {"submission": SimpleNamespace(link=SimpleNamespace(failure=NO_MEMORY))}
ENGINE_LOST = UnavailableError(reason="ENGINE_LOST")
USED_UP = LimitError(reason="SESSION_USED_UP")

CASES: list[tuple[str, CallError, dict[str, Any], Step]] = [
    # The server waited for views, which are still on their way.
    ("views missing, upload starts", MISSING, STARTED, AskAgain()),
    ("views missing, upload moves", MISSING, MOVING, AskAgain()),
    ("views missing, one of two pictures moves", MISSING, TWO, AskAgain()),
    ("views missing, though all are there", MISSING, UPLOADED, Raise()),
    ("views missing, upload failed", MISSING, FAILED, Raise()),
    ("views missing, no picture", MISSING, {}, Raise()),
    ("views missing, attempts used up", MISSING, MOVING | LAST, Raise()),
    ("views missing, losses do not count", MISSING, MOVING | LOST[3] | {"attempts": 9}, AskAgain()),
    # The server dropped the conversation that is continued.
    ("conversation gone", GONE, CONTINUING, AskAgain(forget_conversation=True)),
    ("conversation gone, though all turns were sent", GONE, {}, Raise()),
    ("conversation gone, attempts used up", GONE, CONTINUING | LAST, Raise()),
    # The session has numbered all that it may.
    ("session used up", USED_UP, {}, Retry(fruitless_losses=1, end_session=True)),
    ("session used up, progress", USED_UP, MOVING, Retry(fruitless_losses=0, end_session=True)),
    ("session used up again and again", USED_UP, LOST[3], Raise()),
    ("session used up, attempts used up", USED_UP, LAST, Raise()),
    # The server is busy.
    ("busy", BUSY, {}, AskAgain(after_s=2.0)),
    ("busy for a day", LimitError(reason="ENGINE_BUSY", retry_after_s=86_400.0), {}, AskAgain(after_s=60.0)),
    ("busy again and again", BUSY, {"refusals": 9}, AskAgain(after_s=2.0)),
    ("busy, attempts used up", BUSY, LAST, Raise()),
    ("busy, without a time to come back", LimitError(reason="ENGINE_BUSY"), {}, Raise()),
    ("no memory now", NO_MEMORY, {}, AskAgain(after_s=2.0)),
    ("no memory, last time but one", NO_MEMORY, {"shortages": 2}, AskAgain(after_s=2.0)),
    ("no memory, after a long queue", NO_MEMORY, {"refusals": 9}, AskAgain(after_s=2.0)),
    ("no memory, too often", NO_MEMORY, {"shortages": 3}, Raise()),
    ("no memory for an announcement, which ends the link", NO_MEMORY, ENDED, Retry(fruitless_losses=0, after_s=2.0)),
    # The link is lost.
    ("link lost", LinkLostError(), {}, Retry(fruitless_losses=1)),
    ("server unreachable", UnavailableError(), {}, Retry(fruitless_losses=1)),
    ("server stops", UnavailableError(reason="STOPPING"), {}, Retry(fruitless_losses=1)),
    ("server loads", UnavailableError(reason="LOADING"), {}, Retry(fruitless_losses=1)),
    ("engine lost", ENGINE_LOST, {}, Retry(fruitless_losses=1, end_session=True)),
    ("engine lost again and again", ENGINE_LOST, LOST[3], Raise()),
    ("an unknown reason of unavailability", UnavailableError(reason="NEW"), {}, Retry(fruitless_losses=1)),
    ("link too slow for the responses", LinkLostError(reason="NOT_READ"), {}, Retry(fruitless_losses=1)),
    ("link lost, second time", LinkLostError(), LOST[1], Retry(fruitless_losses=2)),
    ("link lost, last time but one", LinkLostError(), LOST[2], Retry(fruitless_losses=3)),
    ("link lost, too often", LinkLostError(), LOST[3], Raise()),
    ("link lost, too often, now with progress", LinkLostError(), MOVING | LOST[3], Raise()),
    ("link lost, attempts used up", LinkLostError(), MOVING | LAST, Raise()),
    ("link lost, last attempt but one", LinkLostError(), {"attempts": 9}, Retry(fruitless_losses=1)),
    ("link lost, progress", LinkLostError(), MOVING | LOST[2], Retry(fruitless_losses=0)),
    ("link lost, one of two pictures moves", LinkLostError(), TWO | LOST[1], Retry(fruitless_losses=0)),
    ("link lost before an acknowledgement", LinkLostError(), STARTED | LOST[1], Retry(fruitless_losses=2)),
    ("link lost after the upload", LinkLostError(), UPLOADED | LOST[1], Retry(fruitless_losses=2)),
    ("link lost after a failed upload", LinkLostError(), FAILED | LOST[1], Retry(fruitless_losses=2)),
    # Reasons that count only with the state above, under a status that means a lost link.
    ("views missing as unavailability", UnavailableError(reason="VIEWS_MISSING"), {}, Retry(fruitless_losses=1)),
    ("gone as unavailability", UnavailableError(reason="CONVERSATION_GONE"), {}, Retry(fruitless_losses=1)),
    # Everything else is the user's to know.
    ("deadline", DeadlineError(), MOVING, Raise()),
    ("cancelled", CancelledError(), {}, Raise()),
    ("invalid request", InvalidRequestError(), MOVING, Raise()),
    ("question too long", InvalidRequestError(reason="QUESTION_TOO_LONG"), CONTINUING, Raise()),
    ("prompt too long", InvalidRequestError(reason="PROMPT_TOO_LONG"), CONTINUING, Raise()),
    ("mismatch", MismatchError(reason="IMAGES_NOT_TAKEN"), MOVING, Raise()),
    ("unknown reference", UnknownReferenceError(), CONTINUING, Raise()),
    ("duplicate", DuplicateError(), {}, Raise()),
    ("corrupt packet", CorruptPacketError(), MOVING, Raise()),
    ("a limit", LimitError(reason="LIMIT_EXCEEDED"), MOVING, Raise()),
    ("too many questions", LimitError(reason="TOO_MANY_QUESTIONS"), MOVING, Raise()),
    ("token", TokenError(), {}, Raise()),
    ("TLS, though its status is UNAVAILABLE", TlsError(), {}, Raise()),
    ("unsupported", UnsupportedError(), {}, Raise()),
    ("internal", InternalError(), MOVING, Raise()),
    ("the server broke the protocol", ReplyError(), MOVING, Raise()),
    ("an unknown error", CallError(reason="NEW"), MOVING, Raise()),
]


def question(state: dict[str, Any]) -> PendingQuestion:
    return PendingQuestion(pictures=(), text="how many?", policy=POLICY, **state)


@pytest.mark.parametrize(("error", "state", "step"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_next_step(error: CallError, state: dict[str, Any], step: Step) -> None:
    pending = question(state)
    before = repr(pending)
    assert next_step(error, pending) == step
    assert repr(pending) == before, "it decides only"


@pytest.mark.parametrize(
    ("error", "step"),
    [
        (LinkLostError(SESSION_CLOSED), Raise()),
        (LinkLostError(reason=NOT_BACK), Raise()),
        (UnavailableError(), Raise()),
        (GONE, AskAgain(forget_conversation=True)),  # connecting again then says that the session was closed
        (USED_UP, Retry(fruitless_losses=1, end_session=True)),
    ],
)
def test_a_session_that_its_user_closed_is_not_repaired(error: CallError, step: Step) -> None:
    assert next_step(error, question(CONTINUING), closed=True) == step


@pytest.mark.parametrize(
    ("left_s", "step"), [(2.4, Raise()), (2.5, AskAgain(after_s=2.0)), (None, AskAgain(after_s=2.0))]
)
def test_a_busy_server_is_not_waited_for_beyond_the_time_that_is_left(left_s: float | None, step: Step) -> None:
    assert next_step(BUSY, question({}), left_s=left_s) == step


def test_a_server_that_stops_is_left_if_there_are_others() -> None:
    error = UnavailableError(reason="STOPPING")
    assert next_step(error, question({}), others=True) == Retry(fruitless_losses=1, end_session=True)
    assert next_step(error, question({})) == Retry(fruitless_losses=1)
    assert next_step(LinkLostError(), question({}), others=True) == Retry(fruitless_losses=1)


@pytest.mark.parametrize("others", [False, True])
def test_a_session_of_a_lost_engine_is_ended_so_that_the_server_is_waited_for(others: bool) -> None:
    assert next_step(ENGINE_LOST, question({}), others=others) == Retry(fruitless_losses=1, end_session=True)


def test_a_busy_server_is_not_asked_again_in_a_session_that_its_user_closed() -> None:
    assert next_step(BUSY, question({}), closed=True) == Raise()
