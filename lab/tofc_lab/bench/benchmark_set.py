"""What a set consists of: its columns in both file forms, and for each rules a prompt, a limit, a verdict and a score.

    Table ─ read ─→ Question … ─ prompt ─→ parts ─ model ─→ answer
    answer ─ judge ─→ Verdict … ─ units ─→ Unit … ─ headline ─→ score

Leaves the values to the modules in `sets/`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tofc_lab.bench import scores
from tofc_lab.bench.question import Part, Question, Unit, Verdict
from tofc_lab.bench.tables import Table

RULES = ("lmms-eval", "vlmevalkit")
Judged = tuple[Question, Verdict, str]  # the last: the hash of the question's first picture


def each(judged: Sequence[Judged]) -> list[Unit]:
    """Return a unit for each question."""
    return [
        Unit(value=float(verdict.right), category=question.category, subcategory=question.subcategory, picture=picture)
        for question, verdict, picture in judged
    ]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How questions are asked and answers are scored."""

    prompt: Callable[[Question], tuple[Part, ...]]
    judge: Callable[[Question, str], Verdict]
    max_tokens: int
    units: Callable[[Sequence[Judged]], list[Unit]] = each
    headline: Callable[[Sequence[Unit]], dict[str, float]] = scores.accuracy
    categories: Callable[[Sequence[Unit]], dict[str, Any]] = scores.by_category


@dataclass(frozen=True, kw_only=True)
class BenchmarkSet:
    """One of the seven sets."""

    name: str
    split: str
    """The one that it is scored on."""
    read: Callable[[Table], list[Question]]
    """Raises UsageError for a column or value that is missing."""
    rules: dict[str, Rules] = field(default_factory=dict)
    """By the names in `RULES`."""
