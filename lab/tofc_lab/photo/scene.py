"""Scenes: a picture's maps with named things put into some cells, so that what is where is known.

    cells of a photograph ─┬─ keep a part ─┐
    directions of a class ─┴─ a length ────┴─ ReLU6 ─→ cells that the classifier takes for that class

Names are taught without pictures of them: a cell of a photograph, moved along a class's direction in the classifier,
is read as the class, and a reader that learns this names real photographs of it too. Promises scenes that depend only
on the maps and the random generator. Leaves questions to `questions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from tofc_lab.photo import names, teacher
from tofc_lab.photo.colours import COLOURS
from tofc_lab.photo.features import Known
from tofc_lab.photo.pictures import GRID, place


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A named thing that was put into a picture: its class and cells."""

    number: int
    cells: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class PhotoScene:
    """A picture with what is known of it; `head` [36, 1280] has the things, `sure` [windows, 1000] is the teacher's."""

    head: NDArray[np.float32]
    colours: NDArray[np.uint8]  # [36, colours]
    known: Known
    things: tuple[Thing, ...]
    sure: NDArray[np.float32]

    @cached_property
    def answer(self) -> tuple[str, int]:
        """What the teacher says of the picture, and the window that says it."""
        return teacher.answer_about(self.sure)


@cache
def directions() -> NDArray[np.float32]:
    """Return the classifier's directions [1000, 1280], of length 1."""
    weight = teacher.classifier().weight
    found: NDArray[np.float32] = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    return found


@cache
def _choices() -> tuple[tuple[int, ...], ...]:
    known = names.load()
    by_word = [tuple(np.flatnonzero(known.members[known.index[w]]).tolist()) for w in known.everyday]
    return tuple(by_word)


def draw_class(rng: np.random.Generator) -> int:
    """Return a class: two thirds of the time any, else one of an everyday group."""
    if rng.random() < 0.67:
        return int(rng.integers(names.CLASSES))
    group = _choices()[int(rng.integers(len(_choices())))]
    return group[int(rng.integers(len(group)))]


def put(rng: np.random.Generator, head: NDArray[np.float32], number: int, cells: tuple[int, ...], sure: float) -> None:
    """Move cells of `head` [36, 1280] along a class's direction, in place, until the classifier is about `sure` of it.

    Cells differ in how clearly they show the class.
    """
    chosen = list(cells)
    before = head[chosen]
    keep = float(rng.uniform(0.1, 0.9))
    around = keep * before + (1 - keep) * before.mean(0)
    clear = rng.uniform(0.4, 1.6, size=(len(chosen), 1)).astype(np.float32)
    low, high = 0.0, 40.0
    weight, bias = teacher.classifier()
    for _ in range(8):
        length = (low + high) / 2
        moved = np.clip(around + length * clear * directions()[number], 0, 6)
        logits = moved.mean(0) @ weight.T + bias
        if 1 / np.exp(logits - logits[number]).sum() < sure:
            low = length
        else:
            high = length
    head[chosen] = moved


def build(
    rng: np.random.Generator,
    head: NDArray[np.float16],
    colours: NDArray[np.uint8],
    known: Known,
) -> PhotoScene:
    """Put zero to five things into a picture: alone and large, several of a class, or different ones."""
    cells = head.astype(np.float32)
    things: list[Thing] = []
    taken = np.zeros((GRID, GRID), bool)
    for x, y in known.sign.places if known.sign else ():
        taken[min(GRID - 1, max(0, int(y * GRID / 336))), min(GRID - 1, max(0, int(x * GRID / 336)))] = True
    kind = rng.random()
    regions: list[tuple[int, ...]] = [patch.cells for patch in known.patches]
    if regions and kind < 0.8:
        numbers = [draw_class(rng) for _ in regions]
    elif kind < 0.55 and known.sign is None:  # one thing, often as large as the picture
        found = place(rng, taken, GRID) if rng.random() < 0.5 else tuple(range(GRID * GRID))
        regions, numbers = [found] if found else [], [draw_class(rng)]
    elif kind < 0.85:
        most = int(rng.integers(1, 4))
        regions = [found for _ in range(int(rng.integers(1, 8))) if (found := place(rng, taken, most))][:5]
        first = draw_class(rng)
        same = rng.random() < 0.5
        numbers = [first if same and rng.random() < 0.85 else draw_class(rng) for _ in regions]
    else:
        regions, numbers = [], []
    for number, region in zip(numbers, regions, strict=False):
        put(rng, cells, number, region, float(rng.uniform(0.3, 0.97)))
        things.append(Thing(number=number, cells=region))
    return PhotoScene(head=cells, colours=colours, known=known, things=tuple(things), sure=teacher.probabilities(cells))


def colour_of(scene: PhotoScene, cells: tuple[int, ...]) -> str | None:
    """Return the colour that most of these cells have; None if no colour clearly leads."""
    shares = scene.colours[list(cells)].astype(np.float32).mean(0) / 255
    best = int(shares.argmax())
    return COLOURS[best] if shares[best] >= 0.55 else None
