"""Who comes next: answers among clients, and prompt rows within a step.

Promises that a client's second question waits until the first of every other client has been served, whatever the order
of arrival, and that a long prompt leaves half of a step's rows to others. Leaves memory and cancelled answers to the
engine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def in_turns(items: Iterable[T], client: Callable[[T], str], last: Mapping[str, int] | None = None) -> list[T]:
    """Order items: the first of each client, then the second of each, …; otherwise as they were.

    `last` says when a client was served last; among the first of each, and so on, the others and the longest ago lead.

    >>> in_turns(["a1", "a2", "a3", "b1", "c1", "b2"], lambda item: item[0])
    ['a1', 'b1', 'c1', 'a2', 'b2', 'a3']
    >>> in_turns(["a1", "a2", "b1", "c1"], lambda item: item[0], {"a": 8, "b": 7})
    ['c1', 'b1', 'a1', 'a2']
    """
    last = last or {}
    seen: Counter[str] = Counter()
    ranked = []
    for item in items:
        name = client(item)
        ranked.append(((seen[name], last.get(name, -1)), item))
        seen[name] += 1
    return [item for _, item in sorted(ranked, key=lambda one: one[0])]


def share_rows(remaining: Sequence[int], *, budget: int, block: int) -> list[int]:
    """Return how many rows of each prompt a step reads: at most `budget`, whole blocks unless a prompt ends.

    First come, first served, but no prompt gets more than half while others wait.

    >>> share_rows([700, 48], budget=256, block=16)
    [208, 48]
    >>> share_rows([700, 700, 48], budget=256, block=16)
    [128, 128, 0]
    """
    given = [0] * len(remaining)
    left = budget
    for most in (max(block, budget // 2), budget):
        for index, rows in enumerate(remaining):
            wanted = min(rows, most, given[index] + left)
            if wanted < rows:
                wanted -= wanted % block
            if wanted > given[index]:
                left -= wanted - given[index]
                given[index] = wanted
    return given
