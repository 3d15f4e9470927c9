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
    """The answer, or the thinking."""

    thinking: bool
    text: str = ""  # what this attempt has said
    shown: str = ""  # what the person has seen

    def take(self, text: str) -> list[Piece]:
        """The new part of what is repeated; all of it, with ``again``, where it leaves what was shown."""
        self.text += text
        if self.shown.startswith(self.text):
            return []
        again = not self.text.startswith(self.shown)
        new = self.text if again else self.text[len(self.shown) :]
        self.shown = self.text
        return [Piece(text=new, thinking=self.thinking, again=again)]

    def end(self) -> list[Piece]:
        """What is to be corrected: asked again, it came out shorter."""
        return [] if self.shown == self.text else [Piece(text=self.text, thinking=self.thinking, again=True)]


@dataclass(kw_only=True)
class Transcript:
    """All that was said, over all attempts to ask."""

    answer: _Strand = field(default_factory=lambda: _Strand(thinking=False))
    thinking: _Strand = field(default_factory=lambda: _Strand(thinking=True))
    _all: str = ""  # of this attempt, in the order in which it came

    def restart(self) -> None:
        """The question is asked again."""
        self._all = self.answer.text = self.thinking.text = ""

    def take(self, token: pb.Token) -> list[Piece]:
        """What is new to the person."""
        pieces = []
        if token.anew:
            if self.answer.shown:
                pieces.append(Piece(text="", anew=True))
            self.thinking.text = self.thinking.shown = self._all  # seen, though as the answer
            self.answer.text = self.answer.shown = ""
        self._all += token.text
        if token.text:
            pieces += (self.thinking if token.thinking else self.answer).take(token.text)
        return pieces

    def end(self) -> list[Piece]:
        """Corrections at the end of the answer."""
        return [*self.thinking.end(), *self.answer.end()]
