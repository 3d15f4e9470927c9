"""What can go wrong with an engine that is not this process: whether asking again, or elsewhere, may help.

Promises nothing about messages to devices, which name no engine: whoever catches these makes them. Leaves errors that
devices see to `tofc.errors`.
"""

from __future__ import annotations


class BrokenOffError(Exception):
    """The engine is gone, or its answer ended before it was complete: another engine can continue."""


class UnreachableError(BrokenOffError):
    """Nobody listens at the engine's address: its process has ended, or has not started."""


class RefusedError(Exception):
    """The engine refused the request: asking again would not help."""


class NonsenseError(RefusedError):
    """What the engine says is not an answer to what it was asked."""
