"""Prompts, verdicts and scores are those of lmms-eval's and VLMEvalKit's own functions, which `oracles.py` recorded."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.lab.bench.answers import composed
from tests.lab.bench.made_up import FORMS, SETS, rows, write_tsv
from tofc_lab.bench import vlmevalkit
from tofc_lab.bench.benchmark_set import RULES
from tofc_lab.bench.lmms_extraction import find_letter, mmbench_letter, mmmu_letter
from tofc_lab.bench.open_answers import named_values
from tofc_lab.bench.question import Question, lettered
from tofc_lab.bench.run import find_set
from tofc_lab.bench.sets import ai2d, mme, scienceqa
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


def test_every_function_finds_what_theirs_finds_in_answers_of_random_pieces() -> None:
    differ: dict[str, list[tuple[str, Any, Any]]] = {}
    theirs = recorded()["functions"]
    for number, line in enumerate(theirs):
        text, options = composed(number)
        assert text == line["text"]
        texts = lettered(options)
        four = {letter: one for letter, one in texts.items() if letter in "ABCD"}
        yes_or_no = Question(id="1", text="?", pictures=(), answer="Yes")
        second = Question(id="1", text="?", pictures=(), answer="B", options=texts)
        mine = {
            "letter": find_letter(text.strip(), "ABCD") or "",
            "mmmu": mmmu_letter(text.strip(), texts, Random(f"composed {number}")),
            "open": sorted(map(str, named_values(text.strip()))),
            "mme": (mme.judge(yes_or_no, text).extracted or "other").lower(),
            "mmbench": mmbench_letter(text.strip(), four) or "",
            "ai2d": ai2d.judge(second, text).extracted,
            "scienceqa": float(scienceqa.judge(second, text).right),
            "choice": vlmevalkit.choice(text, texts),
            "words": mme.judge_words(yes_or_no, text).extracted or "Unknown",
        }
        for name, value in mine.items():
            if value != line[name]:
                differ.setdefault(name, []).append((text, value, line[name]))
    assert differ == {}
    assert len(theirs) >= 1000


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
