"""Errors that end a command, and the exit codes they end it with.

Promises one table from exception to exit code, used by every command. Leaves the errors that travel over
the wire to `shared.rpc.errors`, and the wording for a situation to whoever finds it.
"""

from __future__ import annotations

import grpc

from shared.rpc.errors import TofcError
from shared.streams import INTERRUPTED as INTERRUPTED

WRONG_USE = 2  # empty question, not a picture, file missing: nothing was asked
NO_SERVER = 3  # unreachable, not trusted, lost for good, too slow, or broken
LINES_FAILED = 4  # a batch went through, but not with every line
REFUSED = 5  # the server is there and says no: model, codec, limits, token

_SERVER_TROUBLE = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DATA_LOSS,
    }
)


class UseError(ValueError):
    """The person asked for something that cannot be; the message says what is allowed and what to do."""


class EncoderError(RuntimeError):
    """The device could not turn a picture into packets; the message says what to install or check."""


class ReplyError(TofcError):
    """The server broke the protocol; the versions may differ."""

    status = grpc.StatusCode.INTERNAL
    reason = "PROTOCOL"
    sentence = "The server answered out of order; device and server may be of different versions."


def exit_code(error: BaseException) -> int:
    """The exit code of a command that ended with ``error``.

    Wrong use is every ``ValueError`` (pictures, checkpoints, addresses and settings raise those) and every
    ``OSError`` (a file that cannot be read or written), and memory that this device does not have.

    >>> exit_code(UseError("the question is empty"))
    2
    """
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, (ValueError, OSError, EncoderError, MemoryError)):
        return WRONG_USE
    if isinstance(error, TofcError):
        return NO_SERVER if error.status in _SERVER_TROUBLE else REFUSED
    raise TypeError(f"{type(error).__name__} is not an error that a command may end with") from error
