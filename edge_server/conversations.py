"""The answered questions of one session that a later question may continue, each with all turns up to its answer.

Promises to keep at most KEPT, and only those that can still be continued within the limits. Leaves those limits to
`answer`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from edge_server.settings import MAX_TURNS
from tofc.errors import UnknownReferenceError
from tofc.model.prompt import Turn

# The most recently answered or continued ones, as the protocol says; to continue another one, a client sends the whole
# history. At most 2 MB a session: 8 times 511 turns, and 32 KiB of text, for which Python may need 4 bytes a character.
KEPT = 8


class Conversations:
    """Maps the number of a question to all turns up to its answer."""

    def __init__(self, question_bytes: int) -> None:
        """`question_bytes`: limit of a question, all turns together."""
        self._question_bytes = question_bytes
        self._turns: OrderedDict[int, Sequence[Turn]] = OrderedDict()  # least recently answered or continued first

    def add(self, number: int, turns: Sequence[Turn], answer: str) -> None:
        """Keep an answered question. One whose answer is empty is not kept: nothing can continue it."""
        turns = [*turns, Turn(role="assistant", text=answer)]
        fits = len(turns) < MAX_TURNS and sum(len(turn.text.encode()) for turn in turns) <= self._question_bytes
        if answer and fits:
            self._turns[number] = turns
            if len(self._turns) > KEPT:
                self._turns.popitem(last=False)

    def until(self, number: int) -> Sequence[Turn]:
        """Return all turns up to the answer to this question; none for 0. Raises UnknownReferenceError."""
        if number == 0:
            return ()
        if number not in self._turns:
            raise UnknownReferenceError(
                f"question {number} cannot be continued: a session keeps the last {KEPT} questions that were answered "
                "or continued, and none that is too long; send the turns before this one as history",
                reason="CONVERSATION_GONE",
            )
        self._turns.move_to_end(number)
        return self._turns[number]
