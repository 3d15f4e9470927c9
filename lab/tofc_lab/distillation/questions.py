"""The questions about a folder of pictures: from a file, or general ones.

Promises that every picture has at least one question. Leaves answers to the model.
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Sequence
from pathlib import Path

from tofc.errors import UsageError
from tofc.json_text import members
from tofc.text import encoding_problem, read_lines, stripped

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
    """Return the questions of each picture.

    A `.jsonl` file has one {"image", "question"} per line, with images relative to `data`; pictures that it does not
    name get the general questions. Any other file has one question per line, asked about every picture.
    Raises `UsageError` with file and line, `EncodingError` for a file that is not UTF-8.
    """
    if file is None:
        return dict.fromkeys(pictures, GENERAL)
    lines = [(number, line) for number, line in enumerate(read_lines(file), 1) if line.strip()]
    for number, line in lines:
        if found_problem := encoding_problem(line):
            raise UsageError(f"{file}, line {number}: {found_problem}")
    if file.suffix.lower() != ".jsonl":
        if not lines:
            raise UsageError(f"{file} has no questions; write one question per line")
        return dict.fromkeys(pictures, tuple(stripped(line) for _, line in lines))
    found: dict[Path, list[str]] = {}
    # From the file that a line names to the picture that it counts as.
    picture_of = {path.resolve(): path.resolve() for path in pictures}
    for number, line in lines:
        try:
            entry = members(line)
            (image, _), (question, _) = entry["image"], entry["question"]
        except (ValueError, KeyError):
            raise UsageError(f'{file}, line {number}: expected {{"image": "a.jpg", "question": "…"}}') from None
        if not (isinstance(image, str) and isinstance(question, str) and question.strip()):
            raise UsageError(f"{file}, line {number}: image and question must be non-empty texts")
        if found_problem := encoding_problem(question):
            raise UsageError(f"{file}, line {number}: the question is {found_problem}")
        if not os.path.isfile(data / image):  # unlike Path.is_file, also False for a name that is too long
            raise UsageError(f"{file}, line {number}: {image} is not in {data}")
        named = (data / image).resolve()
        if named not in picture_of:  # a copy of a picture, or not a picture
            twins = (path for path in pictures if filecmp.cmp(path, named, shallow=False))
            picture_of[named] = next(twins, named).resolve()
        found.setdefault(picture_of[named], []).append(question)
    return {path: tuple(found.get(path.resolve(), GENERAL)) for path in pictures}
