"""Questions about a scene, and their answers: what, is there, which colour, where, how many, and what a sign says.

Promises answers that the scene or the teacher knows: a question whose answer is in doubt is not asked, but for "what is
this?", which is then answered "not sure".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tofc_lab.nano.answerer import SLOT
from tofc_lab.nano.packing import QuestionAnswer
from tofc_lab.photo import names, teacher
from tofc_lab.photo.names import article, plural
from tofc_lab.photo.pictures import GRID
from tofc_lab.photo.scene import PhotoScene, Thing, colour_of, draw_class

FAMILIES = ("what", "place", "exist", "colour", "where", "count", "read")
WEIGHTS = {"what": 4.0, "place": 3.0, "exist": 5.0, "colour": 2.0, "where": 1.5, "count": 1.5, "read": 1.5}
MOST = {"what": 2, "read": 2}  # questions of a family about one picture: their answers are all the same
LARGEST = 12  # cells of a thing that is at a place, or counted
NO_SIGN = "there is no sign"
PRESENT, ABSENT = 0.5, 0.05  # the teacher's probabilities from which a thing is there, and below which it is not
WORDINGS = {
    "what": (
        "what is this?",
        "what is in the picture?",
        "what do you see?",
        "what does the picture show?",
        "what is shown here?",
        "what object is this?",
        "what can you see in this photo?",
        "what is in the image?",
    ),
    "place": ("what is {at}?", "what can you see {at}?", "what is {at} of the picture?", "which thing is {at}?"),
    "exist": (
        "is there {a}?",
        "is there {a} in the picture?",
        "can you see {a}?",
        "do you see {a}?",
        "does the picture show {a}?",
        "is this {a}?",
        "is there {a} in this photo?",
        "are there any {xs}?",
    ),
    "colour": (
        "what colour is the {x}?",
        "what color is the {x}?",
        "which colour does the {x} have?",
        "what is the color of the {x}?",
    ),
    "where": ("where is the {x}?", "where in the picture is the {x}?", "in which part of the picture is the {x}?"),
    "count": (
        "how many {xs} are there?",
        "how many {xs} can you see?",
        "how many {xs} are in the picture?",
        "count the {xs}.",
    ),
    "read": (
        "what does the sign say?",
        "read the sign.",
        "what is written on the sign?",
        "what is written here?",
        "what does it say?",
        "what text is in the picture?",
        "what word is on the sign?",
    ),
}
PLACES = (
    ("top left", "top", "top right"),
    ("left", "middle", "right"),
    ("bottom left", "bottom", "bottom right"),
)


def _wording(rng: np.random.Generator, family: str, **words: str) -> str:
    """Return one wording, often the first, sometimes with a capital or without its last character."""
    options = WORDINGS[family]
    text = options[0 if rng.random() < 0.3 else int(rng.integers(len(options)))].format(**words)
    if rng.random() < 0.4:
        text = text[0].upper() + text[1:]
    return text[:-1] if rng.random() < 0.1 else text


def _made(family: str, text: str, answer: str, cells: Sequence[int] = ()) -> QuestionAnswer:
    return QuestionAnswer(family=family, text=text, answer=answer, shown=_slots(cells))


def _slots(cells: Sequence[int]) -> frozenset[int]:
    return frozenset(SLOT[GRID] + cell for cell in cells)


def _made_about(family: str, text: str, answer: str, scene: PhotoScene, word: str) -> QuestionAnswer:
    """Return a question about a word, with the cells of the things that it covers: its name should attend to them."""
    covers = _covers(word)
    slots = _slots([cell for thing in scene.things if covers[thing.number] for cell in thing.cells])
    form = next((form for form in (plural(word), word) if re.search(rf"\b{form}\b", text.lower())), None)
    named = ((form, slots),) if slots and form else ()
    return QuestionAnswer(family=family, text=text, answer=answer, named=named, shown=slots)


def _what(rng: np.random.Generator, scene: PhotoScene) -> QuestionAnswer | None:
    """Ask for the only or the largest thing; without one for what the teacher sees, which is often in doubt."""
    if scene.things:
        *others, largest = sorted(scene.things, key=lambda thing: len(thing.cells))
        if len(largest.cells) < 4 or (others and len(others[-1].cells) * 3 > len(largest.cells)):
            return None
        return _made("what", _wording(rng, "what"), _name_of(scene, largest), largest.cells)
    answer, window = scene.answer
    if answer == teacher.NOT_SURE and rng.random() < 0.7:
        return None
    return _made("what", _wording(rng, "what"), answer, teacher.windows()[1][window])


def _name_of(scene: PhotoScene, thing: Thing) -> str:
    return teacher.best_answer(teacher.probabilities_of(scene.head[list(thing.cells)].mean(0)))


def _place_of(thing: Thing) -> str:
    middle = [sum(cell // GRID for cell in thing.cells), sum(cell % GRID for cell in thing.cells)]
    row, column = (min(2, int((total / len(thing.cells) + 0.5) / GRID * 3)) for total in middle)
    return PLACES[row][column]


def _place(rng: np.random.Generator, scene: PhotoScene) -> QuestionAnswer | None:
    small = [thing for thing in scene.things if len(thing.cells) <= LARGEST]
    if not small or len(small) < len(scene.things):
        return None
    thing = small[int(rng.integers(len(small)))]
    place = _place_of(thing)
    if sum(_place_of(other) == place for other in small) > 1:
        return None
    slots = _slots(thing.cells)
    before = {"left": "on", "right": "on", "middle": "in"}.get(place, "at")
    text = _wording(rng, "place", at=f"{before} the {place}")
    return QuestionAnswer(
        family="place", text=text, answer=_name_of(scene, thing), named=((place, slots),), shown=slots
    )


def _word_for(rng: np.random.Generator, number: int, share_of_names: float = 0.5) -> str:
    """Return a word that covers a class: its name, a group or a synonym."""
    known = names.load()
    groups, synonyms = known.groups_of[number], known.synonyms_of[number]
    draw = rng.random()
    if draw < 0.12 and synonyms:
        return synonyms[int(rng.integers(len(synonyms)))]
    if draw > share_of_names + 0.12 and groups:
        return groups[int(rng.integers(len(groups)))]
    return known.names[number]


def _covers(word: str) -> NDArray[np.float32]:
    known = names.load()
    if word in known.index:
        row: NDArray[np.float32] = known.members[known.index[word]]
        return row
    found = np.zeros(names.CLASSES, np.float32)
    found[list(known.synonyms[word])] = 1
    return found


def _is_there(scene: PhotoScene, word: str) -> bool | None:
    """Return whether the picture shows what a word covers; None if the teacher is in doubt."""
    covers = _covers(word)
    if word == "sign" and scene.known.sign is not None:
        return True
    if any(covers[thing.number] for thing in scene.things):
        return True
    sure = scene.sure[: teacher.LARGE] @ covers
    if sure[0] >= PRESENT or sure.max() >= teacher.PART_SURE:
        return True
    return False if sure.max() <= ABSENT else None


def _exist(rng: np.random.Generator, scene: PhotoScene) -> QuestionAnswer | None:
    yes = bool(rng.random() < 0.5)
    if yes:
        word = _shown(rng, scene)
    else:
        seen = (
            scene.things[int(rng.integers(len(scene.things)))].number if scene.things else int(scene.sure[0].argmax())
        )
        if rng.random() < 0.35:  # something alike: another member of one of its groups
            near = names.load().groups_of[seen]
            alike = names.load().groups[near[int(rng.integers(len(near)))]] if near else (seen,)
            word = names.load().names[alike[int(rng.integers(len(alike)))]]
        else:
            word = _word_for(rng, draw_class(rng), 0.35)
    if word is None or _is_there(scene, word) is not yes:
        return None
    text = _wording(rng, "exist", a=article(word), xs=plural(word))
    return _made_about("exist", text, "yes" if yes else "no", scene, word)


def _shown(rng: np.random.Generator, scene: PhotoScene) -> str | None:
    """Return a word for something that the picture shows, or None."""
    if scene.known.sign is not None and rng.random() < 0.15:
        return "sign"
    if scene.things:
        return _word_for(rng, scene.things[int(rng.integers(len(scene.things)))].number)
    window = int(scene.sure[: teacher.LARGE].max(-1).argmax()) if rng.random() < 0.5 else 0
    number = int(scene.sure[window].argmax())
    return _word_for(rng, number) if scene.sure[window, number] > 0.25 else None


def _single(rng: np.random.Generator, scene: PhotoScene) -> tuple[str, tuple[int, ...]] | None:
    """Return a word and the cells of a thing that alone in the picture is covered by the word."""
    if scene.things:
        thing = scene.things[int(rng.integers(len(scene.things)))]
        word, cells = _word_for(rng, thing.number, 0.4), thing.cells
        if sum(_covers(word)[other.number] for other in scene.things) != 1:
            return None
    else:
        answer, window = scene.answer
        if answer == teacher.NOT_SURE:
            return None
        number = int((scene.sure[window] * _covers(answer)).argmax())
        word, cells = _word_for(rng, number, 0.4), teacher.windows()[1][window]
        if window == 0:  # its clearest part
            inner = 1 + int((scene.sure[1:] @ _covers(word)).argmax())
            cells = teacher.windows()[1][inner]
    return (word, cells) if _is_there(scene, word) else None


def _colour(rng: np.random.Generator, scene: PhotoScene) -> QuestionAnswer | None:
    single = _single(rng, scene)
    if single is None or (colour := colour_of(scene, single[1])) is None:
        return None
    return _made_about("colour", _wording(rng, "colour", x=single[0]), colour, scene, single[0])


def _where(rng: np.random.Generator, scene: PhotoScene) -> QuestionAnswer | None:
    if not scene.things or (single := _single(rng, scene)) is None or len(single[1]) > LARGEST:
        return None
    word, cells = single
    place = _place_of(next(thing for thing in scene.things if thing.cells == cells))
    return _made_about("where", _wording(rng, "where", x=word), place, scene, word)


def _count(rng: np.random.Generator, scene: PhotoScene) -> QuestionAnswer | None:
    if not scene.things:
        return None
    if rng.random() < 0.15:
        word = _word_for(rng, draw_class(rng), 0.3)
        if _is_there(scene, word) is not False:
            return None
        return _made("count", _wording(rng, "count", xs=plural(word)), "0")
    word = _word_for(rng, scene.things[int(rng.integers(len(scene.things)))].number, 0.4)
    covers = _covers(word)
    count = sum(int(covers[thing.number]) for thing in scene.things)
    if max(len(thing.cells) for thing in scene.things) > LARGEST or not _is_there(scene, word):
        return None
    return _made_about("count", _wording(rng, "count", xs=plural(word)), str(count), scene, word)


def _read(rng: np.random.Generator, scene: PhotoScene) -> QuestionAnswer | None:
    if scene.known.sign is None:
        return _made("read", _wording(rng, "read"), NO_SIGN) if rng.random() < 0.15 else None
    return _made("read", _wording(rng, "read"), scene.known.sign.text)


DRAW: dict[str, Callable[[np.random.Generator, PhotoScene], QuestionAnswer | None]] = {
    "what": _what,
    "place": _place,
    "exist": _exist,
    "colour": _colour,
    "where": _where,
    "count": _count,
    "read": _read,
}


def ask(rng: np.random.Generator, scene: PhotoScene, count: int) -> list[QuestionAnswer]:
    """Return `count` different questions about a scene, or fewer if it allows no more; families by `WEIGHTS`."""
    families = list(WEIGHTS)
    shares = np.array([WEIGHTS[family] for family in families])
    found: dict[str, QuestionAnswer] = {}
    left = {family: MOST.get(family, count) for family in families}
    for family in rng.choice(families, size=4 * count, p=shares / shares.sum()):
        if left[family] and (made := DRAW[family](rng, scene)) is not None and made.text not in found:
            found[made.text] = made
            left[family] -= 1
        if len(found) == count:
            break
    return list(found.values())
