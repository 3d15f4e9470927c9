"""The oracle of prompt-guided prefilters: what it keeps of a picture, and how its files are counted."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tofc_lab.nano.packing import QuestionAnswer
from tofc_lab.rate_distortion.outcomes import FAMILIES, Outcomes
from tofc_lab.rate_distortion.prefilter import MARGIN, by_picture, flatten, kept
from tofc_lab.world.scene import Scene, Sign, Thing

FOX, OTHER, CAT = (
    Thing(name=name, x=x, y=50, width=20, height=20) for name, x in (("fox", 30), ("fox", 80), ("cat", 130))
)
SIGN = Sign(number=42, x=50, y=120, width=40, height=20, font="any")
SCENE = Scene(width=200, height=150, things=(FOX, OTHER, CAT), sign=SIGN)


@pytest.mark.parametrize(
    ("family", "text", "left"),
    [
        ("exist", "Is there a cat?", [CAT]),
        ("exist", "do you see an owl in the picture", []),
        ("count", "count the foxes.", [FOX, OTHER]),
        ("what", "what is this?", [FOX, OTHER, CAT]),
        ("side", "what is closest to the left?", [FOX, OTHER, CAT]),
        ("rel", "is the cat left of the clock?", [CAT]),
        ("cmp", "are there more foxes than cats?", [FOX, OTHER, CAT]),
        ("read", "read the sign.", [SIGN]),
    ],
)
def test_what_a_question_is_about_is_kept(family: str, text: str, left: list[Thing | Sign]) -> None:
    assert kept(SCENE, QuestionAnswer(family=family, text=text, answer="")) == [one.box for one in left]


def test_all_else_is_flat() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    found = np.asarray(flatten(Image.fromarray(pixels), [(-5, 10, 20.5, 30)]))
    inside = np.zeros((150, 200), bool)
    inside[10 - MARGIN : 30 + MARGIN, : 21 + MARGIN] = True
    assert (found[inside] == pixels[inside]).all()
    assert (found[~inside] == pixels.mean((0, 1)).round()).all()


def test_a_picture_costs_what_its_questions_do_on_average() -> None:
    asked = np.zeros((3, len(FAMILIES)))
    asked[[0, 1, 2], [0, 1, 1]] = 1
    of_questions = Outcomes(size=np.array([10.0, 30, 7]), tokens=np.full(3, 36.0), right=asked * 0.5, asked=asked)
    found = by_picture(of_questions, [0, 0, 1])
    assert found.size.tolist() == [20, 7]
    assert found.tokens.tolist() == [36, 36]
    assert found.asked.sum(1).tolist() == [2, 1]
    assert found.right.tolist() == (found.asked * 0.5).tolist()
