"""MMMU (900 questions of validation in 30 subjects): up to seven pictures within the text, some questions open.

parquet: id, question, options (a Python list as text), answer, question_type, image_1 … image_7
TSV: index, question, A–I, answer, image (a list), category, l2-category
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from random import Random

from tofc_lab.bench import vlmevalkit
from tofc_lab.bench.benchmark_set import BenchmarkSet, Rules
from tofc_lab.bench.choices import DIRECTLY, IN_A_WORD
from tofc_lab.bench.lmms_extraction import mmmu_letter
from tofc_lab.bench.open_answers import is_right, named_values
from tofc_lab.bench.question import LETTERS, Part, Question, Source, Verdict, lettered, listed
from tofc_lab.bench.tables import Row, Table

MOST_PICTURES = 7
DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power",
        "Materials", "Mechanical_Engineering",
    ),
}  # fmt: skip
_DOMAIN = {subject: domain for domain, subjects in DOMAINS.items() for subject in subjects}
_PLACE = re.compile(r"<image (\d+)>")
_SUBJECT = re.compile(r"[^_]*_(.+?)_\d+")


def read(table: Table) -> list[Question]:
    """Return the questions of either file form."""
    if table.form == "tsv":
        table.require("question", "answer", "A", "B", "category")
        return [_from_tsv(row) for row in table.rows]
    table.require("id", "question", "options", "answer", "question_type", "image_1")
    return [_from_parquet(row) for row in table.rows]


def _from_parquet(row: Row) -> Question:
    subject = _SUBJECT.fullmatch(row.text("id"))
    if subject is None:
        raise row.wrong("id", f"must be like validation_Accounting_1, got {row.text('id')!r}")
    options: dict[str, str] = {}
    if row.text("question_type") == "multiple-choice":
        try:
            options = lettered([str(one) for one in ast.literal_eval(row.text("options"))])
        except (ValueError, SyntaxError, TypeError):
            raise row.wrong("options", f"must be a list as Python writes it, got {row.text('options')!r:.60}") from None
    value = row.values.get("answer")
    answers = [str(one) for one in value] if isinstance(value, list) else [row.text("answer")]
    return Question(
        id=row.text("id"),
        text=row.text("question"),
        pictures=_pictures(row),
        options=options,
        answer=answers[0],
        alternatives=tuple(answers[1:]),
        category=subject[1],
        subcategory=_DOMAIN.get(subject[1]),
    )


def _from_tsv(row: Row) -> Question:
    return Question(
        id=row.optional("id") or row.text("index"),
        text=row.text("question"),
        pictures=row.pictures(),
        options=row.options(),
        answer=row.text("answer"),
        hint=row.optional("hint"),
        category=row.text("category"),
        subcategory=row.optional("l2-category"),
    )


def _pictures(row: Row) -> tuple[Source, ...]:
    found: list[Source] = []
    for number in range(1, MOST_PICTURES + 1):
        pictures = row.pictures(f"image_{number}")
        if not pictures:
            break
        found += pictures
    return tuple(found)


def prompt(question: Question) -> tuple[Part, ...]:
    """Return the text with its pictures where lmms-eval's chat models show them."""
    shown = f"{question.text}\n{listed(question.options)}\n" if question.options else question.text
    pictures = sorted({int(number) - 1 for number in _PLACE.findall(shown)})
    segments = _PLACE.sub("<image>", f"{shown}{DIRECTLY}" if question.options else f"{shown}\n{IN_A_WORD}")
    texts = [segment.strip() for segment in segments.split("<image>")]
    parts: list[Part] = []
    for text, picture in zip([*texts[:-1], *[""] * len(pictures)], pictures, strict=False):
        parts += [text, picture] if text else [picture]
    return (*parts, texts[-1])


def judge(question: Question, answer: str) -> Verdict:
    """Read a letter, or compare texts and numbers. An answer without a letter gets one at random, always the same."""
    if question.options:
        found = mmmu_letter(answer.strip(), question.options, Random(f"MMMU {question.id}"))
        return Verdict(extracted=found, right=found == question.answer)
    values = ", ".join(sorted(map(str, named_values(answer.strip()))))
    right = is_right(answer.strip(), [question.answer, *question.alternatives])
    return Verdict(extracted=values, right=right)


def prompt_with_places(question: Question) -> tuple[Part, ...]:
    """Return VLMEvalKit's prompt, with each picture at its place; before the text where it names no place."""
    (*pictures, text) = vlmevalkit.prompt(question)
    assert isinstance(text, str)
    if not _PLACE.search(text):
        return (*pictures, text)
    return tuple(_at_places(text))


def _at_places(text: str) -> Iterator[Part]:
    for at, piece in enumerate(_PLACE.split(text)):  # text, number, text, …
        yield int(piece) - 1 if at % 2 else piece


def judge_choice(question: Question, answer: str) -> Verdict:
    """Read a letter; VLMEvalKit makes open questions a choice between the right answer and any other."""
    right = question.answer if len(question.answer) == 1 and question.answer in LETTERS else "A"
    options = question.options or {"A": question.answer, "B": "Other Answers"}
    return vlmevalkit.judge(replace(question, options=options, answer=right), answer)


SET = BenchmarkSet(
    name="MMMU",
    split="validation",
    read=read,
    rules={
        "lmms-eval": Rules(prompt=prompt, judge=judge, max_tokens=128),
        "vlmevalkit": Rules(prompt=prompt_with_places, judge=judge_choice, max_tokens=vlmevalkit.MAX_TOKENS),
    },
)
