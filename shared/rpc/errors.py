"""Errors of the project: one table status ↔ exception ↔ sentence, and their ways over the wire.

Promises that an error raised on the server is caught on the device as the same class with the same
reason and sentence, cut where it is longer than a sentence may be. Leaves to others which error a situation deserves.
"""

import re
from typing import Any, ClassVar

import grpc
import grpc.aio

from shared.rpc.tofc.v1 import tofc_pb2
from shared.sentence import shortened

REASON_METADATA = "tofc-reason"  # trailing metadata of a call that ended with an error
_REASON = re.compile("[A-Z0-9_]{1,64}")
_TOO_LARGE = "CLIENT: Received message larger than max"  # gRPC's own words, under the status of a server without room


class TofcError(Exception):
    """Root of the errors that a call can end with.

    `status` is the canonical gRPC status, `reason` is for machines (UPPER_SNAKE_CASE), `message` is a
    sentence for a person: the value, what is allowed, what to do.
    """

    status: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    reason: str = "UNKNOWN"
    sentence: ClassVar[str] = "The call failed for a reason that this version does not know; look at the server's log."

    def __init__(self, message: str = "", *, reason: str = "") -> None:
        self.message = message or self.sentence
        self.reason = reason or type(self).reason
        super().__init__(self.message)


class InvalidRequestError(TofcError):
    """A request that breaks the protocol's rules or names values that are not allowed."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"
    sentence = "The request is not valid; client and server may differ in version."


class MismatchError(TofcError):
    """The two sides do not fit: another model, codec, or a step out of order."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"
    sentence = "The server is not in a state for this request; client and server may differ in model or version."


class UnknownReferenceError(TofcError):
    """A request names a picture or a question that the session does not know."""

    status = grpc.StatusCode.NOT_FOUND
    reason = "NOT_FOUND"
    sentence = "The request names something that the server does not have; announce it first."


class DuplicateError(TofcError):
    """A number was used twice within a session."""

    status = grpc.StatusCode.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"
    sentence = "The number is in use already; choose another."


class CorruptPacketError(TofcError):
    """A packet is damaged or was not made by this codec."""

    status = grpc.StatusCode.DATA_LOSS
    reason = "CORRUPT_PACKET"
    sentence = "What arrived is damaged; send it again."


class LimitError(TofcError):
    """A limit of the session is exceeded, or the server has no room at the moment."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"
    sentence = "The server has no room for this request; ask again later or send less."


class DeadlineError(TofcError):
    """The time that the client gave the question is over."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"
    sentence = "The answer was not there in time; give it more time or ask for fewer tokens."


class CancelledError(TofcError):
    """The call was given up."""

    status = grpc.StatusCode.CANCELLED
    reason = "CANCELLED"
    sentence = "The call was cancelled."


class TokenError(TofcError):
    """The token is missing or wrong."""

    status = grpc.StatusCode.UNAUTHENTICATED
    reason = "TOKEN_REFUSED"
    sentence = "The token is missing or wrong; give one that is in the server's token file now."


class UnavailableError(TofcError):
    """The server cannot be reached, is not ready or is stopping."""

    status = grpc.StatusCode.UNAVAILABLE
    reason = "UNAVAILABLE"
    sentence = "The server cannot be reached; check the address and that it is running, then try again."


class UnsupportedError(TofcError):
    """The server does not know this call."""

    status = grpc.StatusCode.UNIMPLEMENTED
    reason = "UNSUPPORTED"
    sentence = "The server does not know this call; update the older side."


class InternalError(TofcError):
    """Something broke on the server that no client can repair."""

    status = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"
    sentence = "The server failed; its log says why."


class UnsafeAddressError(MismatchError, ValueError):
    """An address beyond this machine without TLS and a token, or half of a TLS configuration."""

    reason = "TLS_AND_TOKEN_REQUIRED"


# The table. Every exception that crosses the wire is here once; its class holds status and sentence.
BY_STATUS: dict[grpc.StatusCode, type[TofcError]] = {
    kind.status: kind
    for kind in (
        TofcError,
        InvalidRequestError,
        MismatchError,
        UnknownReferenceError,
        DuplicateError,
        CorruptPacketError,
        LimitError,
        DeadlineError,
        CancelledError,
        TokenError,
        UnavailableError,
        UnsupportedError,
        InternalError,
    )
}
_BY_NUMBER: dict[int, grpc.StatusCode] = {status.value[0]: status for status in grpc.StatusCode}


def status_number(status: grpc.StatusCode) -> int:
    """The number that the wire carries for a status (FAILED_PRECONDITION is 9)."""
    return int(status.value[0])


def from_status(status: grpc.StatusCode | int, reason: str = "", message: str = "") -> TofcError:
    """The exception for a status; unknown numbers become TofcError itself, with status UNKNOWN."""
    code = _BY_NUMBER.get(status, grpc.StatusCode.UNKNOWN) if isinstance(status, int) else status
    return BY_STATUS.get(code, TofcError)(message, reason=reason)


def to_message(error: TofcError, request: int = 0) -> tofc_pb2.Error:
    """The error as the stream carries it; request 0 means the session, which ends."""
    return tofc_pb2.Error(
        request=request, status=status_number(error.status), reason=error.reason, message=shortened(error.message)
    )


def from_message(error: tofc_pb2.Error) -> TofcError:
    """The exception that the stream's error stands for."""
    return from_status(error.status, _known(error.reason), shortened(error.message))


def _known(reason: str) -> str:
    """A reason as this side may know it; none instead of anything else."""
    return reason if _REASON.fullmatch(reason) else ""


def from_call(error: grpc.aio.AioRpcError) -> TofcError:
    """The exception for a call that gRPC ended; the transport's own wording is kept where there is one."""
    metadata = {str(key): str(value) for key, value in error.trailing_metadata() or ()}
    reason = _known(metadata.get(REASON_METADATA, ""))
    details = shortened(error.details() or "")
    if not reason and _TOO_LARGE in details:
        return TofcError(f"The server sent a message that is too large ({details}); update the older side.")
    kind = BY_STATUS.get(error.code(), TofcError)
    if reason or not details:
        return kind(details, reason=reason)
    return kind(f"{kind.sentence} (gRPC says: {details})")


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", error: TofcError) -> None:
    """Ends a call with the error's status, sentence and reason. Raises, as gRPC's own abort does."""
    await context.abort(error.status, shortened(error.message), ((REASON_METADATA, error.reason),))
