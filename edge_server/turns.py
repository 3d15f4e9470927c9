"""The turns of a question, checked: those that it continues, those that it brings, and where they show its pictures.

Promises that the order of roles, the number of turns and bytes, and every place of a picture are checked before a
prompt is made of them. Leaves the prompt to `tofc.model.prompt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from edge_server.settings import MAX_TURNS, STOP_TEXTS, SessionLimits
from tofc.errors import InvalidRequestError
from tofc.model.prompt import Turn
from tofc.v1 import tofc_pb2 as pb

ROLES: dict[int, Literal["system", "user", "assistant"]] = {
    pb.ROLE_USER: "user",
    pb.ROLE_ASSISTANT: "assistant",
    pb.ROLE_SYSTEM: "system",
}
STOP_BYTES = 256  # of one text


def collect_turns(ask: pb.Ask, earlier: Sequence[Turn], limits: SessionLimits) -> list[Turn]:
    """Return the turns of a question after `earlier` ones. Raises InvalidRequestError for a wrong order or size."""
    count = len(earlier) + len(ask.history) + 1
    if count > MAX_TURNS:
        raise InvalidRequestError(
            f"a question must have at most {MAX_TURNS} turns, got {count}; drop earlier ones",
            reason="QUESTION_TOO_LONG",
        )
    for position, turn in enumerate(ask.history, len(earlier)):
        if turn.role not in ROLES or (turn.role == pb.ROLE_SYSTEM and position):
            raise InvalidRequestError(
                f"turn {position} has role {turn.role}; allowed are user (1), assistant (2), and system (3) for the "
                "first turn only",
                reason="TURNS_INVALID",
            )
    history = [Turn(role=ROLES[turn.role], text=turn.text) for turn in ask.history]
    turns = [*earlier, *history, Turn(role="user", text=ask.question)]
    size = sum(len(turn.text.encode()) for turn in turns)
    if size > limits.question_bytes:
        raise InvalidRequestError(
            f"a question must have at most {limits.question_bytes} bytes, got {size}; drop earlier turns or shorten it",
            reason="QUESTION_TOO_LONG",
        )
    return _placed(turns, ask.places, len(ask.refs))


def check_stop(stop: Sequence[str]) -> tuple[str, ...]:
    """Return the texts before which an answer ends. Raises InvalidRequestError for too many, or too long ones."""
    if len(stop) > STOP_TEXTS or not all(1 <= len(text.encode()) <= STOP_BYTES for text in stop):
        sizes = [len(text.encode()) for text in stop]
        raise InvalidRequestError(
            f"stop must be at most {STOP_TEXTS} texts of 1 to {STOP_BYTES} bytes each, got {sizes[:9]} bytes; leave "
            "some out",
            reason="STOP_INVALID",
        )
    return tuple(stop)


def _placed(turns: Sequence[Turn], places: Sequence[pb.Place], pictures: int) -> list[Turn]:
    """Return the turns with the pictures at `places`; without places, with none: the prompt then shows them first."""
    placed = [replace(turn, pictures=()) for turn in turns]
    if not places:
        return placed
    if len(places) != pictures:
        raise _invalid(f"a question must have a place for each of its {pictures} pictures, got {len(places)}")
    before = (0, 0)
    for place in places:
        if (place.turn, place.offset) < before:
            raise _invalid(f"places must be in ascending order, got {place.turn, place.offset} after {before}")
        before = (place.turn, place.offset)
        if place.turn >= len(placed) or placed[place.turn].role != "user":
            raise _invalid(f"a picture must be shown in a turn of the user, got turn {place.turn} of {len(placed)}")
        turn = placed[place.turn]
        shown_before = turn.text.encode()[: place.offset]
        if len(shown_before) < place.offset or (text := shown_before.decode(errors="ignore")).encode() != shown_before:
            raise _invalid(f"a place must be between two characters of its turn's text, got byte {place.offset}")
        placed[place.turn] = replace(turn, pictures=(*turn.pictures, len(text)))
    return placed


def _invalid(message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{message}; state turn and byte of every picture, or none", reason="PLACES_INVALID")
