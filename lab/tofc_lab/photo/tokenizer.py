"""The photo model's tokenizer: nano's kind, with one token for each name, and one for each character of a sign.

Promises that every concept of `names` is one token, so that a name is learned as one thing however long it is written,
and that words in capitals, as on signs, are read character by character.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import AddedToken

from tofc_lab.nano import tokenizer
from tofc_lab.photo import names, questions, teacher
from tofc_lab.photo.colours import COLOURS
from tofc_lab.photo.names import article, plural
from tofc_lab.photo.questions import NO_SIGN, PLACES, WORDINGS

SIZE = 700  # entries but for the words


def corpus(seed: int = 0) -> Iterator[str]:
    """Yield questions in every wording about every word and synonym, and answers."""
    known, rng = names.load(), np.random.default_rng([seed, 13])
    answers = [*COLOURS, *sum(PLACES, ()), NO_SIGN, teacher.NOT_SURE, "yes", "no"]
    for word in (*known.words, *known.synonyms):
        for family in questions.FAMILIES:
            wording = WORDINGS[family][int(rng.integers(len(WORDINGS[family])))]
            text = wording.format(a=article(word), x=word, xs=plural(word), at="on the left")
            text = text[0].upper() + text[1:] if rng.random() < 0.4 else text
            yield f"user\n{text}\nassistant\n{answers[int(rng.integers(len(answers)))]}"


def added() -> list[AddedToken]:
    """Return the words that are one token each: all names and groups, and plurals that are not the word and an s."""
    found: dict[str, bool] = {}
    for word in names.load().words:
        alone = " " not in word and len(word) < 7  # "cat" is not to be found in "catch"
        found[word] = alone
        if alone or not plural(word).startswith(word):
            found.setdefault(plural(word), True)
    return [AddedToken(word, single_word=alone, normalized=False) for word, alone in found.items()]


def train(out: Path, *, seed: int = 0) -> None:
    """Write the tokenizer into `out`."""
    tokenizer.fit(corpus(seed), out, size=SIZE, words=added())
