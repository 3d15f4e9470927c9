"""The majority of several answers.

Promises that answers which differ in nothing but case, white space and a final full stop are one, and that of equally
frequent ones the earliest sample decides. Leaves text that says the same in other words apart: it counts as different,
so a vote suits short answers.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Vote:
    """An answer as it was first given, and how many samples gave it."""

    text: str
    count: int


def normalise(answer: str) -> str:
    """Return what is compared.

    >>> normalise(" Top  left.") == normalise("top left")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", answer).casefold().split()).removesuffix(".").rstrip()


def count_votes(answers: Sequence[str]) -> list[Vote]:
    """Return the different answers, the most frequent first, of equally frequent ones the earliest.

    >>> count_votes(["no", "Yes.", "yes", "No", "yes"])
    [Vote(text='Yes.', count=3), Vote(text='no', count=2)]
    """
    first: dict[str, str] = {}
    counts: dict[str, int] = {}
    for answer in answers:
        key = normalise(answer)
        first.setdefault(key, answer)
        counts[key] = counts.get(key, 0) + 1
    ordered = sorted(first, key=lambda key: -counts[key])  # stable: in the order of their first samples
    return [Vote(text=first[key], count=counts[key]) for key in ordered]
