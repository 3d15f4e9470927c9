"""MME (2 374 questions, yes or no): two questions about each picture; 10 categories of perception, 4 of cognition.

    parquet: question_id, image, question, answer, category
    TSV: index, image, image_path, question, answer, category

A category's score is acc + acc_plus, each up to 100: the share of right answers, and of pictures with both right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tofc.errors import UsageError
from tofc_lab.bench import vlmevalkit
from tofc_lab.bench.benchmark_set import BenchmarkSet, Judged, Rules
from tofc_lab.bench.choices import IN_A_WORD
from tofc_lab.bench.question import Part, Question, Unit, Verdict
from tofc_lab.bench.scores import grouped, mean
from tofc_lab.bench.tables import Table

PERCEPTION = frozenset(
    ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
)
COGNITION = frozenset(("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"))
YES_OR_NO = " Please answer yes or no."
#: VLMEvalKit's punctuation, and its full stops beside no digit
_PUNCTUATION = (
    ";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!",
)  # fmt: skip
_THOUSANDS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"(?<!\d)\.(?!\d)")
_FULL_STOPS = 32  # of an answer: so many VLMEvalKit removes, which passes a flag of `re` as their number


def read(table: Table) -> list[Question]:
    """Return the questions of either file form."""
    pair = "question_id" if table.form == "parquet" else "image_path"
    table.require(pair, "image", "question", "answer", "category")
    found = []
    for row in table.rows:
        answer = row.text("answer").strip().replace(".", "")
        if answer.lower() not in ("yes", "no"):
            raise row.wrong("answer", f"must be Yes or No, got {row.text('answer')!r}")
        found.append(
            Question(
                id=row.optional("index") or str(row.number),
                text=row.text("question"),
                pictures=row.pictures(),
                answer=answer.capitalize(),
                category=row.text("category"),
                group=row.text(pair),
            )
        )
    return found


def prompt(question: Question) -> tuple[Part, ...]:
    """Return the picture and the question, which asks for a word."""
    return (*range(len(question.pictures)), question.text.strip().replace(YES_OR_NO, "") + IN_A_WORD)


def judge(question: Question, answer: str) -> Verdict:
    """Read yes or no within the first four characters, or one letter."""
    text = answer.lower().strip().replace(".", "")
    found = {"y": "Yes", "n": "No"}.get(text)
    if found is None and len(text) > 1:
        found = "Yes" if "yes" in text[:4] else "No" if "no" in text[:4] else None
    return Verdict(extracted=found, right=found == question.answer)


def judge_words(question: Question, answer: str) -> Verdict:
    """Read yes or no among the words, where only one of them occurs."""
    lower = text = answer.lower()
    for mark in _PUNCTUATION:
        beside_space = mark + " " in lower or " " + mark in lower or _THOUSANDS.search(lower)
        text = text.replace(mark, "" if beside_space else " ")
    words = _FULL_STOP.sub("", text, count=_FULL_STOPS).split()
    found = [word for word in ("yes", "no") if word in words]
    extracted = found[0].capitalize() if len(found) == 1 else None
    return Verdict(extracted=extracted, right=extracted == question.answer)


def pairs(judged: Sequence[Judged]) -> list[Unit]:
    """Return a unit for each pair. Raises UsageError for a picture that has not two questions."""
    found: dict[tuple[str | None, str | None], list[Judged]] = {}
    for one in judged:
        found.setdefault((one[0].category, one[0].group), []).append(one)
    units = []
    for (category, group), both in found.items():
        if len(both) != 2:
            raise UsageError(
                f"MME asks two questions about a picture, the file has {len(both)} about {group} ({category})"
            )
        right = [float(verdict.right) for _, verdict, _ in both]
        units.append(Unit(value=sum(right) / 2, both=float(sum(right) == 2), category=category, picture=both[0][2]))
    return units


def categories(units: Sequence[Unit]) -> dict[str, Any]:
    """Return acc and acc_plus of each category, up to 100, and their sum."""
    found = {}
    for name, some in grouped(units, lambda unit: unit.category).items():
        acc, plus = 100 * mean(some), 100 * sum(unit.both for unit in some) / len(some)
        found[name] = {"acc": acc, "acc_plus": plus, "score": acc + plus}
    return {"category": found}


def headline(units: Sequence[Unit]) -> dict[str, float]:
    """Return the sums over the categories of perception, at most 2000, and of cognition, at most 800."""
    found = categories(units)["category"]
    perception = sum(one["score"] for name, one in found.items() if name in PERCEPTION)
    cognition = sum(one["score"] for name, one in found.items() if name not in PERCEPTION)
    return {"perception": perception, "cognition": cognition}


def listed_headline(units: Sequence[Unit]) -> dict[str, float]:
    """Return the same sums over the fourteen categories only, as VLMEvalKit does."""
    return headline([unit for unit in units if unit.category in PERCEPTION | COGNITION])


SET = BenchmarkSet(
    name="MME",
    split="test",
    read=read,
    rules={
        "lmms-eval": Rules(
            prompt=prompt, judge=judge, max_tokens=16, units=pairs, headline=headline, categories=categories
        ),
        "vlmevalkit": Rules(
            prompt=vlmevalkit.plain_prompt,
            judge=judge_words,
            max_tokens=vlmevalkit.MAX_TOKENS,
            units=pairs,
            headline=listed_headline,
            categories=categories,
        ),
    },
)
