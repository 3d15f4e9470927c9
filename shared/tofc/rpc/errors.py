"""Call errors on the wire: gRPC status ⇄ exception, as a call's status or as a message within a session.

Promises that an error raised on the server is raised on the device as the same class with the same reason, message
(shortened if it is too long) and time after which to try again: in a session as `Error.retry_after_ms`, at the end of a
call as google.rpc.RetryInfo among the status details. Leaves the classes to `tofc.errors`.
"""

from __future__ import annotations

import re
from typing import Any, cast

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
_DETAILS_METADATA = "grpc-status-details-bin"
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


def from_status(status: int, reason: str = "", message: str = "", retry_after_s: float | None = None) -> CallError:
    """Return the exception for a status; unknown numbers become `CallError` itself, with status UNKNOWN."""
    return BY_STATUS.get(status, CallError)(message, reason=reason, retry_after_s=retry_after_s)


def to_message(error: CallError, request: int = 0) -> pb.Error:
    """Turn an error into a message of the session; request 0 is the session itself, which then ends."""
    return pb.Error(
        request=request,
        status=error.status,
        reason=error.reason,
        message=shortened(error.message),
        retry_after_ms=0 if error.retry_after_s is None else max(round(error.retry_after_s * 1e3), 1),
    )


def from_message(error: pb.Error) -> CallError:
    """Return the exception for an error message of the session."""
    retry_after_s = error.retry_after_ms / 1e3 if error.retry_after_ms else None
    return from_status(error.status, _well_formed(error.reason), shortened(error.message), retry_after_s)


def _well_formed(reason: str) -> str:
    """Return a reason if it is well-formed, else an empty string."""
    return reason if _REASON.fullmatch(reason) else ""


def from_call(error: grpc.aio.AioRpcError) -> CallError:
    """Return the exception for a call that gRPC ended; gRPC's own message is kept if there is one."""
    metadata = dict(error.trailing_metadata() or ())
    reason = _well_formed(str(metadata.get(REASON_METADATA, "")))
    details = shortened(error.details() or "")
    if not reason and _TOO_LARGE in details:
        return CallError(f"The server sent a message that is too large ({details}); update the older side.")
    kind = BY_STATUS.get(error.code().value[0], CallError)
    if reason or not details:
        return kind(
            details, reason=reason, retry_after_s=_retry_after_s(error) if _DETAILS_METADATA in metadata else None
        )
    return kind(f"{kind.sentence} (gRPC says: {details})")


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: CallError) -> None:
    """End a call with the error's status, message and reason. Raises, as gRPC's own abort does."""
    code, details = grpc.StatusCode[error.status.name], shortened(error.message)
    retry = () if error.retry_after_s is None else _retry_info(error.status, details, error.retry_after_s)
    await context.abort(code, details, ((REASON_METADATA, error.reason), *retry))


def _retry_info(status: int, details: str, retry_after_s: float) -> tuple[tuple[str, str | bytes], ...]:
    """Return the trailing metadata that say when to try again, as google.rpc.RetryInfo."""
    from google.protobuf.any_pb2 import Any as AnyMessage
    from google.rpc.error_details_pb2 import RetryInfo
    from google.rpc.status_pb2 import Status
    from grpc_status import rpc_status

    info = RetryInfo()
    info.retry_delay.FromMilliseconds(max(round(retry_after_s * 1e3), 1))
    packed = AnyMessage()
    packed.Pack(info)
    rich = rpc_status.to_status(Status(code=status, message=details, details=[packed]))
    return tuple(rich.trailing_metadata)


def _retry_after_s(error: grpc.aio.AioRpcError) -> float | None:
    """Return the seconds of the google.rpc.RetryInfo that the server sent with a status; None if there is none."""
    from google.protobuf.message import DecodeError
    from google.rpc.error_details_pb2 import RetryInfo
    from grpc_status import rpc_status

    info = RetryInfo()
    try:
        status = rpc_status.from_call(cast(grpc.Call, error))  # it has the same methods
        for detail in status.details if status is not None else ():
            if detail.Unpack(info):
                return max(info.retry_delay.ToMilliseconds(), 0) / 1e3 or None
    except (DecodeError, ValueError):  # they cannot be read, or contradict the status itself
        pass
    return None
