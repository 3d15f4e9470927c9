"""Open answers of MMMU: the texts and numbers that an answer names, as lmms-eval 0.7.3 (and MMMU itself) reads them.

Promises the same verdict (`tests/lab/bench/oracles.json`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Value = str | float

#: behind the last of these a sentence says its result
_MARKS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = frozenset(":,.!?;'")
_SENTENCE_END = re.compile(r"\.\s(?=[A-Z])|\n")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 1,234
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # 1.2e3
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def named_values(answer: str) -> set[Value]:
    """Return all texts, in lower case, and numbers, to two decimals, that an answer may mean.

    >>> sorted(named_values("So the total is 1,250."), key=str)
    [1250.0, 250.0]
    """
    results = _results(answer.strip().strip(".").lower())
    texts = [*results, *(number for text in results for pattern in _NUMBERS for number in pattern.findall(text))]
    return {value for text in texts for value in comparable(text)}


def _results(answer: str) -> list[str]:
    """Return the shortest ending behind a mark of each sentence, or the whole answer if no sentence has one."""
    found = []
    sentences = _SENTENCE_END.split(answer)
    for number, sentence in enumerate(sentences, 1):
        marks = (*_MARKS, "=") if number == len(sentences) else _MARKS  # an equation ends an answer
        # An ending of no characters gives way to any later one, as in lmms-eval.
        shortest = ""
        for mark in marks:
            if mark in sentence:
                ending = sentence.rpartition(mark)[2].strip()
                if not shortest or len(ending) < len(shortest):
                    shortest = ending
        if shortest and shortest not in _TRIVIAL:
            found.append(shortest)
    return found or [answer]


def comparable(text: str) -> list[Value]:
    """Return a number to two decimals, or a text in lower case; a single character is only found beside a space.

    >>> comparable("1,250.004"), comparable("Cat"), comparable("x")
    ([1250.0], ['cat'], [' x', 'x '])
    """
    text = text.strip()
    try:
        float(text.replace(",", ""))
    except ValueError:
        lower = text.lower()
        return [" " + lower, lower + " "] if len(lower) == 1 else [lower]
    return [round(float(text.replace(",", "")), 2)]


def is_right(answer: str, right: Sequence[str]) -> bool:
    """Whether an answer names one of the right texts or numbers."""
    wanted = [value for text in right for value in comparable(text)]
    texts = [value for value in wanted if isinstance(value, str)]
    return any(
        any(text in named for text in texts) if isinstance(named, str) else named in wanted
        for named in named_values(answer)
    )
