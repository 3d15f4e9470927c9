"""What is asked about pictures that come without questions, or in a file.

Promises that every picture has at least one question; knows no answers.
"""

from __future__ import annotations

import filecmp
import json
from collections.abc import Sequence
from pathlib import Path

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
    Raises ``ValueError`` naming file and line.
    """
    if file is None or file.suffix != ".jsonl":
        lines = (
            GENERAL if file is None else tuple(line.strip() for line in file.read_text().splitlines() if line.strip())
        )
        if not lines:
            raise ValueError(f"{file} has no questions; write one a line")
        return dict.fromkeys(pictures, lines)
    found: dict[Path, list[str]] = {}
    chosen = {path.resolve(): path.resolve() for path in pictures}
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            image, question = entry["image"], entry["question"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f'{file}, line {number}: not {{"image": "a.jpg", "question": "…"}}') from None
        if not (isinstance(image, str) and isinstance(question, str) and question.strip()):
            raise ValueError(f"{file}, line {number}: image and question must be texts that are not empty")
        if not (data / image).is_file():
            raise ValueError(f"{file}, line {number}: {image} is not in {data}")
        named = (data / image).resolve()
        if named not in chosen:  # a second copy of a picture, or none that was taken
            twins = (path for path in pictures if filecmp.cmp(path, named, shallow=False))
            chosen[named] = next(twins, named).resolve()
        found.setdefault(chosen[named], []).append(question)
    return {path: tuple(found.get(path.resolve(), GENERAL)) for path in pictures}
