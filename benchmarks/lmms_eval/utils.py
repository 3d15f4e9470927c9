"""The functions of the task nano72: how lmms-eval reads a line of questions.json, and how it scores an answer.

Promises the comparison of `benchmarks.question_order`. Leaves asking to lmms-eval.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

PICTURES = Path("tests") / "e2e" / "pictures"


def pictures_of(line: dict[str, Any]) -> list[Image.Image]:
    """Return the line's picture."""
    return [Image.open(PICTURES / line["image"]).convert("RGB")]


def question_of(line: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """Return the question as it is asked."""
    return str(line["question"])


def score(line: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return 1 for the right answer, else 0."""
    return {"right": float(results[0].strip() == line["answer"])}
