"""Prompts, verdicts and scores are those of lmms-eval's and VLMEvalKit's own functions, which `oracles.py` recorded."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.lab.bench.made_up import FORMS, SETS, rows, write_tsv
from tofc_lab.bench.benchmark_set import RULES
from tofc_lab.bench.question import Question
from tofc_lab.bench.run import find_set
from tofc_lab.bench.tables import make_table, read_table

FORM_OF = dict(zip(RULES, FORMS, strict=True))
EVERY = [(name, rules) for name in SETS for rules in RULES]


@cache
def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(__file__).with_name("oracles.json").read_text(encoding="utf-8"))
    return found


def questions(name: str, rules: str, folder: Path) -> list[Question]:
    """Return the made-up questions in the form that the rules' program reads."""
    chosen = find_set(name)
    if FORM_OF[rules] == "tsv":
        return chosen.read(read_table(write_tsv(folder / "made-up.tsv", rows(name, "tsv")), chosen.split, None))
    records = rows(name, "parquet")
    return chosen.read(make_table("parquet", "made up", list(records[0]), records))


@pytest.mark.parametrize(("name", "rules"), EVERY)
def test_prompts_are_theirs(name: str, rules: str, tmp_path: Path) -> None:
    found = [list(find_set(name).rules[rules].prompt(one)) for one in questions(name, rules, tmp_path)]
    assert found == recorded()[name][rules]["prompts"]


@pytest.mark.parametrize(("name", "rules"), EVERY)
def test_every_answer_is_judged_as_they_judge_it(name: str, rules: str, tmp_path: Path) -> None:
    theirs = recorded()[name][rules]
    judge = find_set(name).rules[rules].judge
    differ, count = [], 0
    for question, texts, right in zip(
        questions(name, rules, tmp_path), theirs["answers"], theirs["right"], strict=True
    ):
        for text, one in zip(texts, right, strict=True):
            count += 1
            if (verdict := judge(question, text)).right != one:
                differ.append((question.id, text, verdict.extracted, question.answer))
    assert differ == []
    assert count >= 200


@pytest.mark.parametrize(("name", "rules"), EVERY)
def test_scores_are_theirs(name: str, rules: str, tmp_path: Path) -> None:
    theirs, mine = recorded()[name][rules], find_set(name).rules[rules]
    asked = questions(name, rules, tmp_path)
    for at, score in enumerate(theirs["scores"]):
        judged = [
            (question, mine.judge(question, texts[at]), str(number))
            for number, (question, texts) in enumerate(zip(asked, theirs["answers"], strict=True))
        ]
        assert mine.headline(mine.units(judged)) == pytest.approx(score, abs=1e-5)  # lmms-eval rounds MMMU's


@pytest.mark.parametrize("name", SETS)
def test_as_many_tokens_are_allowed_as_lmms_eval_allows(name: str) -> None:
    assert find_set(name).rules["lmms-eval"].max_tokens == recorded()[name]["lmms-eval"]["max_tokens"]


@pytest.mark.parametrize("name", SETS)
def test_the_made_up_folders_are_read_by_lmms_evals_reader(name: str) -> None:
    assert recorded()["columns"][name] == list(rows(name, "parquet")[0])


def test_answers_are_right_and_wrong_in_every_set() -> None:
    """Otherwise the comparison would not tell much."""
    for name, rules in EVERY:
        right = [one for line in recorded()[name][rules]["right"] for one in line]
        assert 0.05 < sum(right) / len(right) < 0.95, (name, rules)
