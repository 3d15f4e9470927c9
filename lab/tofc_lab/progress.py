"""Types of the callbacks by which slow work reports its progress, and two that need no terminal.

Leaves progress bars to `tofc_lab.commands.options`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

#: takes one line of text
Log = Callable[[str], None]
#: takes items and their number, and yields the same items
Progress = Callable[[Iterable[Any], int], Iterable[Any]]
#: the same with the name of the work
NamedProgress = Callable[[Iterable[Any], int, str], Iterable[Any]]
#: takes the name of the work, the bytes done and the bytes in all
ByteProgress = Callable[[str, int, int], None]


def print_now(text: str) -> None:
    """Print a line without buffering it."""
    print(text, flush=True)


def no_progress(items: Iterable[Any], total: int) -> Iterable[Any]:
    """Return the items; nothing is shown."""
    return items
