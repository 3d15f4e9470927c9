"""The pictures of questions: opened as lmms-eval opens them, and recognised by a hash of their files.

Promises that a file which holds no picture is named before the first question is asked. Leaves base64 and references to
`tables`.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence

from PIL import Image

from tofc.errors import UsageError
from tofc_lab.bench.question import Question, Source


def open_pictures(question: Question) -> list[Image.Image]:
    """Return the pictures in RGB, as `Image.convert` makes them: orientation and transparency are not applied."""
    return [_opened(question, source).convert("RGB") for source in question.pictures]


def check_pictures(questions: Sequence[Question]) -> list[list[str]]:
    """Return the hashes of each question's pictures. Raises UsageError for what is no picture."""
    return [[_hash(question, source) for source in question.pictures] for question in questions]


def _hash(question: Question, source: Source) -> str:
    data = source()
    _opened(question, lambda: data)
    return hashlib.sha256(data).hexdigest()[:32]


def _opened(question: Question, source: Source) -> Image.Image:
    try:
        return Image.open(io.BytesIO(source()))
    except (OSError, Image.DecompressionBombError) as error:
        raise UsageError(
            f"question {question.id}: its picture cannot be read ({error}); the file may be damaged"
        ) from None
