"""Types of the callbacks by which slow work reports its progress, two that need no terminal, and what trainings report.

Leaves progress bars to `tofc_lab.commands.options`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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


def smooth(running: dict[str, float], values: Mapping[str, float]) -> None:
    """Move the running means of a training by its newest values; the first value of a name is its mean."""
    for name, value in values.items():
        running[name] = 0.97 * running.get(name, value) + 0.03 * value


def step_line(step: int, steps: int, speed: float, running: Mapping[str, float]) -> str:
    """Return the line about a step of a training; `speed` in steps a second."""
    return f"{step}/{steps} {speed:.2f} steps/s " + " ".join(f"{name} {value:.3f}" for name, value in running.items())
