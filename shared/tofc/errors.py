"""Every error that TOFC raises on purpose, in one tree; `except tofc.Error` catches them all.

    Error
    ├── UsageError (ValueError)        an argument, option or file that is not allowed; nothing was asked
    │   ├── ImageError                 a picture that cannot be used
    │   │   └── ImageCodecError        a picture that an image codec cannot write or read; `reason`
    │   ├── CheckpointError            a checkpoint directory that cannot be used
    │   ├── CodecError                 codec files that contradict themselves or need another version
    │   ├── EncodingError              text that is not UTF-8
    │   ├── CredentialsError           credential files that can be neither kept nor completed
    │   └── SecurityError              an address, token or TLS setting that would be unsafe; `reason`
    ├── PacketError (ValueError)       bytes that are not a packet of this codec; `reason`
    ├── ResourceError                  too little memory or disk on this machine
    ├── EncoderError                   a device that cannot turn pictures into packets
    └── CallError                      a call that failed; `status`, `reason`                       UNKNOWN
        ├── InvalidRequestError        a request that breaks the protocol's rules                   INVALID_ARGUMENT
        ├── MismatchError              the two sides differ in model, codec or version              FAILED_PRECONDITION
        ├── UnknownReferenceError      a picture or question that the session does not know         NOT_FOUND
        ├── DuplicateError             a number that is already in use in the session               ALREADY_EXISTS
        ├── CorruptPacketError         a packet or image file that arrived damaged                  DATA_LOSS
        ├── LimitError                 a limit is exceeded, or the server is full                   RESOURCE_EXHAUSTED
        ├── DeadlineError              the answer did not come within the time given                DEADLINE_EXCEEDED
        ├── CancelledError             the call was cancelled                                       CANCELLED
        ├── TokenError                 the token is missing or wrong                                UNAUTHENTICATED
        ├── UnavailableError           the server is unreachable, not ready or stopping             UNAVAILABLE
        │   └── LinkLostError          an open connection was lost
        ├── TlsError                   no TLS connection that both sides trust                      UNAVAILABLE
        ├── UnsupportedError           the server does not know this call                           UNIMPLEMENTED
        └── InternalError              the server failed                                            INTERNAL
            └── ReplyError             the server broke the protocol

`reason` is for machines: UPPER_SNAKE_CASE, stable within a major version. Every message is a sentence for a person: the
value, what is allowed, what to do.

Promises that any other exception is a defect, except an `OSError` about a file and a `MemoryError`. Leaves how call
errors travel over the wire to `tofc.rpc.errors`, and exit codes to the commands.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class Error(Exception):
    """The root of all errors that TOFC raises on purpose."""


class UsageError(Error, ValueError):
    """An argument, option or file that is not allowed; nothing was asked."""


class ImageError(UsageError):
    """A picture that cannot be used; the message says why and what to do."""


class ImageCodecError(ImageError):
    """A picture that an image codec cannot write or read.

    Reasons: SETTING_INVALID, CODEC_MISSING, IMAGE_INVALID, IMAGE_TOO_LARGE.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class CheckpointError(UsageError):
    """A checkpoint directory that cannot be used; the message says what was found and what was expected."""


class CodecError(UsageError):
    """Codec files that contradict themselves or need another version."""


class EncodingError(UsageError):
    """Text that is not UTF-8."""


class CredentialsError(UsageError):
    """Credential files that can be neither kept nor completed; nothing was changed."""


class SecurityError(UsageError):
    """An address, token or TLS setting that would be unsafe; nothing was dialled and no port was opened.

    Reasons: TLS_AND_TOKEN_REQUIRED, TOKEN_UNUSABLE, SECRET_EXPOSED.
    """

    def __init__(self, message: str, *, reason: str = "TLS_AND_TOKEN_REQUIRED") -> None:
        super().__init__(message)
        self.reason = reason


class PacketError(Error, ValueError):
    """Bytes that are not a packet of this codec.

    Reasons: TOO_SHORT, TOO_LONG, GRID_INVALID, COUNT_INVALID, CHECKSUM_MISMATCH, PAYLOAD_INVALID,
    NOT_CANONICAL, SEVERAL_VIEWS.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ResourceError(Error):
    """Too little memory or disk on this machine; the message says how much is needed and how much is free."""


class EncoderError(Error):
    """A device that cannot turn pictures into packets; the message says what to install or check."""


class Status(enum.IntEnum):
    """gRPC's canonical status codes, by name and by the number that the wire carries."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class CallError(Error):
    """A call that failed: an RPC, or one request of a session."""

    status: ClassVar[Status] = Status.UNKNOWN
    """The gRPC status of this class of errors."""
    reason: str = "UNKNOWN"
    """For machines, in UPPER_SNAKE_CASE; docs/protocol.md lists them."""
    sentence: ClassVar[str] = "The call failed for a reason that this version does not know; look at the server's log."
    """The message where none is given."""
    retry_after_s: float | None
    """Seconds after which the same request may succeed, as the server estimates; None: it did not say."""

    def __init__(self, message: str = "", *, reason: str = "", retry_after_s: float | None = None) -> None:
        self.message = message or self.sentence
        self.reason = reason or type(self).reason
        self.retry_after_s = retry_after_s
        super().__init__(self.message)


class InvalidRequestError(CallError):
    """A request that breaks the protocol's rules or names values that are not allowed."""

    status = Status.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"
    sentence = "The request is not valid; client and server may differ in version."


class MismatchError(CallError):
    """The two sides differ in model, codec or version, or a request came too early or too late."""

    status = Status.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"
    sentence = "The server is not in a state for this request; client and server may differ in model or version."


class UnknownReferenceError(CallError):
    """A request that names a picture or a question that the session does not know."""

    status = Status.NOT_FOUND
    reason = "NOT_FOUND"
    sentence = "The request names something that the server does not have; announce it first."


class DuplicateError(CallError):
    """A number that is already in use in the session."""

    status = Status.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"
    sentence = "The number is already in use; choose another."


class CorruptPacketError(CallError):
    """A packet or image file that arrived damaged, or a packet of another codec."""

    status = Status.DATA_LOSS
    reason = "CORRUPT_PACKET"
    sentence = "What arrived is damaged; send it again."


class LimitError(CallError):
    """A limit of the session is exceeded, or the server is full at the moment."""

    status = Status.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"
    sentence = "The server cannot take this request now; ask again later or send less."


class DeadlineError(CallError):
    """The answer did not come within the time that the client gave."""

    status = Status.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"
    sentence = "The answer did not come in time; allow more time or ask for fewer tokens."


class CancelledError(CallError):
    """The call was cancelled."""

    status = Status.CANCELLED
    reason = "CANCELLED"
    sentence = "The call was cancelled."


class TokenError(CallError):
    """The token is missing or wrong."""

    status = Status.UNAUTHENTICATED
    reason = "TOKEN_REFUSED"
    sentence = "The token is missing or wrong; give one that is in the server's token file now."


class UnavailableError(CallError):
    """The server is unreachable, not ready or stopping."""

    status = Status.UNAVAILABLE
    reason = "UNAVAILABLE"
    sentence = "The server cannot be reached; check the address and that it is running, then try again."


class LinkLostError(UnavailableError):
    """An open connection was lost before the answer was complete; asking again may work."""

    reason = "LINK_LOST"
    sentence = "The connection was lost before the answer was complete; ask again."


class TlsError(CallError):
    """No TLS connection that both sides trust. Not an UnavailableError, because trying again does not help."""

    status = Status.UNAVAILABLE
    reason = "TLS_FAILED"
    sentence = "No TLS connection that both sides trust; check the certificates and the name in the address."


class UnsupportedError(CallError):
    """The server does not know this call."""

    status = Status.UNIMPLEMENTED
    reason = "UNSUPPORTED"
    sentence = "The server does not know this call; update the older side."


class InternalError(CallError):
    """The server failed in a way that the client cannot repair."""

    status = Status.INTERNAL
    reason = "INTERNAL"
    sentence = "The server failed; its log says why."


class ReplyError(InternalError):
    """The server broke the protocol; device and server may be of different versions."""

    reason = "PROTOCOL"
    sentence = "The server broke the protocol; device and server may be of different versions."
