"""Which questions the synthesis is trained on.

Promises the published filters by name: stage 1 keeps questions whose samples are right sometimes, but in less than 9 of
24; stage 2 those whose synthesis is right sometimes, but not always. `disagreeing` looks at the messages only, not at
the answer, so that what the messages say keeps its meaning: where 14 of 16 agree, they are mostly right.
"""

from __future__ import annotations

from collections.abc import Sequence

from tofc_lab.nano.pacore.pool import Pooled

STAGE_1 = 9 / 24  # mean accuracy of messages, not reached


def stage_1(pool: Sequence[Pooled]) -> list[Pooled]:
    """Return questions whose samples are right sometimes, but rarely."""
    return [one for one in pool if 0 < one.accuracy < STAGE_1]


def stage_2(pool: Sequence[Pooled], accuracies: Sequence[float]) -> list[Pooled]:
    """Return questions whose synthesis, answered several times, is right sometimes but not always."""
    return [one for one, accuracy in zip(pool, accuracies, strict=True) if 0 < accuracy < 1]


def disagreeing(pool: Sequence[Pooled]) -> list[Pooled]:
    """Return questions whose samples are not all equal."""
    return [one for one in pool if len(set(one.samples)) > 1]
