"""The exit code for every error that may end a command of `device-client`.

Promises one table from error to exit code, used by every command; an error that is not in it is a defect. Leaves the
errors to `tofc.errors`.
"""

from __future__ import annotations

from tofc.errors import CallError, Error, Status, UsageError
from tofc.streams import INTERRUPTED as INTERRUPTED

WRONG_USE = 2  # an empty question, a file that is missing or not a picture, …: nothing was asked
NO_SERVER = 3  # unreachable, not trusted, lost for good, too slow, or broken
LINES_FAILED = 4  # a batch is complete, but some of its lines failed
REFUSED = 5  # the server refused: model, codec, limits, token, full

_SERVER_TROUBLE = frozenset(
    {
        Status.UNAVAILABLE,
        Status.DEADLINE_EXCEEDED,
        Status.CANCELLED,
        Status.INTERNAL,
        Status.UNKNOWN,
        Status.DATA_LOSS,
    }
)


def exit_code(error: BaseException) -> int:
    """Return the exit code of a command that ended with `error`; raise an error that is a defect.

    Wrong use is every `Error` that is not a `CallError`, every `OSError` (a file that cannot be read or written), and
    memory that this device does not have.

    >>> exit_code(UsageError("the question is empty"))
    2
    """
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, CallError) and not isinstance(error, UsageError):
        return NO_SERVER if error.status in _SERVER_TROUBLE else REFUSED
    if isinstance(error, (Error, OSError, MemoryError)):
        return WRONG_USE
    raise error
