"""The texts before which an answer ends.

    deltas ─ StopText ─→ deltas; what could be the beginning of such a text waits until it is decided

Promises that no part of a stop text is sent, and that thinking is not searched. Leaves ending the generation to
`answer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edge_server.reasoning import Delta


class StopText:
    """Cuts one answer before the first of its stop texts; `found` is true from then on.

    >>> stop = StopText(["END"])
    >>> [one.text for one in stop.push([Delta(text="an answer E"), Delta(text="ND and more")])], stop.found
    (['an answer '], True)
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.found = False
        self._stop = stop
        self._held = ""  # the end of the answer so far, which could begin a stop text

    def push(self, deltas: Sequence[Delta]) -> list[Delta]:
        """Return what may be sent."""
        if not self._stop:
            return list(deltas)
        passed: list[Delta] = []
        for delta in deltas:
            if self.found:
                break
            if delta.restart:  # what was held back was thinking
                self._held = ""
            passed += [delta] if delta.thinking else self._cut(delta)
        return passed

    def finish(self, deltas: Sequence[Delta]) -> list[Delta]:
        """Return what may be sent at the end of the answer, after the last `deltas`."""
        passed = self.push(deltas)
        held, self._held = self._held, ""
        return [*passed, Delta(text=held)] if held and not self.found else passed

    def _cut(self, delta: Delta) -> list[Delta]:
        text = self._held + delta.text
        if places := [at for stop in self._stop if (at := text.find(stop)) >= 0]:
            self.found, self._held, text = True, "", text[: min(places)]
        else:
            kept = max(_overlap(text, stop) for stop in self._stop)
            text, self._held = text[: len(text) - kept], text[len(text) - kept :]
        return [replace(delta, text=text)] if text or delta.restart else []


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` a stop text begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
