"""ScienceQA-IMG (2 017 questions of school science with a picture).

parquet: image, question, choices, answer, hint      TSV: index, image, question, hint, A–E, answer
"""

from __future__ import annotations

from tofc_lab.bench import vlmevalkit
from tofc_lab.bench.benchmark_set import BenchmarkSet, Rules
from tofc_lab.bench.choices import DIRECTLY, option_letter, option_list
from tofc_lab.bench.question import Part, Question, Verdict, listed
from tofc_lab.bench.tables import Row, Table


def read(table: Table) -> list[Question]:
    """Return the questions of either file form."""
    parquet = table.form == "parquet"
    table.require("question", "answer", "image", *(["choices", "hint"] if parquet else ["A", "B"]))
    return [_question(row, parquet) for row in table.rows]


def _question(row: Row, parquet: bool) -> Question:
    options = option_list(row, "choices") if parquet else row.options()
    return Question(
        id=row.optional("index") or str(row.number),
        text=row.text("question"),
        pictures=row.pictures(),
        options=options,
        answer=option_letter(row, options) if parquet else row.text("answer"),
        hint=row.optional("hint") or None,
        category=row.optional("subject" if parquet else "category"),
        subcategory=row.optional("l2-category"),
    )


def prompt(question: Question) -> tuple[Part, ...]:
    """Return the picture, if there is one, and the context, the question and its options."""
    context = f"Context: {question.hint}\n" if question.hint else ""
    return (*range(len(question.pictures)), f"{context}{question.text}\n{listed(question.options)}{DIRECTLY}")


def judge(question: Question, answer: str) -> Verdict:
    """Read an answer that is a letter, or begins with a capital letter and a full stop."""
    text = answer.strip()
    if text.lower() == question.answer.lower():
        return Verdict(extracted=text.upper(), right=True)
    letter = text[0] if text[1:2] == "." and text[0].isupper() else None
    return Verdict(extracted=letter, right=letter is not None and letter.lower() == question.answer.lower())


SET = BenchmarkSet(
    name="ScienceQA",
    split="test",
    read=read,
    rules={
        "lmms-eval": Rules(prompt=prompt, judge=judge, max_tokens=16),
        "vlmevalkit": vlmevalkit.MULTIPLE_CHOICE,
    },
)
