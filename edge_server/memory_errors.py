"""Turns out-of-memory errors of any library into the error that the client receives.

Promises a line in the log for each. Leaves to the caller what is given up: a view, an answer, at worst the session.
"""

from __future__ import annotations

import logging

from tofc.errors import CallError, LimitError
from tofc.out_of_memory import out_of_memory

log = logging.getLogger(__name__)


def memory_limit_error(error: BaseException, what: str, reason: str = "NO_MEMORY") -> LimitError | None:
    """Return the client's error if `error` means that `what` does not fit into memory, and log it; else None."""
    if isinstance(error, LimitError):
        limit = error
    elif out_of_memory(error) and not isinstance(error, CallError):
        limit = LimitError(
            f"the server has not enough memory for {what} at the moment; ask again later, or send less", reason=reason
        )
    else:
        return None
    log.warning("no memory for %s: %s", what, str(error) or type(error).__name__)
    return limit
