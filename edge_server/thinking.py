"""Which of a model's tokens are its thinking and which its answer.

    token ids ─ Speech ─ a TextStream for each stretch between marks ─ parts, in order

Promises that the answer is what follows the last `</think>`, whatever the text before it was taken for when it
came, and that ids alone decide: text that only looks like a mark is text. Leaves which parts travel to `answer`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge_server.text import Decode, TextStream
from shared.model.prompt import THINKING_TOKENS


@dataclass(frozen=True, kw_only=True)
class Marks:
    """The ids of `<think>` and `</think>`."""

    begin: int
    end: int

    @classmethod
    def of(cls, added: Mapping[str, int]) -> "Marks | None":
        """From a tokenizer's added tokens; None when it lacks one of the two: then its model does not think."""
        begin, end = map(added.get, THINKING_TOKENS)
        return None if begin is None or end is None else cls(begin=begin, end=end)

    def left_open(self, prompt: Sequence[int], decode: Decode) -> bool:
        """Whether a prompt ends with `<think>`, or with white space after it: what is generated begins as thinking."""
        for one in reversed(prompt):
            if one == self.begin:
                return True
            if not decode([one]).isspace():
                return False
        return False


@dataclass(frozen=True, kw_only=True)
class Part:
    """Whole characters. `anew`: all text given before was thinking, the answer begins anew."""

    text: str = ""
    thinking: bool = False
    anew: bool = False


class Speech:
    """What one answer's tokens say. Without `marks` all of it is the answer; `inside`: it begins as thinking.

    `unanswered` is true after `finish` when thinking was begun and never ended: then no text is the answer.
    Line breaks between a mark and text belong to the mark and are left out.
    """

    def __init__(self, decode: Decode, marks: Marks | None = None, *, inside: bool = False) -> None:
        self.tokens = 0
        self.thinking_tokens = 0  # marks included
        self.unanswered = False
        self._decode = decode
        self._marks = marks
        self._inside = inside
        self._ended = False  # a `</think>` came
        self._answered = False  # text was given as answer and not withdrawn
        self._text = TextStream(decode)
        self._breaks: str | None = None if marks is None else ""  # those at a stretch's start; None: text has begun
        self._marked = inside  # a mark is before this stretch

    def push(self, token: int) -> list[Part]:
        """What this id completes."""
        self.tokens += 1
        if self._marks is None or token not in (self._marks.begin, self._marks.end):
            self.thinking_tokens += self._inside
            return self._given(self._text.push(token))
        parts = self._given(self._text.flush())
        self._text, self._breaks, self._marked = TextStream(self._decode), "", True
        self._inside = token == self._marks.begin
        if self._inside:
            self.thinking_tokens += 1
            return parts
        self._ended = True
        return parts + self._withdrawn()

    def finish(self) -> list[Part]:
        """What was held back, at the end of the answer."""
        parts = self._given(self._text.flush())
        if self._breaks and not self._marked:  # the whole answer
            parts.append(Part(text=self._breaks))
        self.unanswered = self._inside and not self._ended
        return parts + self._withdrawn() if self.unanswered else parts

    def _given(self, text: str) -> list[Part]:
        if self._breaks is not None:
            self._breaks += text
            text = self._breaks.lstrip("\n")
            if text:
                text, self._breaks = text if self._marked else self._breaks, None
        if not text:
            return []
        self._answered = self._answered or not self._inside
        return [Part(text=text, thinking=self._inside)]

    def _withdrawn(self) -> list[Part]:
        """All that came so far was thinking."""
        self.thinking_tokens = self.tokens
        withdrawn, self._answered = self._answered, False
        return [Part(anew=True)] if withdrawn else []
