"""Pictures of nano's world as files, with questions, for commands that take a folder of pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tofc_lab.nano.features import Kind, picture, scene_of
from tofc_lab.progress import NamedProgress
from tofc_lab.world.questions import draw_many


def draw(
    assets: Path,
    out: Path,
    counts: dict[Kind, int],
    turns: int,
    seed: int,
    progress: NamedProgress,
) -> None:
    """Write `out/KIND-NUMBER.png` on backgrounds of the training split, and `out/questions.jsonl`, without answers.

    With another `seed` than nano's, neither nano nor its codec was trained on these pictures.
    """
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for kind, count in counts.items():
        for index in progress(range(count), count, kind):
            image, known = picture(assets, kind, "train", seed, index)
            name = f"{kind}-{index:05}.png"
            image.save(out / name)
            rng = np.random.default_rng([seed, 47, index])
            asked = draw_many(rng, scene_of(known["scene"]), turns)
            lines += [json.dumps({"image": name, "question": one.text}) for one in asked]
    (out / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
