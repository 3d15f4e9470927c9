"""What the model can name: ImageNet's 1 000 classes in everyday words, their groups (dog, car, food) and synonyms.

    class 207 ─ name "golden retriever" ─┬─ groups: retriever, dog, mammal, animal
                                         └─ synonyms: none

Promises that every concept is a word (or a few) with the classes that it covers. `names.json` was written from
WordNet 3.0 and from torchvision's list of the classes, with everyday words by hand. Leaves questions to `questions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tofc import json_text

CLASSES = 1000
#: groups that answer "what is this?" where no name is sure enough; narrower ones are tried first
TOO_GENERAL = {"container", "machine", "mammal", "seat", "light", "street", "window", "landscape", "water", "fabric"}
IRREGULAR = {
    "fish": "fish",
    "sheep": "sheep",
    "mouse": "mice",
    "wolf": "wolves",
    "knife": "knives",
    "person": "people",
    "aircraft": "aircraft",
    "goose": "geese",
    "glasses": "glasses",
    "sunglasses": "sunglasses",
    "jeans": "jeans",
    "bus": "buses",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Names:
    """All concepts: the everyday name of each class, and the classes of each word."""

    names: tuple[str, ...]  # of the classes
    groups: dict[str, tuple[int, ...]]
    synonyms: dict[str, tuple[int, ...]]
    everyday: tuple[str, ...]  # words whose things are put into pictures more often
    on_signs: tuple[str, ...]  # words that signs often show, in capitals
    words: tuple[str, ...]  # names and groups, each once
    members: NDArray[np.float32]  # [words, 1000]: 1 where the word covers the class
    index: dict[str, int]  # word → its row
    of_class: tuple[int, ...]  # class → row of its name
    groups_of: tuple[tuple[str, ...], ...]  # class → its groups
    synonyms_of: tuple[tuple[str, ...], ...]  # class → its synonyms

    @property
    def answers(self) -> list[str]:
        """The words that a question may be answered with."""
        return [word for word in self.words if word not in TOO_GENERAL]


@cache
def load() -> Names:
    """Read the concepts."""
    stored = json_text.read(Path(__file__).with_name("names.json"))
    names = tuple(stored["names"])
    groups = {word: tuple(classes) for word, classes in stored["groups"].items()}
    synonyms = {word: tuple(classes) for word, classes in stored["synonyms"].items()}
    covered: dict[str, set[int]] = {}
    for number, name in enumerate(names):
        covered.setdefault(name, set()).add(number)
    for word, classes in groups.items():
        covered.setdefault(word, set()).update(classes)
    words = tuple(covered)
    members = np.zeros((len(words), CLASSES), np.float32)
    for row, word in enumerate(words):
        members[row, sorted(covered[word])] = 1
    index = {word: row for row, word in enumerate(words)}
    return Names(
        names=names,
        groups=groups,
        synonyms=synonyms,
        everyday=tuple(stored["everyday"]),
        on_signs=tuple(stored["on_signs"]),
        words=words,
        members=members,
        index=index,
        of_class=tuple(index[name] for name in names),
        groups_of=_by_class(groups),
        synonyms_of=_by_class(synonyms),
    )


def _by_class(words: dict[str, tuple[int, ...]]) -> tuple[tuple[str, ...], ...]:
    found: list[list[str]] = [[] for _ in range(CLASSES)]
    for word, classes in words.items():
        for number in classes:
            found[number].append(word)
    return tuple(map(tuple, found))


def plural(word: str) -> str:
    """Return the plural of a name.

    >>> plural("cherry"), plural("fire truck"), plural("bench"), plural("clothing")
    ('cherries', 'fire trucks', 'benches', 'clothing')
    """
    *before, last = word.split(" ")
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2:-1] not in {"a", "e", "i", "o", "u"}:
        last = last[:-1] + "ies"
    elif last not in {"clothing", "furniture", "food", "jewelry", "swimwear", "fruit", "bread", "water", "seafood"}:
        last += "s"
    return " ".join([*before, last])


def article(word: str) -> str:
    """Return the word with its indefinite article.

    >>> article("ant"), article("dog"), article("sunglasses")
    ('an ant', 'a dog', 'sunglasses')
    """
    if plural(word) == word and word not in {"fish", "sheep", "aircraft"}:
        return word
    return f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"
