"""Image files behind a prompt-guided prefilter (arXiv 2604.00314), as an oracle: an upper bound of what it can gain.

    picture, question ─ boxes of what the question is about ─ all else in the mean colour ─ image codec ─ tower ─ answer

Everything favours it: the scene, instead of a detector, knows the boxes; the filter itself costs nothing; and bytes are
those of one file for one question, though a second question about the picture needs a second file, which packets and
ordinary files do not. Leaves scoring to `measure`, the files to `images`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from tofc_lab.nano.packing import QuestionAnswer
from tofc_lab.rate_distortion.outcomes import Outcomes
from tofc_lab.world.objects import plural
from tofc_lab.world.scene import Scene

MARGIN = 4  # px kept around a box
Box = tuple[float, float, float, float]


def kept(scene: Scene, asked: QuestionAnswer) -> list[Box]:
    """Return the boxes, left, top, right and bottom in px, of what a question is about.

    That is the sign for `read`; everything but the sign for `what` and `side`, which name nothing; and whatever is
    named for the rest. There is none where what is named is not in the picture.
    """
    if asked.family == "read":
        return [scene.sign.box] if scene.sign is not None else []
    if asked.family in {"what", "side"}:
        return [thing.box for thing in scene.things]
    text = asked.text.lower()
    return [one.box for one in scene.things if re.search(rf"\b({one.name}|{plural(one.name)})\b", text)]


def flatten(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """Return the picture in its mean colour, but for the boxes and a margin around them."""
    pixels = np.asarray(image.convert("RGB"))
    flat = np.empty_like(pixels)
    flat[:] = pixels.mean((0, 1)).round()
    for box in boxes:
        left, top = (max(0, int(np.floor(edge)) - MARGIN) for edge in box[:2])
        right, bottom = (int(np.ceil(edge)) + MARGIN for edge in box[2:])
        flat[top:bottom, left:right] = pixels[top:bottom, left:right]
    return Image.fromarray(flat)


def by_picture(outcomes: Outcomes, owner: Sequence[int]) -> Outcomes:
    """Return outcomes by picture from those by question, whose pictures are `owner`: mean bytes, summed answers."""
    owners = np.asarray(owner)
    member = (owners == np.arange(owners.max() + 1)[:, None]).astype(float)  # [pictures, questions]
    mean = member / member.sum(1, keepdims=True)
    return replace(
        outcomes,
        size=mean @ outcomes.size,
        tokens=mean @ outcomes.tokens,
        right=member @ outcomes.right,
        asked=member @ outcomes.asked,
    )
