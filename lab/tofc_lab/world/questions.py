"""Questions about a scene, in seven families, each in several wordings.

Promises that every question has exactly one right answer: positions that are too close to tell apart are not asked
about. Answers are lower case without a full stop. Leaves pixels to `scene`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tofc_lab.world.objects import NAMES, article, plural
from tofc_lab.world.scene import Scene, Thing

#: The families that scores are reported for. Two more, "where" and "order", are only trained on: a question of `rel`
#: needs two skills, locating an object and comparing two places, and its yes or no teaches neither before both are
#: there. "where" teaches the first and "order" the second, much sooner.
FAMILIES = ("exist", "count", "what", "side", "rel", "cmp", "read")
MARGIN = 10 / 336  # smallest difference of positions that is asked about, as a share of the picture's side


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a scene and its answer."""

    family: str
    text: str
    answer: str


WORDINGS: dict[str, tuple[str, ...]] = {
    "exist": ("is there {a}?", "can you see {a}?", "does the picture show {a}?", "do you see {a} in the picture?"),
    "count": (
        "how many {xs} are there?",
        "how many {xs} can you see?",
        "count the {xs}.",
        "what is the number of {xs}?",
    ),
    "what": ("what is in the picture?", "what is this?", "what do you see?", "what does the picture show?"),
    "side": (
        "what is closest to the {side}?",
        "what is nearest to the {side}?",
        "which object is closest to the {side}?",
        "what is the {side}most object?",
    ),
    "rel": (
        "is the {x} {rel} the {y}?",
        "do you see the {x} {rel} the {y}?",
        "is it true that the {x} is {rel} the {y}?",
    ),
    "cmp": ("are there more {xs} than {ys}?", "do you see more {xs} than {ys}?", "are the {xs} more than the {ys}?"),
    "order": ("is the {x} {rel} the {y}?", "do you see the {x} {rel} the {y}?"),
    "where": ("where is the {x}?", "in which part of the picture is the {x}?"),
    "read": (
        "what number is on the sign?",
        "which number does the sign show?",
        "what does the sign say?",
        "read the sign.",
    ),
}


def _wording(rng: np.random.Generator, family: str, **names: str) -> str:
    """Return one wording, often the first, sometimes with a capital or without its last character (? or .)."""
    choices = WORDINGS[family]
    index = 0 if rng.random() < 0.4 else int(rng.integers(len(choices)))
    text = choices[index].format(**names)
    if rng.random() < 0.4:
        text = text[0].upper() + text[1:]
    return text[:-1] if rng.random() < 0.1 else text


def _present(scene: Scene) -> list[str]:
    return sorted({thing.name for thing in scene.things}, key=NAMES.index)


def _absent(rng: np.random.Generator, scene: Scene) -> str:
    present = _present(scene)
    return str(rng.choice([name for name in NAMES if name not in present]))


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _exist(rng: np.random.Generator, scene: Scene) -> Question | None:
    yes = bool(rng.random() < 0.5 and scene.things)
    name = str(rng.choice(_present(scene))) if yes else _absent(rng, scene)
    return Question(family="exist", text=_wording(rng, "exist", a=article(name)), answer=_yes(yes))


def _count(rng: np.random.Generator, scene: Scene) -> Question | None:
    present = _present(scene)
    if not present or rng.random() < 0.12:
        name = _absent(rng, scene)
    else:  # large counts are rare in pictures, so they are asked more often
        weights = np.array([scene.count(n) for n in present], float)
        name = str(rng.choice(present, p=weights / weights.sum()))
    return Question(family="count", text=_wording(rng, "count", xs=plural(name)), answer=str(scene.count(name)))


def _what(rng: np.random.Generator, scene: Scene) -> Question | None:
    if len(scene.things) != 1:
        return None
    return Question(family="what", text=_wording(rng, "what"), answer=scene.things[0].name)


_SIDES: dict[str, Callable[[Thing], float]] = {
    "left": lambda t: t.x,
    "right": lambda t: -t.x,
    "top": lambda t: t.y,
    "bottom": lambda t: -t.y,
}


def _side(rng: np.random.Generator, scene: Scene) -> Question | None:
    if len(scene.things) < 2:
        return None
    side = str(rng.choice(list(_SIDES)))
    ordered = sorted(scene.things, key=_SIDES[side])
    extent = scene.width if side in {"left", "right"} else scene.height
    rivals = [t for t in ordered[1:] if t.name != ordered[0].name]
    if rivals and _SIDES[side](rivals[0]) - _SIDES[side](ordered[0]) < MARGIN * extent:
        return None
    return Question(family="side", text=_wording(rng, "side", side=side), answer=ordered[0].name)


def _pair(rng: np.random.Generator, scene: Scene) -> tuple[str, str, bool, float] | None:
    """Return two objects that occur once, whether they are compared horizontally, and the gap from first to second."""
    single = [t for t in scene.things if scene.count(t.name) == 1]
    if len(single) < 2:
        return None
    first, second = (single[i] for i in rng.choice(len(single), 2, replace=False))
    across = bool(rng.random() < 0.5)
    gap = (second.x - first.x) / scene.width if across else (second.y - first.y) / scene.height
    return None if abs(gap) < MARGIN else (first.name, second.name, across, gap)


def _rel(rng: np.random.Generator, scene: Scene) -> Question | None:
    if (pair := _pair(rng, scene)) is None:
        return None
    x, y, across, gap = pair
    before = bool(rng.random() < 0.5)
    rel = {(True, True): "left of", (True, False): "right of", (False, True): "above", (False, False): "below"}
    text = _wording(rng, "rel", x=x, y=y, rel=rel[across, before])
    return Question(family="rel", text=text, answer=_yes((gap > 0) == before))


def _order(rng: np.random.Generator, scene: Scene) -> Question | None:
    if (pair := _pair(rng, scene)) is None:
        return None
    x, y, across, gap = pair
    text = _wording(rng, "order", x=x, y=y, rel="left or right of" if across else "above or below")
    return Question(
        family="order",
        text=text,
        answer=("left" if gap > 0 else "right") if across else ("above" if gap > 0 else "below"),
    )


_PLACES = (
    ("top left", "top", "top right"),
    ("left", "middle", "right"),
    ("bottom left", "bottom", "bottom right"),
)


def _where(rng: np.random.Generator, scene: Scene) -> Question | None:
    single = [t for t in scene.things if scene.count(t.name) == 1]
    if not single:
        return None
    thing = single[int(rng.integers(len(single)))]
    across, down = thing.x / scene.width * 3, thing.y / scene.height * 3
    if any(abs(place - edge) < 3 * MARGIN / 2 for place in (across, down) for edge in (1, 2)):
        return None
    answer = _PLACES[min(int(down), 2)][min(int(across), 2)]
    return Question(family="where", text=_wording(rng, "where", x=thing.name), answer=answer)


def _cmp(rng: np.random.Generator, scene: Scene) -> Question | None:
    present = _present(scene)
    if not present:
        return None
    # balanced: yes and no equally often, and "no" both by ties and by fewer
    want = bool(rng.random() < 0.5)
    names = [*present, _absent(rng, scene), _absent(rng, scene)]
    pairs = [(x, y) for x in names for y in names if x != y and (scene.count(x) > scene.count(y)) == want]
    both = [(x, y) for x, y in pairs if scene.count(x) and scene.count(y)]
    if both and rng.random() < 0.6:
        pairs = both
    if not pairs:
        return None
    x, y = pairs[int(rng.integers(len(pairs)))]
    return Question(family="cmp", text=_wording(rng, "cmp", xs=plural(x), ys=plural(y)), answer=_yes(want))


def _read(rng: np.random.Generator, scene: Scene) -> Question | None:
    if scene.sign is None and rng.random() < 0.7:
        return None
    answer = "none" if scene.sign is None else str(scene.sign.number)
    return Question(family="read", text=_wording(rng, "read"), answer=answer)


_DRAW = {
    "exist": _exist,
    "count": _count,
    "what": _what,
    "side": _side,
    "rel": _rel,
    "where": _where,
    "order": _order,
    "cmp": _cmp,
    "read": _read,
}


def draw(rng: np.random.Generator, scene: Scene, family: str) -> Question | None:
    """Return a question of a family, or None if this scene allows none."""
    return _DRAW[family](rng, scene)


def draw_many(
    rng: np.random.Generator, scene: Scene, n: int, weights: dict[str, float] | None = None
) -> list[Question]:
    """Return `n` different questions, or fewer if the scene allows no more; families by weight, by default equal."""
    weights = weights or dict.fromkeys(FAMILIES, 1.0)
    families, p = tuple(weights), np.array(list(weights.values()))
    found: dict[str, Question] = {}
    for _ in range(6 * n):
        question = draw(rng, scene, families[rng.choice(len(families), p=p / p.sum())])
        if question is not None:
            found.setdefault(question.text, question)
        if len(found) == n:
            break
    return list(found.values())
