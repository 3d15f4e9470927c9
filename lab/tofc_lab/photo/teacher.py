"""ImageNet's classifier as a teacher: how sure it is of each class in the parts of a picture, and what it would say.

    cells [36, 1280] ─ means of windows ─ classifier ─→ probabilities [windows, words]

Promises the published classifier on the trunk's own map. Leaves what is asked about to `questions`.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tofc_lab.checkpoint.pretrained_trunk import Pretrained
from tofc_lab.photo import names
from tofc_lab.photo.pictures import GRID

NAME_SURE, GROUP_SURE = 0.4, 0.6  # probabilities from which a name or a group is given as an answer
PART_SURE = 0.7  # the same for a part of the picture
LARGE = 10  # the first windows: the whole picture, and those of 4 × 4 cells
NOT_SURE = "not sure"


class Classifier(NamedTuple):
    """Directions [1000, 1280] and biases [1000] of ImageNet's classes, float32."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


@cache
def classifier() -> Classifier:
    """Load the pretrained classifier. Raises `CheckpointError` without its package."""
    loaded = Pretrained.load()
    return Classifier(loaded.classifier.numpy(), loaded.classifier_bias.numpy())


@cache
def windows() -> tuple[NDArray[np.float32], tuple[tuple[int, ...], ...]]:
    """Return square windows of 6, 4 and 3 cells a side: weights [windows, 36] that give means, and each one's cells."""
    cells = [
        tuple(r * GRID + c for r in range(row, row + side) for c in range(column, column + side))
        for side in (6, 4, 3)
        for row in range(GRID - side + 1)
        for column in range(GRID - side + 1)
    ]
    weights = np.zeros((len(cells), GRID * GRID), np.float32)
    for row, chosen in zip(weights, cells, strict=True):
        row[list(chosen)] = 1 / len(chosen)
    return weights, tuple(cells)


def probabilities(head: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how sure the classifier is of each class, [..., windows, 1000], from cells [..., 36, 1280]."""
    logits: NDArray[np.float32] = windows()[0] @ (head @ classifier().weight.T) + classifier().bias
    logits -= logits.max(-1, keepdims=True)
    found: NDArray[np.float32] = np.exp(logits)
    found /= found.sum(-1, keepdims=True)
    return found


def probabilities_of(cell: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how sure the classifier is of each class, [1000], from a mean of cells [1280]."""
    logits: NDArray[np.float32] = classifier().weight @ cell + classifier().bias
    found = np.exp(logits - logits.max())
    sure: NDArray[np.float32] = found / found.sum()
    return sure


def best_answer(sure: NDArray[np.float32]) -> str:
    """Return the narrowest word that the probabilities [1000] of a window are sure of, or `NOT_SURE`."""
    known = names.load()
    by_word = known.members @ sure
    of_names = by_word[list(known.of_class)]
    best = int(of_names.argmax())
    if of_names[best] >= NAME_SURE:
        return known.names[best]
    sizes = known.members.sum(1)
    enough = [
        row
        for row, word in enumerate(known.words)
        if by_word[row] >= GROUP_SURE and word in known.groups and word not in names.TOO_GENERAL
    ]
    return known.words[min(enough, key=lambda row: (sizes[row], -by_word[row]))] if enough else NOT_SURE


def answer_about(sure: NDArray[np.float32]) -> tuple[str, int]:
    """Return what the classifier says of a picture, from probabilities [windows, 1000], and the window that says it.

    The whole picture is asked first; if that is not sure, its clearest part.
    """
    if (answer := best_answer(sure[0])) != NOT_SURE:
        return answer, 0
    clearest = int(sure[:LARGE].max(-1).argmax())
    if sure[clearest].max() >= PART_SURE:
        return best_answer(sure[clearest]), clearest
    return NOT_SURE, 0
