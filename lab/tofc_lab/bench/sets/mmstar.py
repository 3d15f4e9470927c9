"""MMStar (1 500 questions in 6 categories of 3 subcategories): the score is the mean over the subcategories' means.

parquet: index, image, question (with its options), answer, category, l2_category
TSV: index, image, question, A–D, answer, category, l2-category
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tofc_lab.bench import vlmevalkit
from tofc_lab.bench.benchmark_set import BenchmarkSet, Rules
from tofc_lab.bench.choices import DIRECTLY
from tofc_lab.bench.lmms_extraction import find_letter
from tofc_lab.bench.question import Part, Question, Unit, Verdict
from tofc_lab.bench.scores import grouped, mean
from tofc_lab.bench.sets.mme import YES_OR_NO
from tofc_lab.bench.tables import Table

CHOICES = "ABCD"
_DIRECTLY = DIRECTLY.removesuffix(".")  # as lmms-eval
_OPTIONS = "\nOptions: "


def read(table: Table) -> list[Question]:
    """Return the questions of either file form."""
    subcategory = "l2_category" if table.form == "parquet" else "l2-category"
    table.require("index", "question", "answer", "image", "category", subcategory)
    found = []
    for row in table.rows:
        text, options = row.text("question"), row.options()
        if table.form == "parquet":
            whole, (text, options) = text, _apart(text)
        else:
            whole = text + _OPTIONS + ", ".join(f"{letter}: {one}" for letter, one in options.items())
        found.append(
            Question(
                id=row.text("index"),
                text=text,
                whole=whole,
                pictures=row.pictures(),
                options=options,
                answer=row.text("answer"),
                category=row.text("category"),
                subcategory=row.text(subcategory),
            )
        )
    return found


def _apart(whole: str) -> tuple[str, dict[str, str]]:
    """Divide "What is this?\\nOptions: A: a cat, B: a hat" into the question and its options."""
    text, marked, rest = whole.partition(_OPTIONS)
    options: dict[str, str] = {}
    for letter, following in zip(CHOICES, f"{CHOICES[1:]} ", strict=True):
        begin, found, rest = rest.partition(f"{letter}: ")
        if not found or begin:
            break
        option, found, after = rest.partition(f", {following}: ")
        options[letter] = option
        rest = f"{following}: {after}" if found else ""
    return (text, options) if marked and options else (whole, {})


def prompt(question: Question) -> tuple[Part, ...]:
    """Return the picture and the question as the file has it."""
    return (*range(len(question.pictures)), question.whole.strip().replace(YES_OR_NO, "") + _DIRECTLY)


def judge(question: Question, answer: str) -> Verdict:
    """Read the letter of an answer."""
    found = find_letter(answer, CHOICES)
    return Verdict(extracted=found, right=found == question.answer.strip().upper())


def average(units: Sequence[Unit]) -> float:
    """Return the mean over the means of the subcategories."""
    means = [mean(some) for some in grouped(units, lambda unit: unit.subcategory).values()]
    return sum(means) / len(means) if means else 0.0


def headline(units: Sequence[Unit]) -> dict[str, float]:
    """Return the average, from 0 to 1."""
    return {"average": average(units)}


def categories(units: Sequence[Unit]) -> dict[str, Any]:
    """Return the average of each category, and the mean of each subcategory."""
    return {
        "category": {name: average(some) for name, some in grouped(units, lambda unit: unit.category).items()},
        "subcategory": {name: mean(some) for name, some in grouped(units, lambda unit: unit.subcategory).items()},
    }


SET = BenchmarkSet(
    name="MMStar",
    split="val",
    read=read,
    rules={
        "lmms-eval": Rules(prompt=prompt, judge=judge, max_tokens=1024, headline=headline, categories=categories),
        "vlmevalkit": vlmevalkit.MULTIPLE_CHOICE,
    },
)
