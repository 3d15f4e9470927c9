"""The few pictures that are part of the project, on generated backgrounds: the demo's and the tests'.

Promises that the same seed gives the same pictures and questions. Objects are glyphs of Noto Color Emoji.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tofc import json_text
from tofc_lab.world import questions, scene

COUNT, TURNS = 12, 6


def demo_scene() -> scene.Scene:
    """Return the scene of the demo's picture."""
    things = (
        scene.Thing(name="dog", x=70, y=245, width=92, height=92),
        scene.Thing(name="cat", x=262, y=262, width=84, height=84),
        scene.Thing(name="cat", x=178, y=268, width=70, height=70),
        scene.Thing(name="rocket", x=82, y=88, width=88, height=88),
    )
    board = scene.Sign(number=42, x=238, y=92, width=104, height=66, font="DejaVuSans-Bold.ttf")
    return scene.Scene(width=336, height=336, things=things, sign=board)


def write(assets: Path, model: Path, tests: Path, seed: int = 20) -> None:
    """Write `model/example.jpg` and, in `tests`, `picture-K.jpg` with `questions.json`; the last picture is large."""
    rng = np.random.default_rng(seed)
    picture = scene.draw(rng, assets, demo_scene(), scene.generated_background(rng, 336, 336))
    picture.save(model / "example.jpg", quality=92)
    tests.mkdir(parents=True, exist_ok=True)
    known = []
    for index in range(COUNT):
        size = (672, 448) if index == COUNT - 1 else (336, 336)
        drawn = scene.draw_scene(
            rng, assets, width=size[0], height=size[1], things=(1, 4) if index else (1, 1), sign=0.5, size=(56, 110)
        )
        picture = scene.draw(rng, assets, drawn, scene.generated_background(rng, *size))
        name = f"picture-{index:02d}.jpg"
        picture.save(tests / name, quality=92)
        for question in questions.draw_many(rng, drawn, TURNS):
            known.append(
                {"image": name, "question": question.text, "answer": question.answer, "family": question.family}
            )
    json_text.write(tests / "questions.json", known)
