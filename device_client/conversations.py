"""The conversations of one link that a question may continue, instead of repeating all their turns.

Promises to keep as many as the server does, and to drop the least recently used one first, as the protocol says. The
server decides: it answers CONVERSATION_GONE for one that it has dropped. Leaves the turns to `question`.
"""

from __future__ import annotations

from collections import OrderedDict

KEPT = 8  # conversations

Conversation = tuple[tuple[str, str], ...]  # (role, text) of each turn


class Conversations:
    """Answered conversations, each with the number of its last question."""

    def __init__(self) -> None:
        self._numbers: OrderedDict[Conversation, int] = OrderedDict()  # least recently used first

    def add(self, conversation: Conversation, number: int) -> None:
        """Add a conversation whose last question, `number`, was answered."""
        self._numbers[conversation] = number
        self._numbers.move_to_end(conversation)
        if len(self._numbers) > KEPT:
            self._numbers.popitem(last=False)

    def use(self, conversation: Conversation) -> int:
        """Return the number of a conversation's last question, 0 if the server does not have it. Counts as a use."""
        if conversation in self._numbers:
            self._numbers.move_to_end(conversation)
        return self._numbers.get(conversation, 0)

    def forget(self, conversation: Conversation, number: int) -> None:
        """Drop a conversation that the server has dropped, unless equal turns were asked again under a later number."""
        if self._numbers.get(conversation) == number:
            del self._numbers[conversation]
