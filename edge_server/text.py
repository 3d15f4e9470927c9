"""Token ids → text as it comes, in whole characters.

Promises that the pieces joined are the text of all ids, and that none ends inside a character (a
byte-level tokenizer splits them); leaves which ids end an answer to the engine.
"""

from collections.abc import Callable, Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer shows for the first bytes of a character

Decode = Callable[[Sequence[int]], str]


class TextStream:
    """Text of one answer.

    Ids are decoded together with the few before them, because a tokenizer may write an id differently
    at the start of a text (a dropped space), and only what is new is given out.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []  # those not given out yet, after `_context` earlier ones
        self._context = 0

    def push(self, token: int) -> str:
        """The characters that this id completes; empty while one is unfinished."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith(UNFINISHED):
            return ""
        return self._given(text)

    def flush(self) -> str:
        """What was held back, at the end of an answer; an unfinished character stays out."""
        return self._given(self._decode(self._ids)).rstrip(UNFINISHED) if len(self._ids) > self._context else ""

    def _given(self, text: str) -> str:
        before = self._decode(self._ids[: self._context])
        self._ids = self._ids[self._context :]
        self._context = len(self._ids)
        return text[len(before) :]
