"""Labels for the attention of a few heads while the decoder is trained.

A name must attend to the features of the object that it names; the answer to a question about two objects must attend
to both names. From answers alone a decoder learns this late or never. Not used after training.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tofc_lab.nano.answerer import SLOT
from tofc_lab.nano.cells import label
from tofc_lab.nano.features import CachedPicture
from tofc_lab.nano.packing import QuestionAnswer
from tofc_lab.world.objects import NAMES, plural

PAIRED = ("rel", "order")  # the families that compare two named objects


def supervise(cached: CachedPicture, asked: list[QuestionAnswer]) -> list[QuestionAnswer]:
    """Add to each question the slots that show what it names; questions about pictures of several views get none."""
    if cached.scene is None or len(cached.sides) > 1:
        return asked
    labels = label(cached.scene)
    slots_of: dict[str, frozenset[int]] = {}
    for name in {thing.name for thing in cached.scene.things}:
        kind = NAMES.index(name)
        cells = np.flatnonzero((labels["cover"] == kind + 1) | (labels["centre"][:, kind] > 0))
        slots_of |= dict.fromkeys((name, plural(name)), frozenset((SLOT[cached.sides[0]] + cells).tolist()))
    found = []
    for one in asked:
        text = one.text.lower()
        words = tuple((word, slots) for word, slots in slots_of.items() if word in text)
        found.append(replace(one, named=words, paired=one.family in PAIRED))
    return found
