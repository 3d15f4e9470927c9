"""RealWorldQA (x.ai, 765 questions): the options stand in the question; some answers are a word or a number.

parquet: image, question, answer              TSV: index, image, question, A–D, answer
"""

from __future__ import annotations

import re

from tofc_lab.bench import vlmevalkit
from tofc_lab.bench.benchmark_set import BenchmarkSet, Rules
from tofc_lab.bench.lmms_extraction import find_letter
from tofc_lab.bench.question import Part, Question, Verdict, listed
from tofc_lab.bench.tables import Table

CHOICES = "ABCD"
DIRECTLY = "Please answer directly with only the letter of the correct option and nothing else."
_OPTION = re.compile(r"^([A-Z])\. (.*)$", re.MULTILINE)


def read(table: Table) -> list[Question]:
    """Return the questions of either file form."""
    table.require("question", "answer", "image")
    found = []
    for row in table.rows:
        text, options = row.text("question"), row.options()
        if table.form == "parquet":
            whole, options = text, dict(_OPTION.findall(text))
            text = _OPTION.split(text)[0].strip() if options else text
        else:
            whole = f"{text}\n{listed(options)}\n{DIRECTLY}" if options else text
        found.append(
            Question(
                id=row.optional("index") or str(row.number),
                text=text,
                whole=whole,
                pictures=row.pictures(),
                options=options,
                answer=row.text("answer"),
                category=row.optional("category"),
                subcategory=row.optional("l2-category"),
            )
        )
    return found


def prompt(question: Question) -> tuple[Part, ...]:
    """Return the picture and the question as it is."""
    return (*range(len(question.pictures)), question.whole.strip())


def judge(question: Question, answer: str) -> Verdict:
    """Read a letter where the right answer is one, else compare texts."""
    right = question.answer.strip()
    if right.upper() in CHOICES and len(right) == 1:
        found = find_letter(answer, CHOICES)
        return Verdict(extracted=found, right=found == right.upper())
    text = answer.lower().strip().rstrip(".")
    return Verdict(extracted=text, right=text == right.lower())


SET = BenchmarkSet(
    name="RealWorldQA",
    split="test",
    read=read,
    rules={
        "lmms-eval": Rules(prompt=prompt, judge=judge, max_tokens=16),
        "vlmevalkit": vlmevalkit.MULTIPLE_CHOICE,
    },
)
