"""Letters in answers, as lmms-eval 0.7.3 finds them.

Promises the letter that lmms-eval finds in the same answer (`tests/lab/bench/oracles.json` has its own). Leaves open
answers to `open_answers`, and MME and ScienceQA to their sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from tofc_lab.bench.choices import only_text

#: before an answer's letter, in lower case
PHRASES = (
    *(
        article + kind + " is"
        for kind in (
            "answer", "correct answer", "best answer", "correct option", "best option", "choice", "correct choice",
        )
        for article in ("the ", "")
    ),
    "i choose", "i select", "i pick", "my answer is", "my choice is",
    "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは",
)  # fmt: skip
#: where a letter stands in an answer, the surest form first
FORMS = ("({})", "{}.", "{}:", "{})", "{} ")
#: of the letters of MMBench, in the order in which they are tried: before and behind the letter
_MMBENCH_FORMS = (
    ("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ")."), (":", ""), (":", ","),
    (":", "."), (":", ")"), (":", ")."),
)  # fmt: skip
_MMBENCH_LETTERS = "ABCDE"
_MMMU_WORDS = 5  # of an answer: only longer ones are searched for the options' texts


def find_letter(answer: str, letters: Sequence[str]) -> str | None:
    """Return the letter that an answer names, the last one in the surest form; None if it has none of them.

    >>> find_letter("B is close, but the answer is (C).", "ABCD")
    'B'
    >>> find_letter("It shows a dog, so the answer is (C), I think", "ABCD")
    'C'
    """
    letters = letters or "ABCDEFGH"
    bare = answer.strip()
    for mark in ",.!?;:'\"":
        bare = bare.strip(mark)
    text = f" {bare} "
    bare = text.strip()
    for at_edge, beside in ((bare.startswith, bare[1:2]), (bare.endswith, bare[-2:-1])):
        if not beside.isalpha() and (found := [letter for letter in letters if at_edge(letter)]):
            return found[0]
    if (found_at := _behind_phrases(text, letters)) or (found_at := _in_forms(text, letters)):
        return found_at
    places = {letter: text.rfind(letter) for letter in letters}
    return _last(places)


def _behind_phrases(text: str, letters: Sequence[str]) -> str | None:
    lower = text.lower()
    ends = [at + len(phrase) for phrase in PHRASES if (at := lower.find(phrase)) >= 0]
    places = {letter: max((text.find(letter, end) for end in ends), default=-1) for letter in letters}
    return _last(places)


def _in_forms(text: str, letters: Sequence[str]) -> str | None:
    for form in FORMS:
        if found := _last({letter: text.rfind(form.format(letter)) for letter in letters}):
            return found
    return None


def _last(places: Mapping[str, int]) -> str | None:
    """Return the letter with the last place; None if none has one (-1)."""
    found = max(places, key=lambda letter: places[letter])
    return found if places[found] >= 0 else None


def mmbench_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of an answer to MMBench: alone, as the only option whose text occurs, or as `find_letter` does.

    `options`: A to D, missing ones left out.
    """
    return (
        _mmbench_word(answer)
        or only_text(answer.lower(), {letter: text.lower() for letter, text in options.items()})
        or find_letter(answer, sorted(options))
    )


def _mmbench_word(answer: str) -> str | None:
    if "Failed to obtain answer via API" in answer:
        return None
    words = answer.split()
    found = [letter for letter in _MMBENCH_LETTERS if letter in words]
    if len(found) == 1 and not ("A" in words and len(words) > 3):  # "A" may be an article
        return found[0]
    for before, behind in _MMBENCH_FORMS:
        found = [letter for letter in _MMBENCH_LETTERS if before + letter + behind in words]
        if len(found) == 1:
            return found[0]
    return None


def mmmu_letter(answer: str, options: Mapping[str, str], random: Random) -> str:
    """Return the letter of an answer to MMMU; one that names none gets a letter at random."""
    for mark in ",.!?;:'":
        answer = answer.strip(mark)
    text = f" {answer} "
    for form, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        found = [letter for letter in options if form.format(letter) in text]
        if found:
            return max(found, key=lambda letter: text.rfind(place.format(letter)))
    lower = text.lower()
    found = [letter for letter, option in options.items() if option.lower() in lower]
    if found and len(text.split()) > _MMMU_WORDS:
        return max(found, key=lambda letter: lower.rfind(options[letter].lower()))
    return random.choice(list(options))
