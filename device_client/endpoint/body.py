"""The body of a request: how many bytes, and for how long it may arrive.

Promises that a body which is compressed, endless or too slow is refused without being kept, and that all bodies
together take bounded memory. Leaves what it says to `request`.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.requests import Request

from device_client.endpoint.errors import ApiError, invalid

BODIES = 4  # as many of the largest size may be held at one time


class BodyReader:
    """Reads bodies of at most `most_bytes` bytes, each within `timeout_s`."""

    def __init__(self, most_bytes: int, timeout_s: float) -> None:
        self._most = most_bytes
        self._timeout_s = timeout_s
        self._held = 0

    async def read_json(self, request: Request) -> Any:
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
                    self._held += len(piece)
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
        finally:
            self._held -= len(data)

    def _too_large(self, n_bytes: int) -> ApiError:
        return ApiError(
            413,
            "body_too_large",
            f"a body must have at most {self._most} bytes, got {n_bytes}; send fewer or smaller pictures, or "
            "name those that were sent before by their uuid",
            close=True,
        )


def _parsed(data: bytearray) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise invalid(None, f"the body is not JSON ({error}); send an object", code="invalid_json") from None
