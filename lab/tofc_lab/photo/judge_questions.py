"""Questions about real photographs that no model here is trained on, and whether an answer to one is right.

Promises that `judge_data/questions.json` says of each photograph where it comes from (package, file in it, SHA-256) and
what its licence is. The answers were written by looking at the photographs. Leaves fetching to `judge_pictures`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from tofc import json_text

DATA = Path(__file__).parent / "judge_data"
SHIPPED = DATA / "pictures"
Registry = Literal["debian", "pypi", "npm"]
Kind = Literal["what", "is there", "colour", "reading", "where", "how many"]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: "exact" is the name that a person would give; "accepted" is a synonym, or a right but wider name (bird for a robin)
Verdict = Literal["exact", "accepted", "wrong", "not sure"]
NOT_SURE = {"not sure", "unsure", "i am not sure", "i m not sure", "i do not know", "i don t know"}


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package of a registry that contains photographs."""

    registry: Registry
    name: str
    version: str


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """A photograph: the package and the file in it (after "!": in a Qt resource file), its hash and its licence.

    With `shipped` a copy of at most 640 px lies in `SHIPPED`, because its licence allows that; `by` and `source` then
    name its author and where it was published.
    """

    name: str
    package: Package
    member: str
    sha256: str
    licence: str
    by: str = ""
    source: str = ""
    shipped: bool = False


@dataclass(frozen=True, kw_only=True)
class JudgeQuestion:
    """A question, and all answers that count as right.

    `share` is about what part of the picture the thing covers that a question "is there …?" with the answer yes means.
    """

    picture: str
    kind: Kind
    ask: str
    answers: list[str]
    synonyms: list[str]
    hypernyms: list[str]
    share: float | None = None

    def verdict(self, text: str) -> Verdict:
        """Return whether an answer is right.

        >>> made = dict(picture="robin", kind="what", ask="what is this?")
        >>> question = JudgeQuestion(**made, answers=["robin"], synonyms=[], hypernyms=["bird"])
        >>> [question.verdict(text) for text in ("A robin.", "this is a bird", "a cat", "Not sure.")]
        ['exact', 'accepted', 'wrong', 'not sure']
        """
        said = plain(text, self.kind)
        if said in NOT_SURE:
            return "not sure"
        if said in {plain(one, self.kind) for one in self.answers}:
            return "exact"
        wider = {plain(one, self.kind) for one in (*self.synonyms, *self.hypernyms)}
        return "accepted" if said in wider else "wrong"


_LEAD_IN = re.compile(
    r"^((this|that|it|there|here|these|those|they) (is|are|s|says)|i (can )?see|the (sign|picture|text) (says|shows)) "
)
_ARTICLES = re.compile(r"^(a|an|the|some|one of the) (?=\S)")
_PLACE_WORDS = re.compile(r"\b(in|on|at|to|of|the|side|corner|part|edge)\b")
_SAME = {"centre": "middle", "center": "middle", "upper": "top", "lower": "bottom", "grey": "gray"}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def plain(text: str, kind: Kind) -> str:
    """Return an answer without what does not matter: capitals, punctuation, a lead-in, an article.

    >>> plain("There are Three.", "how many"), plain("in the lower left corner", "where"), plain("Yes, one", "is there")
    ('3', 'bottom left', 'yes')
    """
    words = " ".join(re.sub(r"[^\w]+|_", " ", text.casefold()).split())
    if kind == "reading":
        return words
    words = _ARTICLES.sub("", _LEAD_IN.sub("", words))
    words = " ".join(_SAME.get(word, word) for word in words.split())
    if kind == "where":
        words = " ".join(_PLACE_WORDS.sub(" ", words).split())
    elif kind == "how many":
        words = str(_NUMBERS.index(words)) if words in _NUMBERS else words
    elif kind == "is there" and words.split()[:1] in (["yes"], ["no"]):
        words = words.split()[0]
    return words


@cache
def load() -> tuple[dict[str, Photograph], tuple[JudgeQuestion, ...]]:
    """Return the photographs by name, and the questions in the order of the photographs."""
    stored: dict[str, Any] = json_text.read(DATA / "questions.json")
    packages = {name: Package(name=name, **given) for name, given in stored["packages"].items()}
    photographs = {
        name: Photograph(name=name, **given | {"package": packages[given["package"]]})
        for name, given in stored["pictures"].items()
    }
    blank: dict[str, list[str]] = {"synonyms": [], "hypernyms": []}
    return photographs, tuple(JudgeQuestion(**blank | one) for one in stored["questions"])
