"""The line that a person sees while waiting: a large model may load, or encode a picture, for minutes.

Promises that the line disappears in the end, and that it is not written, and rich not imported, if stderr is not a
terminal. Leaves its text to
`encoder`, and messages about a server that is not ready to `server_wait`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from device_client.encoder import EncoderThread
from device_client.session import Answer
from tofc.terminal import note, one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.spinner import Spinner


@cache
def stderr_console() -> Console:
    """Return the same console for all, so that other lines are printed above the one that changes. Imports rich."""
    from rich.console import Console

    return Console(stderr=True)


def log(text: str) -> None:
    """Print a line that stays."""
    if not sys.stderr.isatty():
        note(f"device-client: {text}")
        return
    stderr_console().print(
        one_line(f"device-client: {text}"), markup=False, emoji=False, highlight=False, soft_wrap=True
    )


@contextmanager
def waiting(
    encoder: EncoderThread, console: Console | None = None, *, answer: Answer | None = None
) -> Iterator[Callable[[], None]]:
    """Show a line that says what is being waited for; yields a function that removes it before the block ends.

    `answer`: whose samples are reported, if it is found from samples.
    """
    if console is None and not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.live import Live

    shown = console or stderr_console()
    if not shown.is_terminal:
        yield lambda: None
        return
    line = _Line(encoder, answer)
    live = Live(
        get_renderable=line.draw,
        console=shown,
        refresh_per_second=4,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with live:
        yield live.stop


class _Line:
    def __init__(self, encoder: EncoderThread, answer: Answer | None) -> None:
        from rich.spinner import Spinner

        self._encoder = encoder
        self._answer = answer
        self._spinner = Spinner("dots")
        self._doing, self._since = "", 0.0

    def draw(self) -> Spinner:
        from rich.text import Text

        samples = "" if self._answer is None else self._answer.samples.doing
        doing = self._encoder.doing or samples or "waiting for the server"
        if doing != self._doing:
            self._doing, self._since = doing, time.monotonic()
        text = Text(f"{doing}, {time.monotonic() - self._since:.0f} s", overflow="ellipsis", no_wrap=True)
        self._spinner.update(text=text)
        return self._spinner
