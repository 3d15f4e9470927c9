"""Which tokens of an answer are the model's thinking and which are the answer itself.

    token ids ─ ReasoningParser ─ a detokenizer for each stretch between <think> and </think> ─ deltas, in order

Promises that the answer is what follows the last `</think>`, even if earlier text was first taken for the answer, and
that token ids alone decide: text that only looks like `<think>` is text. Leaves which deltas are sent to `answer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge_server.detokenizer import Decode, IncrementalDetokenizer
from tofc.model.prompt import THINKING_TOKENS


@dataclass(frozen=True, kw_only=True)
class ThinkTokens:
    """The ids of `<think>` and `</think>`."""

    begin: int
    end: int

    @classmethod
    def of(cls, added: Mapping[str, int]) -> ThinkTokens | None:
        """Find them among a tokenizer's added tokens; None if one of the two is missing: the model does not think."""
        begin, end = map(added.get, THINKING_TOKENS)
        return None if begin is None or end is None else cls(begin=begin, end=end)

    def left_open(self, prompt: Sequence[int], decode: Decode) -> bool:
        """Say whether a prompt ends with `<think>` and white space: what is generated then starts as thinking."""
        for one in reversed(prompt):
            if one == self.begin:
                return True
            if not decode([one]).isspace():
                return False
        return False


@dataclass(frozen=True, kw_only=True)
class Delta:
    """The next whole characters. `restart`: all text so far was thinking after all, and the answer starts here."""

    text: str = ""
    thinking: bool = False
    restart: bool = False


class ReasoningParser:
    """Separates the tokens of one answer. Without `think_tokens` all of them are the answer.

    `inside`: the tokens start as thinking. `unanswered` is true after `finish` if thinking was started and never ended:
    then there is no answer. Line breaks between a think token and text belong to that token and are left out.
    """

    def __init__(self, decode: Decode, think_tokens: ThinkTokens | None = None, *, inside: bool = False) -> None:
        self.tokens = 0
        self.thinking_tokens = 0  # <think> and </think> included
        self.unanswered = False
        self._decode = decode
        self._think_tokens = think_tokens
        self._inside = inside
        self._ended = False  # a `</think>` came
        self._answered = False  # text was returned as the answer and not withdrawn
        self._text = IncrementalDetokenizer(decode)
        # Line breaks held back at the start of a stretch; None: its text has begun.
        self._breaks: str | None = None if think_tokens is None else ""
        self._after_think_token = inside  # this stretch follows a think token

    @property
    def inside(self) -> bool:
        """Return whether the next token is thinking, unless it ends that."""
        return self._inside

    @property
    def answer_tokens(self) -> int:
        """Return how many of the tokens so far are the answer's."""
        return self.tokens - self.thinking_tokens

    def push(self, token: int) -> list[Delta]:
        """Return the text that this id completes."""
        self.tokens += 1
        if self._think_tokens is None or token not in (self._think_tokens.begin, self._think_tokens.end):
            self.thinking_tokens += self._inside
            return self._deltas(self._text.push(token))
        deltas = self._deltas(self._text.flush())
        self._text, self._breaks, self._after_think_token = IncrementalDetokenizer(self._decode), "", True
        self._inside = token == self._think_tokens.begin
        if self._inside:
            self.thinking_tokens += 1
            return deltas
        self._ended = True
        return deltas + self._withdraw()

    def finish(self) -> list[Delta]:
        """Return the text that was held back; call it at the end of the answer."""
        deltas = self._deltas(self._text.flush())
        if self._breaks and not self._after_think_token:  # line breaks are the whole answer
            deltas.append(Delta(text=self._breaks))
        self.unanswered = self._inside and not self._ended
        return deltas + self._withdraw() if self.unanswered else deltas

    def _deltas(self, text: str) -> list[Delta]:
        if self._breaks is not None:
            self._breaks += text
            text = self._breaks.lstrip("\n")
            if text:
                text, self._breaks = text if self._after_think_token else self._breaks, None
        if not text:
            return []
        self._answered = self._answered or not self._inside
        return [Delta(text=text, thinking=self._inside)]

    def _withdraw(self) -> list[Delta]:
        """Count all tokens so far as thinking; restart if some of their text was returned as the answer."""
        self.thinking_tokens = self.tokens
        withdrawn, self._answered = self._answered, False
        return [Delta(restart=True)] if withdrawn else []
