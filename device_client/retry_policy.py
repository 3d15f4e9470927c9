"""How often and how fast a device tries again.

Promises bounds on every repetition. Leaves what is tried again to `next_step` and `server_wait`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SPREAD = 1.2  # the most that a pause is longer than planned


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Bounds on repairing a lost link. The pause between two tries doubles from `first_s` up to `max_s`."""

    losses: int = 3
    """Links that one question may lose in a row without progress: one that crashes its server is given up."""
    attempts: int = 1000
    """Attempts to ask one question in all: one whose server fails after each bit of progress is given up too."""
    connects: int = 6
    """Tries to get a lost link back, each time."""
    first_s: float = 0.25
    """The first pause."""
    max_s: float = 4.0
    """The longest pause."""
    busy_max_s: float = 60.0
    """The longest pause before asking a busy server again, even if it names a longer one."""

    def pause_s(self, failures: int) -> float:
        """Return the pause after `failures` failures, randomised so that many devices do not return at once."""
        doubled = 2.0 ** min(failures - 1, 60)  # a server may load for hours: keep within a float
        return min(self.first_s * doubled, self.max_s) * random.uniform(0.8, SPREAD)

    def busy_pause_s(self, after_s: float) -> float:
        """Return the pause before asking a server again that wants to be left alone for `after_s`: never less."""
        return min(after_s, self.busy_max_s) * random.uniform(1.0, SPREAD)
