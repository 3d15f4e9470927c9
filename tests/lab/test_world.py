"""The world: scenes, questions and splits, without fonts or photographs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from tofc_lab.world import assets, questions
from tofc_lab.world.objects import NAMES, plural
from tofc_lab.world.scene import Scene, Sign, Thing


def _scene(*things: Thing, sign: Sign | None = None) -> Scene:
    return Scene(width=336, height=336, things=things, sign=sign)


def _thing(name: str, x: float, y: float) -> Thing:
    return Thing(name=name, x=x, y=y, width=60, height=60)


SCENE = _scene(
    _thing("cat", 60, 60),
    _thing("dog", 200, 60),
    _thing("dog", 200, 200),
    sign=Sign(number=42, x=100, y=250, width=80, height=50, font="any"),
)


def _answers(family: str, draws: int = 300) -> dict[str, set[str]]:
    rng, found = np.random.default_rng(0), dict[str, set[str]]()
    for _ in range(draws):
        question = questions.draw(rng, SCENE, family)
        if question is not None:
            found.setdefault(question.text.lower().rstrip("?."), set()).add(question.answer)
    return found


def test_a_question_has_one_answer() -> None:
    for family in questions.FAMILIES:
        assert all(len(answers) == 1 for answers in _answers(family).values())


def test_answers_are_right() -> None:
    count, side, rel = _answers("count", 2000), _answers("side", 2000), _answers("rel", 2000)
    assert count["how many dogs are there"] == {"2"}
    assert count["count the cats"] == {"1"}
    assert side["what is closest to the left"] == {"cat"}
    assert side["what is closest to the bottom"] == {"dog"}
    assert not rel, "there are two dogs, so no two objects that occur once"
    assert _answers("read")["what number is on the sign"] == {"42"}
    assert not _answers("what"), "there are three objects"


def test_positions_too_close_to_tell_apart_are_not_asked_about() -> None:
    near = _scene(_thing("cat", 100, 60), _thing("dog", 105, 300))
    rng = np.random.default_rng(1)
    drawn = [questions.draw(rng, near, family) for family in ("side", "rel") for _ in range(300)]
    asked = [q.text.lower() for q in drawn if q is not None]
    assert asked
    assert not any(word in text for text in asked for word in ("left", "right"))


def test_yes_and_no_are_balanced() -> None:
    rng = np.random.default_rng(2)
    for family in ("exist", "cmp"):
        drawn = [questions.draw(rng, SCENE, family) for _ in range(2000)]
        share = Counter(q.answer for q in drawn if q is not None)
        assert 0.45 < share["yes"] / share.total() < 0.55


def test_a_photograph_is_in_one_split_whatever_its_size() -> None:
    root = Path("usr/share/wallpapers/Flow/contents")
    files = (root / "images/5120x2880.jpg", root / "images_dark/720x1440.jpg")
    assert len({assets.split_of(assets.family(file)) for file in files}) == 1


def test_every_name_has_its_own_plural() -> None:
    assert len(NAMES) == len({plural(name) for name in NAMES}) == 48
