"""AI2D (3 088 questions about diagrams): the answer is the index of an option.

parquet: image, question, options, answer      TSV: index, image, question, A–D, answer
"""

from __future__ import annotations

import re
import string

from tofc_lab.bench import vlmevalkit
from tofc_lab.bench.benchmark_set import BenchmarkSet, Rules
from tofc_lab.bench.question import LETTERS, Part, Question, Verdict, lettered, listed
from tofc_lab.bench.tables import Row, Table

DIRECTLY = "\nAnswer with the option's letter from the given choices directly."
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


def option_list(row: Row, name: str) -> dict[str, str]:
    """Return a column's list of options by letter. Raises UsageError if it is none."""
    value = row.values.get(name)
    if not isinstance(value, list) or not 2 <= len(value) <= len(LETTERS):
        raise row.wrong(name, f"must be a list of 2 to {len(LETTERS)} options, got {value!r:.60}")
    return lettered([str(one) for one in value])


def option_letter(row: Row, options: dict[str, str]) -> str:
    """Return the letter of the option whose index the column `answer` has. Raises UsageError."""
    text = row.text("answer")
    if not text.isdecimal() or int(text) >= len(options):
        raise row.wrong("answer", f"must be the index of an option, 0 to {len(options) - 1}, got {text!r}")
    return LETTERS[int(text)]


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
        "vlmevalkit": Rules(prompt=vlmevalkit.prompt, judge=vlmevalkit.judge, max_tokens=vlmevalkit.MAX_TOKENS),
    },
)
