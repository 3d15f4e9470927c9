"""What a person sees who waits: a large model takes minutes to look at a picture, and to load.

Promises that nothing of the line that moves is left on the screen, and that it is not written where stderr is no
terminal. Leaves what the encoder is doing to `encoder`, and why there is no server yet to `patience`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.progress import ProgressColumn, Task
from rich.spinner import Spinner
from rich.text import Text

from device_client.encoder import EncoderThread
from shared.terminal import one_line

CONSOLE = Console(stderr=True)  # one, so that a line is printed above what moves


def tell(text: str) -> None:
    """A line that stays."""
    CONSOLE.print(one_line(f"device-client: {text}"), markup=False, emoji=False, highlight=False, soft_wrap=True)


@contextmanager
def waiting(encoder: EncoderThread, console: Console | None = None) -> Iterator[Callable[[], None]]:
    """A line that says it, until the end or until what this yields is called."""
    shown = console or CONSOLE
    if not shown.is_terminal:
        yield lambda: None
        return
    line = _Line(encoder)
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


class Doing(ProgressColumn):
    """The same beside a batch's progress."""

    def __init__(self, encoder: EncoderThread) -> None:
        super().__init__()
        self._encoder = encoder

    def render(self, task: Task) -> Text:
        return Text(self._encoder.doing, overflow="ellipsis", no_wrap=True)


class _Line:
    def __init__(self, encoder: EncoderThread) -> None:
        self._encoder = encoder
        self._spinner = Spinner("dots")
        self._doing, self._since = "", 0.0

    def draw(self) -> Spinner:
        doing = self._encoder.doing or "waiting for the server"
        if doing != self._doing:
            self._doing, self._since = doing, time.monotonic()
        text = Text(f"{doing}, {time.monotonic() - self._since:.0f} s", overflow="ellipsis", no_wrap=True)
        self._spinner.update(text=text)
        return self._spinner
