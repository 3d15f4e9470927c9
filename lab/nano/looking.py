"""What should look at what in a question: dense labels for a few attention heads while the decoder is trained.

A name looks at what it names; the answer to a question about two things looks at the first name and at the
second. Answers alone teach a decoder this late, or not at all. Not used after training.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lab.nano.answerer import SLOT
from lab.nano.cells import label
from lab.nano.features import Cached
from lab.nano.packing import Asked
from lab.world.objects import NAMES, plural

PAIRED = ("rel", "order")  # the families that compare two named things


def named(cached: Cached, asked: list[Asked]) -> list[Asked]:
    """The questions about a picture of one view, with the slots that show what they name; others as they are."""
    if cached.scene is None or len(cached.sides) > 1:
        return asked
    labels = label(cached.scene)
    seen: dict[str, frozenset[int]] = {}
    for name in {thing.name for thing in cached.scene.things}:
        kind = NAMES.index(name)
        cells = np.flatnonzero((labels["cover"] == kind + 1) | (labels["centre"][:, kind] > 0))
        seen |= dict.fromkeys((name, plural(name)), frozenset((SLOT[cached.sides[0]] + cells).tolist()))
    found = []
    for one in asked:
        text = one.text.lower()
        words = tuple((word, slots) for word, slots in seen.items() if word in text)
        found.append(replace(one, named=words, paired=one.family in PAIRED))
    return found
