"""The errors with which engines refuse or end answers, in one wording.

Promises messages that name no machine. Leaves when to raise them to the engines.
"""

from __future__ import annotations

from tofc.errors import LimitError, UnavailableError


def stopping() -> UnavailableError:
    """Return the error of an engine that is being stopped."""
    return UnavailableError("the server is stopping; try again later", reason="STOPPING")


def failed() -> UnavailableError:
    """Return the error of an engine that was lost and does not come back."""
    return UnavailableError("the server's model has failed; try another server", reason="ENGINE_LOST")


def busy(taken: int) -> LimitError:
    """Return the error of an engine that has as many questions as it takes."""
    return LimitError(
        f"{taken} questions are running or waiting, which is as many as this server takes; ask again in a few seconds",
        reason="ENGINE_BUSY",
    )
