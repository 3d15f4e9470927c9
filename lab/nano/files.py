"""Pictures of nano's world as files with questions, for what takes a folder of pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lab.nano.features import Kind, picture, scene_of
from lab.world.questions import draw_many


def draw(
    assets: Path,
    out: Path,
    counts: dict[Kind, int],
    turns: int,
    seed: int,
    track: Callable[[Iterable[Any], int, str], Iterable[Any]],
) -> None:
    """``out/KIND-NUMBER.png`` on the training split's backgrounds and ``out/questions.jsonl``; no answers are written.

    With another ``seed`` than nano's own they are pictures that neither nano nor its codec has seen.
    """
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for kind, count in counts.items():
        for index in track(range(count), count, kind):
            image, known = picture(assets, kind, "train", seed, index)
            name = f"{kind}-{index:05}.png"
            image.save(out / name)
            rng = np.random.default_rng([seed, 47, index])
            asked = draw_many(rng, scene_of(known["scene"]), turns)
            lines += [json.dumps({"image": name, "question": one.text}) for one in asked]
    (out / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
