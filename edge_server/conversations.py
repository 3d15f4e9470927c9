"""The questions of one session that others may go on from, with all turns up to their answers.

Promises to keep few, and none that no question could follow. Leaves what a question may hold to `answer`.
"""

from collections import OrderedDict
from collections.abc import Sequence

from edge_server.settings import MOST_TURNS
from shared.model.prompt import Turn
from shared.rpc.errors import UnknownReferenceError

# The last ones used, as the protocol says; a question after another one says its history itself. At most 2 MB a
# session: so often 511 turns, with 32 KiB of text (`question_bytes`) that Python may hold in four times as many bytes.
KEPT = 8


class Conversations:
    """By the number of their last question."""

    def __init__(self, question_bytes: int) -> None:
        """`question_bytes`: what a question may hold, all turns together."""
        self._question_bytes = question_bytes
        self._turns: OrderedDict[int, Sequence[Turn]] = OrderedDict()  # least recently used first

    def add(self, number: int, turns: Sequence[Turn], answer: str) -> None:
        """A question was answered. Without text it was not, and nothing can go on from it."""
        turns = [*turns, Turn(role="assistant", text=answer)]
        room = len(turns) < MOST_TURNS and sum(len(turn.text.encode()) for turn in turns) <= self._question_bytes
        if answer and room:
            self._turns[number] = turns
            if len(self._turns) > KEPT:
                self._turns.popitem(last=False)

    def until(self, number: int) -> Sequence[Turn]:
        """All turns up to the answer to this question; none for 0. Raises UnknownReferenceError."""
        if number == 0:
            return ()
        if number not in self._turns:
            raise UnknownReferenceError(
                f"question {number} is not among the last {KEPT} of the session that were answered; send the turns "
                "before this one as history",
                reason="CONVERSATION_GONE",
            )
        self._turns.move_to_end(number)
        return self._turns[number]
