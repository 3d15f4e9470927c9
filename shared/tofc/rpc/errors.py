"""Call errors on the wire: gRPC status ⇄ exception, as a call's status or as a message within a session.

Promises that an error raised on the server is raised on the device as the same class with the same reason and message,
shortened if it is too long. Leaves the classes to `tofc.errors`.
"""

from __future__ import annotations

import re
from typing import Any

import grpc
import grpc.aio

from tofc.error_text import shortened
from tofc.errors import (
    CallError,
    CancelledError,
    CorruptPacketError,
    DeadlineError,
    DuplicateError,
    InternalError,
    InvalidRequestError,
    LimitError,
    MismatchError,
    TokenError,
    UnavailableError,
    UnknownReferenceError,
    UnsupportedError,
)
from tofc.v1 import tofc_pb2 as pb

REASON_METADATA = "tofc-reason"  # trailing metadata of a call that ended with an error
_REASON = re.compile("[A-Z0-9_]{1,64}")
_TOO_LARGE = "CLIENT: Received message larger than max"  # gRPC's own message; its status is the one of a full server

#: status → the class that is raised for it
BY_STATUS: dict[int, type[CallError]] = {
    kind.status: kind
    for kind in (
        CallError,
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


def from_status(status: int, reason: str = "", message: str = "") -> CallError:
    """Return the exception for a status; unknown numbers become `CallError` itself, with status UNKNOWN."""
    return BY_STATUS.get(status, CallError)(message, reason=reason)


def to_message(error: CallError, request: int = 0) -> pb.Error:
    """Turn an error into a message of the session; request 0 is the session itself, which then ends."""
    return pb.Error(request=request, status=error.status, reason=error.reason, message=shortened(error.message))


def from_message(error: pb.Error) -> CallError:
    """Return the exception for an error message of the session."""
    return from_status(error.status, _well_formed(error.reason), shortened(error.message))


def _well_formed(reason: str) -> str:
    """Return a reason if it is well-formed, else an empty string."""
    return reason if _REASON.fullmatch(reason) else ""


def from_call(error: grpc.aio.AioRpcError) -> CallError:
    """Return the exception for a call that gRPC ended; gRPC's own message is kept if there is one."""
    metadata = {str(key): str(value) for key, value in error.trailing_metadata() or ()}
    reason = _well_formed(metadata.get(REASON_METADATA, ""))
    details = shortened(error.details() or "")
    if not reason and _TOO_LARGE in details:
        return CallError(f"The server sent a message that is too large ({details}); update the older side.")
    kind = BY_STATUS.get(error.code().value[0], CallError)
    if reason or not details:
        return kind(details, reason=reason)
    return kind(f"{kind.sentence} (gRPC says: {details})")


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: CallError) -> None:
    """End a call with the error's status, message and reason. Raises, as gRPC's own abort does."""
    await context.abort(
        grpc.StatusCode[error.status.name], shortened(error.message), ((REASON_METADATA, error.reason),)
    )
