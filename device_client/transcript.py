"""What the server has said to one question, and what of it a person has seen.

Promises that a piece shown is not shown again when a question is asked again, and that the answer is what the
server calls so in the end. Leaves asking to `session` and showing to `ask`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.rpc.tofc.v1 import tofc_pb2 as pb


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Text to show, of the answer or, where that was asked for, of the thinking before it.

    ``again``: all of its kind shown before is withdrawn (asked again after a lost link, the server said something
    else). ``anew``: what was shown as the answer was thinking; the answer comes now.
    """

    text: str
    thinking: bool = False
    again: bool = False
    anew: bool = False


@dataclass(kw_only=True)
class _Strand:
    """The answer, or the thinking. Each piece costs its own length, however much was said before."""

    thinking: bool
    _said: list[str] = field(default_factory=list)  # by this attempt
    _shown: str = ""  # by an earlier one, and so far repeated up to `_at`
    _at: int = 0

    @property
    def text(self) -> str:
        """What this attempt has said."""
        return "".join(self._said)

    @property
    def seen(self) -> bool:
        """Whether the person has seen anything."""
        return bool(self._said or self._shown)

    def become(self, text: list[str]) -> None:
        """All of this was said, and seen."""
        self._said, self._shown, self._at = text, "", 0

    def restart(self) -> None:
        """The question is asked again."""
        self._shown, self._at, self._said = self.text + self._shown[self._at :], 0, []

    def take(self, text: str) -> list[Piece]:
        """The new part of what is repeated; all of it, with ``again``, where it leaves what was shown."""
        self._said.append(text)
        if self._at < len(self._shown):
            if self._shown.startswith(text, self._at):
                self._at += len(text)
                return []
            rest, self._shown, self._at = self._shown[self._at :], "", 0
            if not text.startswith(rest):
                return [Piece(text=self.text, thinking=self.thinking, again=True)]
            text = text[len(rest) :]
        return [Piece(text=text, thinking=self.thinking)]

    def end(self) -> list[Piece]:
        """What is to be corrected: asked again, it came out shorter."""
        shorter = self._at < len(self._shown)
        return [Piece(text=self.text, thinking=self.thinking, again=True)] if shorter else []


@dataclass(kw_only=True)
class Transcript:
    """All that was said, over all attempts to ask."""

    answer: _Strand = field(default_factory=lambda: _Strand(thinking=False))
    thinking: _Strand = field(default_factory=lambda: _Strand(thinking=True))
    _all: list[str] = field(default_factory=list)  # of this attempt, in the order in which it came

    def restart(self) -> None:
        """The question is asked again."""
        self._all = []
        self.answer.restart()
        self.thinking.restart()

    def take(self, token: pb.Token) -> list[Piece]:
        """What is new to the person."""
        pieces = []
        if token.anew:
            if self.answer.seen:
                pieces.append(Piece(text="", anew=True))
            self.thinking.become(list(self._all))  # seen, though as the answer
            self.answer.become([])
        self._all.append(token.text)
        if token.text:
            pieces += (self.thinking if token.thinking else self.answer).take(token.text)
        return pieces

    def end(self) -> list[Piece]:
        """Corrections at the end of the answer."""
        return [*self.thinking.end(), *self.answer.end()]
