"""The body of a request: how many bytes, and for how long it may arrive.

Promises that a body which is compressed, endless, too slow or of too many values is refused without being kept, and
that all bodies together take bounded memory, also while their requests wait. Leaves what it says to `request`.
"""

from __future__ import annotations

import asyncio
import json
from types import TracebackType
from typing import Any, Self

from starlette.requests import Request

from device_client.endpoint.errors import ApiError, invalid

BODIES = 4  # as many of the largest size may be held at one time
VALUES = 1_000_000  # of a body: each takes some 60 bytes of memory, however short its text is


class BodyReader:
    """Reads bodies of at most `most_bytes` bytes, each within `timeout_s`."""

    def __init__(self, most_bytes: int, timeout_s: float) -> None:
        self._most = most_bytes
        self._timeout_s = timeout_s
        self._held = 0

    def body(self) -> Body:
        """Return a body to be read; its bytes count among those that are held until it is released."""
        return Body(self)

    async def read_json(self, request: Request, body: Body) -> Any:
        """Return the body's JSON value. Raises ApiError, and starlette's ClientDisconnect."""
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise ApiError(
                415,
                "content_encoding_not_taken",
                f"Content-Encoding {encoding[:40]!r} is not taken; send the body as it is",
                param="Content-Encoding",
                close=True,
            )
        stated = request.headers.get("content-length", "")
        if stated.isdecimal() and int(stated) > self._most:
            raise self._too_large(int(stated))
        data = bytearray()
        try:
            async with asyncio.timeout(self._timeout_s):
                async for piece in request.stream():
                    self.hold(body, len(piece))
                    data += piece
                    if len(data) > self._most:
                        raise self._too_large(len(data))
                    if self._held > BODIES * self._most:
                        raise ApiError(
                            429, "endpoint_busy", "too many large requests at one time; ask again",
                            kind="rate_limit_error", retry_after_s=1.0, close=True,
                        )  # fmt: skip
            return await asyncio.to_thread(_parsed, data)
        except TimeoutError:
            raise ApiError(
                408,
                "body_timeout",
                f"the body did not arrive within {self._timeout_s:g} s ({len(data)} bytes did); send it faster",
                kind="timeout_error",
                close=True,
            ) from None

    def hold(self, body: Body, n_bytes: int) -> None:
        """Count bytes of a body that are held; fewer than 0: that are not any more."""
        body.held += n_bytes
        self._held += n_bytes

    def _too_large(self, n_bytes: int) -> ApiError:
        return ApiError(
            413,
            "body_too_large",
            f"a body must have at most {self._most} bytes, got {n_bytes}; send fewer or smaller pictures, or "
            "name those that were sent before by their uuid",
            close=True,
        )


class Body:
    """One body of a `BodyReader`, for `with`: what its value holds of it counts until it is released."""

    def __init__(self, reader: BodyReader) -> None:
        self.held = 0
        self._reader = reader

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.release()

    async def read_json(self, request: Request) -> Any:
        """Return the JSON value. Raises ApiError, and starlette's ClientDisconnect."""
        return await self._reader.read_json(request, self)

    def release(self) -> None:
        """Tell that nothing of its text is kept any more. Calling twice is harmless."""
        self._reader.hold(self, -self.held)


def _parsed(data: bytearray) -> Any:
    if (found := sum(map(data.count, (b"{", b"[", b",")))) > VALUES:
        raise invalid(
            None, f"the body must have at most {VALUES} of the characters {{ [ and , got {found}", code="invalid_json"
        )
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise invalid(None, f"the body is not JSON ({error}); send an object", code="invalid_json") from None
