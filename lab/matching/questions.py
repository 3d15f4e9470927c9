"""What is asked about pictures that come without questions, or in a file.

Promises that every picture has at least one question; knows no answers.
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Sequence
from pathlib import Path

from shared.json_text import members
from shared.text import problem, read_lines, stripped

GENERAL = (
    "What is in this picture?",
    "Describe the picture in detail.",
    "What text can be read in the picture?",
    "How many people are in the picture?",
    "What is in the foreground, and what is behind it?",
    "Where was this picture taken?",
    "Which colours stand out?",
    "Is anything in the picture unusual?",
)


def read(file: Path | None, data: Path, pictures: Sequence[Path]) -> dict[Path, tuple[str, ...]]:
    """The questions of each picture: of a ``.jsonl`` file {"image", "question"}, or each line for every picture.

    Images are named relative to ``data``. Pictures that the file does not name get the general questions.
    Raises ``ValueError`` naming file and line, ``EncodingError`` for what is no UTF-8 text at all.
    """
    if file is None:
        return dict.fromkeys(pictures, GENERAL)
    lines = [(number, line) for number, line in enumerate(read_lines(file), 1) if line.strip()]
    for number, line in lines:
        if found_problem := problem(line):
            raise ValueError(f"{file}, line {number}: {found_problem}")
    if file.suffix.lower() != ".jsonl":
        if not lines:
            raise ValueError(f"{file} has no questions; write one a line")
        return dict.fromkeys(pictures, tuple(stripped(line) for _, line in lines))
    found: dict[Path, list[str]] = {}
    chosen = {path.resolve(): path.resolve() for path in pictures}
    for number, line in lines:
        try:
            entry = members(line)
            (image, _), (question, _) = entry["image"], entry["question"]
        except (ValueError, KeyError):
            raise ValueError(f'{file}, line {number}: not {{"image": "a.jpg", "question": "…"}}') from None
        if not (isinstance(image, str) and isinstance(question, str) and question.strip()):
            raise ValueError(f"{file}, line {number}: image and question must be texts that are not empty")
        if found_problem := problem(question):
            raise ValueError(f"{file}, line {number}: the question is {found_problem}")
        if not os.path.isfile(data / image):  # also False for what is too long a name
            raise ValueError(f"{file}, line {number}: {image} is not in {data}")
        named = (data / image).resolve()
        if named not in chosen:  # a second copy of a picture, or none that was taken
            twins = (path for path in pictures if filecmp.cmp(path, named, shallow=False))
            chosen[named] = next(twins, named).resolve()
        found.setdefault(chosen[named], []).append(question)
    return {path: tuple(found.get(path.resolve(), GENERAL)) for path in pictures}
