"""Token ids → text as they come, in whole characters.

Promises that the pieces joined are the text of all ids, and that no piece ends inside a character, which a byte-level
tokenizer may split. Leaves which ids end an answer to the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # a tokenizer's text for the first bytes of a character

Decode = Callable[[Sequence[int]], str]


class IncrementalDetokenizer:
    """Turns the token ids of one answer into text, piece by piece.

    Ids are decoded together with the few before them, because a tokenizer may decode an id differently at the start of
    a text (it drops a space there); only the new characters are returned.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []  # `_context` ids whose text was returned, then those whose text was not
        self._context = 0

    def push(self, token: int) -> str:
        """Return the characters that this id completes; empty while one is unfinished."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith(UNFINISHED):
            return ""
        return self._new_text(text)

    def flush(self) -> str:
        """Return the text that was held back, without an unfinished character; call it at the end of an answer."""
        return self._new_text(self._decode(self._ids)).rstrip(UNFINISHED) if len(self._ids) > self._context else ""

    def _new_text(self, text: str) -> str:
        before = self._decode(self._ids[: self._context])
        self._ids = self._ids[self._context :]
        self._context = len(self._ids)
        return text[len(before) :]
