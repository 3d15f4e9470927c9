"""What a chat needs beyond a question: turns that show pictures anywhere, texts that end an answer, a thinking budget.

Promises that a server which would ignore one of them is not asked, except for the budget, which an older one, or one
whose model does not think, is not sent. Leaves the turns' form on the wire to `question`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from device_client.conversations import Conversation
from tofc.errors import LimitError, MismatchError, UsageError
from tofc.model.prompt import Turn
from tofc.v1 import tofc_pb2 as pb

STOP_BYTES = 256  # of one text


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """When an answer ends, and where its pictures are shown. By default all come before the first user's text."""

    stop: tuple[str, ...] = ()
    """The answer ends before the first of these texts."""
    thinking_budget: int | None = None
    """Most tokens of thinking, apart from `max_tokens`; None: that counts them too."""
    places: tuple[tuple[int, int], ...] = ()
    """For each picture its turn, from 0, and the byte of that turn's UTF-8 text; empty: the default."""

    def __post_init__(self) -> None:
        if not all(1 <= len(text.encode()) <= STOP_BYTES for text in self.stop):
            raise UsageError(f"stop must have texts of 1 to {STOP_BYTES} bytes, got {list(self.stop)!r:.80}")
        if self.thinking_budget is not None and not 0 <= self.thinking_budget < 2**32:
            raise UsageError(f"thinking_budget must be 0 to 2**32 - 1 tokens, got {self.thinking_budget}")

    def check_limits(self, limits: pb.Limits) -> None:
        """Raise MismatchError or LimitError for what the server would ignore or refuse."""
        if (self.stop or self.places) and not limits.stop_texts:
            what = "texts that end an answer (stop)" if self.stop else "pictures after a text or in a later turn"
            raise MismatchError(f"this server does not know {what}; update it", reason="CHAT_NOT_TAKEN")
        if len(self.stop) > limits.stop_texts:
            raise LimitError(
                f"{len(self.stop)} texts that end an answer, this server allows {limits.stop_texts}; leave some out",
                reason="LIMIT_EXCEEDED",
            )

    def budget(self, welcome: pb.Welcome) -> int | None:
        """Return the budget that is sent; None: none."""
        if not welcome.thinking or self.thinking_budget is None:
            return None
        return min(self.thinking_budget, welcome.limits.new_tokens)

    def message(self, welcome: pb.Welcome) -> pb.Ask:
        """Return the part of the message that asks the server."""
        places = [pb.Place(turn=turn, offset=offset) for turn, offset in self.places]
        return pb.Ask(stop=self.stop, thinking_budget=self.budget(welcome), places=places)


def as_conversation(turns: Sequence[Turn]) -> Conversation:
    """Return the roles and texts of turns, which do not depend on where pictures are shown."""
    return tuple((turn.role, turn.text) for turn in turns)


def places_of(turns: Sequence[Turn]) -> tuple[tuple[int, int], ...]:
    """Return the place of each picture of the turns; nothing if all are where they are by default.

    >>> places_of([Turn(role="user", text="größe?", pictures=(0, 6))])
    ((0, 0), (0, 8))
    """
    first = next((number for number, turn in enumerate(turns) if turn.role == "user"), 0)
    found = [
        (number, len(turn.text[:offset].encode())) for number, turn in enumerate(turns) for offset in turn.pictures
    ]
    return tuple(found) if any(place != (first, 0) for place in found) else ()
