"""Errors as OpenAI's clients expect them: an HTTP status and a body with message, type, param and code.

    CallError, UsageError, … ─ as_api_error ─→ ApiError ─→ {"error": {…}}, and Retry-After where waiting helps

Promises that too long a conversation, too many pictures, too little time, a busy server and a lost one have codes of
their own, and that a defect shows nothing of itself to the client. Leaves sending them to `app` and `events`.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from device_client.history import TOO_LONG
from tofc.errors import (
    CallError,
    CorruptPacketError,
    DeadlineError,
    EncoderError,
    ImageError,
    InvalidRequestError,
    LimitError,
    ResourceError,
    UnavailableError,
    UsageError,
)

log = logging.getLogger(__name__)

RETRY_AFTER_S = 5.0  # where the server does not say
INVALID = "invalid_request_error"
TOO_MANY_PICTURES = "TOO_MANY_PICTURES"


class ApiError(Exception):
    """A request that is answered by an error.

    `param`: path of the field that is to blame, for instance "messages[0].content[1].image_url.url".
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        retry_after_s: float | None = None,
        close: bool = False,
    ) -> None:
        """`close`: end the connection, because the rest of the body is not wanted."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.kind = kind
        self.param = param
        self.retry_after_s = retry_after_s
        self.close = close

    @property
    def body(self) -> dict[str, Any]:
        """Return the body of the response."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers of the response: `Retry-After`, in whole seconds, where the same request may succeed."""
        after = {} if self.retry_after_s is None else {"Retry-After": str(max(math.ceil(self.retry_after_s), 1))}
        return after | ({"Connection": "close"} if self.close else {})


def invalid(param: str | None, message: str, *, code: str = "invalid_value") -> ApiError:
    """Return the error for a field that is not allowed."""
    return ApiError(400, code, message, param=param)


def as_api_error(error: BaseException, param: str | None = None) -> ApiError:
    """Return the response to an error; one that is not expected is logged with its traceback."""
    match error:
        case ApiError():
            return error
        case ImageError():
            return invalid(param, str(error), code="invalid_image")
        case CallError():
            return _of_call(error)
        case UsageError():
            return invalid(param or "messages", str(error))
        case EncoderError():
            return ApiError(500, "encoder_failed", str(error), kind="server_error")
        case ResourceError() | MemoryError():
            message = str(error) or "this device has not enough memory for the request; send fewer or smaller pictures"
            return ApiError(503, "out_of_memory", message, kind="server_error", retry_after_s=RETRY_AFTER_S)
    log.error("a request failed", exc_info=error)
    return ApiError(500, "internal_error", "the endpoint failed; its log on the device says why", kind="server_error")


def _of_call(error: CallError) -> ApiError:
    text, after_s = error.message, error.retry_after_s
    if error.reason in TOO_LONG:
        return invalid("messages", text, code="context_length_exceeded")
    if error.reason == TOO_MANY_PICTURES:
        return invalid("messages", text, code="too_many_images")
    match error:
        case DeadlineError():
            return ApiError(504, "timeout", text, kind="timeout_error")
        case LimitError() if after_s is not None or error.reason == "TOO_MANY_SESSIONS":
            return ApiError(429, "server_busy", text, kind="rate_limit_error", retry_after_s=after_s or RETRY_AFTER_S)
        case LimitError() | InvalidRequestError():
            return invalid(None, text, code=error.reason.lower())
        case UnavailableError() | CorruptPacketError():
            return ApiError(503, "edge_unavailable", text, kind="server_error", retry_after_s=after_s or RETRY_AFTER_S)
    # a token, a certificate, a version: asking again does not help, and the one who asks cannot change it
    return ApiError(502, f"edge_{error.reason.lower()}", text, kind="server_error")
