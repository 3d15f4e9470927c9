"""A question of a benchmark, as both file forms give it, and what became of its answer.

Promises one form for all seven sets, so that prompts, extraction and scores do not know files. Leaves reading to
`tables` and the sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Source = Callable[[], bytes]  # reads a picture's file, when it is needed
Part = str | int  # of a prompt: a text, or the number of a picture of the question, from 0


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question. `options` are empty for an open question."""

    id: str
    """Unique in its file."""
    text: str
    pictures: tuple[Source, ...]
    answer: str
    """The right answer: a letter where there are options, else a text; empty where the file does not tell."""
    options: Mapping[str, str] = field(default_factory=dict)
    """By letter."""
    whole: str = ""
    """The text with its options, where the set's own files write them into the question (RealWorldQA, MMStar)."""
    alternatives: tuple[str, ...] = ()
    """Other right answers."""
    hint: str | None = None
    category: str | None = None
    subcategory: str | None = None
    """A finer one (MMStar), or a coarser one (MMBench): the column l2-category."""
    group: str | None = None
    """Of questions that are scored together: a pair of MME, a circle of MMBench."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was read from an answer, and whether it is right."""

    extracted: str | None
    """None: nothing could be read."""
    right: bool


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What counts once in a score: a question, a pair of MME, or a circle of MMBench."""

    value: float
    """1 if it is right, else 0; of a pair the share of right answers."""
    both: float = 0.0
    """Of a pair: 1 if both answers are right."""
    category: str | None = None
    subcategory: str | None = None
    picture: str = ""
    """The first picture's hash; units of one picture are drawn together for intervals."""


def lettered(options: Sequence[str]) -> dict[str, str]:
    """Return options by letter.

    >>> lettered(["cat", "hat"])
    {'A': 'cat', 'B': 'hat'}
    """
    return dict(zip(LETTERS, options, strict=False))


def listed(options: Mapping[str, str]) -> str:
    """Return options one a line, as prompts show them.

    >>> listed({"A": "cat", "B": "hat"})
    'A. cat\\nB. hat'
    """
    return "\n".join(f"{letter}. {text}" for letter, text in options.items())
