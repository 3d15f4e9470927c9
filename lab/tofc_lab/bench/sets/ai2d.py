"""AI2D (3 088 questions about diagrams): the answer is the index of an option.

parquet: image, question, options, answer      TSV: index, image, question, A–D, answer
"""

from __future__ import annotations

import re
import string

from tofc_lab.bench import vlmevalkit
from tofc_lab.bench.benchmark_set import BenchmarkSet, Rules
from tofc_lab.bench.choices import DIRECTLY, option_letter, option_list
from tofc_lab.bench.question import Part, Question, Verdict, listed
from tofc_lab.bench.tables import Row, Table

_LETTER = re.compile(r"\s*([A-Z])\.")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def read(table: Table) -> list[Question]:
    """Return the questions of either file form."""
    table.require("question", "answer", "image", *(["options"] if table.form == "parquet" else ["A", "B"]))
    return [_question(row, table.form == "parquet") for row in table.rows]


def _question(row: Row, parquet: bool) -> Question:
    options = option_list(row, "options") if parquet else row.options()
    answer = option_letter(row, options) if parquet else row.text("answer")
    return Question(
        id=row.optional("index") or str(row.number),
        text=row.text("question"),
        pictures=row.pictures(),
        options=options,
        answer=answer,
        hint=row.optional("hint"),
        category=row.optional("category"),
        subcategory=row.optional("l2-category"),
    )


def prompt(question: Question) -> tuple[Part, ...]:
    """Return the picture and the question with its options."""
    return (*range(len(question.pictures)), f"{question.text}\n{listed(question.options)}{DIRECTLY}")


def judge(question: Question, answer: str) -> Verdict:
    """Compare the letter before a full stop at the beginning, or the whole answer, without case and punctuation."""
    letter = _LETTER.match(answer)
    found = letter[1] if letter else answer.strip()
    right = found.lower().translate(_WITHOUT_PUNCTUATION) == question.answer.lower()
    return Verdict(extracted=found, right=right)


SET = BenchmarkSet(
    name="AI2D",
    split="test",
    read=read,
    rules={
        "lmms-eval": Rules(prompt=prompt, judge=judge, max_tokens=16),
        "vlmevalkit": vlmevalkit.MULTIPLE_CHOICE,
    },
)
