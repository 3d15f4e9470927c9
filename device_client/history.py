"""Which turns of a conversation are dropped when it becomes too long: the older half.

Promises one rule for `device-client chat` and the Python clients, which ask again. Server and model decide what is too
long.
"""

from __future__ import annotations

from collections.abc import Sequence

from tofc.errors import CallError

TOO_LONG = ("QUESTION_TOO_LONG", "PROMPT_TOO_LONG")  # reasons of errors that fewer turns may avoid

Turns = Sequence[tuple[str, str]]  # (question, answer)


def without_older_half(turns: Turns, error: CallError) -> list[tuple[str, str]]:
    """Return the turns to ask again with after `error`; raise it where fewer turns would not help.

    >>> without_older_half([("1", "a"), ("2", "b"), ("3", "c")], CallError(reason="PROMPT_TOO_LONG"))
    [('3', 'c')]
    """
    if error.reason not in TOO_LONG or not turns:
        raise error
    return list(turns[(len(turns) + 1) // 2 :])
