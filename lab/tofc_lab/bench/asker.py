"""What answers questions: the two halves in this process, or an endpoint; and how a prompt is written for either.

Promises that both get the same turns: those that the endpoint reads from a chat message. Leaves asking to
`local_edge` and `endpoint`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from tofc_lab.bench.question import Part


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer."""

    text: str
    picture_bytes: int | None
    """Of packets that were sent for it; 0 where the pictures had been sent. None: the endpoint does not tell."""
    error: str | None = None
    """Why there is none: the question was refused. It counts as a wrong answer."""


class Asker(Protocol):
    """Answers one question after another, several at a time."""

    async def ask(self, parts: Sequence[Part], pictures: Sequence[Image.Image], max_tokens: int) -> Reply:
        """Answer greedily. Raises Error where asking on makes no sense."""


def message(parts: Sequence[Part], pictures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the user's message; `pictures`: a part of a chat message for each."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else pictures[part] for part in parts]
    return {"role": "user", "content": content}
