"""What a name in a question should look at: dense labels for one attention head while the decoder is trained.

Answers alone teach a decoder to find what is named late, or not at all. Not used after training.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lab.nano.answerer import SLOT
from lab.nano.cells import label
from lab.nano.features import Cached
from lab.nano.packing import Asked
from lab.world.objects import NAMES, plural


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
    return [
        replace(one, named=tuple((word, slots) for word, slots in seen.items() if word in one.text.lower()))
        for one in asked
    ]
