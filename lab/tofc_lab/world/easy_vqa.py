"""easy-VQA (PyPI `easy-vqa`, MIT): 5 000 pictures of one shape each, with their own train and test split.

A data set that others made: nano is trained on its train split only, and its scores are those on the test split.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from PIL import Image

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")


@dataclass(frozen=True, kw_only=True)
class EasyPicture:
    """One picture of easy-VQA with all `(question, answer)` pairs about it."""

    path: str
    questions: tuple[tuple[str, str], ...]

    def image(self) -> Image.Image:
        """Open the picture, RGB, 64 × 64."""
        return Image.open(self.path).convert("RGB")

    @property
    def shape(self) -> str | None:
        """The shape, if it is the answer to a question."""
        return next((a for _, a in self.questions if a in SHAPES), None)

    @property
    def colour(self) -> str | None:
        """The colour, if it is the answer to a question."""
        return next((a for _, a in self.questions if a in COLOURS), None)


@cache
def pictures(split: Literal["train", "test"]) -> tuple[EasyPicture, ...]:
    """Return all pictures of a split, in their own order."""
    import easy_vqa

    paths = easy_vqa.get_train_image_paths() if split == "train" else easy_vqa.get_test_image_paths()
    asked = easy_vqa.get_train_questions() if split == "train" else easy_vqa.get_test_questions()
    grouped: dict[int, list[tuple[str, str]]] = {index: [] for index in paths}
    for question, answer, index in zip(*asked, strict=True):
        grouped[index].append((question, answer))
    return tuple(EasyPicture(path=paths[i], questions=tuple(grouped[i])) for i in paths)
