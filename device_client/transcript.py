"""The text that the server has sent for one question, and how much of it the user has seen.

Promises that text which was shown is not shown again when the question is asked again, and that at the end the answer
is the text that the server marked as the answer. Leaves asking to `session` and showing to `ask`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from device_client.rollouts import Progress
from tofc.v1 import tofc_pb2 as pb


@dataclass(frozen=True, kw_only=True)
class Delta:
    """New text to show: of the answer or, with `thinking`, of the reasoning before it.

    `replaces`: it replaces all text of its kind shown so far: after a lost link the question was asked again, and the
    model gave another answer. `restart`: the text shown as the answer was thinking; the answer starts now.
    `progress`: no text, but how far the samples are that the answer is found from.
    """

    text: str
    thinking: bool = False
    replaces: bool = False
    restart: bool = False
    progress: Progress | None = None


@dataclass(kw_only=True)
class _StreamedText:
    """The answer or the thinking. Adding a delta costs its own length, however long the text is."""

    thinking: bool
    _received: list[str] = field(default_factory=list)  # in this attempt
    _shown: str = ""  # in an earlier attempt; this attempt has repeated it up to `_repeated`
    _repeated: int = 0

    @property
    def text(self) -> str:
        """Return what this attempt has received."""
        return "".join(self._received)

    @property
    def seen(self) -> bool:
        """Return whether the user has seen anything."""
        return bool(self._received or self._shown)

    def replace_by(self, received: list[str]) -> None:
        """Replace the text by `received`, which the user has seen already."""
        self._received, self._shown, self._repeated = received, "", 0

    def start_attempt(self) -> None:
        """Expect the text from its start, because the question is asked again."""
        self._shown, self._repeated, self._received = self.text + self._shown[self._repeated :], 0, []

    def add(self, text: str) -> list[Delta]:
        """Return the part that was not shown; all text, with `replaces`, where it differs from what was shown."""
        self._received.append(text)
        if self._repeated < len(self._shown):
            if self._shown.startswith(text, self._repeated):
                self._repeated += len(text)
                return []
            rest, self._shown, self._repeated = self._shown[self._repeated :], "", 0
            if not text.startswith(rest):
                return [Delta(text=self.text, thinking=self.thinking, replaces=True)]
            text = text[len(rest) :]
        return [Delta(text=text, thinking=self.thinking)]

    def end(self) -> list[Delta]:
        """Return the correction that is due if this attempt's text is shorter than what was shown."""
        shorter = self._repeated < len(self._shown)
        return [Delta(text=self.text, thinking=self.thinking, replaces=True)] if shorter else []


@dataclass(kw_only=True)
class Transcript:
    """All text received for one question, over all attempts to ask it."""

    answer: _StreamedText = field(default_factory=lambda: _StreamedText(thinking=False))
    thinking: _StreamedText = field(default_factory=lambda: _StreamedText(thinking=True))
    _received: list[str] = field(default_factory=list)  # in this attempt: both texts, in order of arrival

    def start_attempt(self) -> None:
        """Expect both texts from their start, because the question is asked again."""
        self._received = []
        self.answer.start_attempt()
        self.thinking.start_attempt()

    def add(self, token: pb.Token) -> list[Delta]:
        """Return what is new to the user."""
        deltas = []
        if token.restart:
            if self.answer.seen:
                deltas.append(Delta(text="", restart=True))
            self.thinking.replace_by(list(self._received))  # the user has seen it, as the answer
            self.answer.replace_by([])
        self._received.append(token.text)
        if token.text:
            deltas += (self.thinking if token.thinking else self.answer).add(token.text)
        return deltas

    def end(self) -> list[Delta]:
        """Return the corrections that are due at the end of the answer."""
        return [*self.thinking.end(), *self.answer.end()]
