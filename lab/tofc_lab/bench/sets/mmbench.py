"""MMBench in English (4 329 questions of dev): a question counts if it is answered in every order of its options.

    parquet: index, image, question, hint, A–D, answer, category, L2-category      TSV: the same, with l2-category

The orders of one question have the same index modulo a million; the order below a million names the circle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tofc_lab.bench import vlmevalkit
from tofc_lab.bench.benchmark_set import BenchmarkSet, Judged, Rules
from tofc_lab.bench.choices import DIRECTLY
from tofc_lab.bench.lmms_extraction import mmbench_letter
from tofc_lab.bench.question import Part, Question, Unit, Verdict, listed
from tofc_lab.bench.tables import MISSING, Table

CIRCLE = 1_000_000
_SHOWN, _MATCHED = "ABCDE", "ABCD"  # lmms-eval shows five options, and looks for four


def read(table: Table) -> list[Question]:
    """Return the questions of either file form."""
    coarse = "L2-category" if table.form == "parquet" else "l2-category"
    table.require("index", "question", "image", "A", "B", "answer", "category")
    found = []
    for row in table.rows:
        index = row.text("index")
        if not index.isdecimal():
            raise row.wrong("index", f"must be a whole number, got {index!r}")
        found.append(
            Question(
                id=index,
                text=row.text("question"),
                pictures=row.pictures(),
                options=row.options(),
                answer=row.optional("answer") or "",
                hint=row.optional("hint"),
                category=row.text("category"),
                subcategory=row.optional(coarse),
                group=str(int(index) % CIRCLE),
            )
        )
    return found


def prompt(question: Question) -> tuple[Part, ...]:
    """Return the picture, and hint, question and options."""
    shown = {letter: text for letter, text in question.options.items() if letter in _SHOWN and text not in ("", "nan")}
    options = "\n".join(("There are several options:", *([listed(shown)] if shown else [])))
    hint = f"{question.hint} " if question.hint not in (None, "nan") else ""
    return (*range(len(question.pictures)), f"{hint}{question.text} {options}\n{DIRECTLY}")


def judge(question: Question, answer: str) -> Verdict:
    """Read the letter of an answer, without a judge model (lmms-eval's task mmbench_en_dev_static)."""
    options = {letter: text for letter, text in question.options.items() if letter in _MATCHED}
    found = mmbench_letter(answer.strip(), options)
    return Verdict(extracted=found, right=found == question.answer)


def circles(judged: Sequence[Judged]) -> list[Unit]:
    """Return a unit for each circle whose first order is there."""
    groups: dict[str | None, list[Judged]] = {}
    for one in judged:
        groups.setdefault(one[0].group, []).append(one)
    units = []
    for members in groups.values():
        first = next((one for one in members if one[0].id == one[0].group), None)
        if first is not None:
            question, _, picture = first
            units.append(
                Unit(
                    value=float(all(verdict.right for _, verdict, _ in members)),
                    category=question.category,
                    subcategory=question.subcategory,
                    picture=picture,
                )
            )
    return units


def _without_missing(question: Question) -> Question:
    """Return a question as pandas reads it from VLMEvalKit's file."""
    options = {letter: text for letter, text in question.options.items() if text not in MISSING}
    return replace(question, options=options, hint=None if question.hint in MISSING else question.hint)


SET = BenchmarkSet(
    name="MMBench",
    split="dev",
    read=read,
    rules={
        "lmms-eval": Rules(prompt=prompt, judge=judge, max_tokens=1024, units=circles),
        "vlmevalkit": Rules(
            prompt=lambda question: vlmevalkit.prompt(_without_missing(question)),
            judge=lambda question, answer: vlmevalkit.judge(_without_missing(question), answer),
            max_tokens=vlmevalkit.MAX_TOKENS,
            units=circles,
        ),
    },
)
