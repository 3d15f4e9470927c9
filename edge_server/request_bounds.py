"""How many parts a request may have, counted before it is parsed.

Promises that a request of many tiny parts is refused before it takes memory: an empty part of two bytes becomes an
object of a hundred. Leaves bytes that are not a message at all to the parser.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import grpc
import grpc.aio

from tofc.errors import InvalidRequestError
from tofc.v1 import tofc_pb2 as pb

MAX_PARTS = 4096  # pictures, packets of views, chunks, questions with their turns, and cancellations
_ASKS, _VIEWS = (pb.SessionRequest.DESCRIPTOR.fields_by_name[name].number for name in ("asks", "views"))
_VIEW_FIELDS = 3  # of a view with one packet


def parse_request(data: bytes) -> pb.SessionRequest:
    """Parse a request. Raises InvalidRequestError for too many parts, protobuf's DecodeError for other bytes."""
    for count, _ in enumerate(_parts(data), 1):
        if count > MAX_PARTS:
            raise InvalidRequestError(
                f"a request must have at most {MAX_PARTS} parts; send several requests", reason="TOO_MANY_PARTS"
            )
    return pb.SessionRequest.FromString(data)


def _parts(data: bytes) -> Iterator[None]:
    """Yield once for each field, for each field of a question, and for each packet of a view after the first."""
    for number, begin, end in _fields(data, 0, len(data)):
        yield
        if number in (_ASKS, _VIEWS):
            for _ in islice(_fields(data, begin, end), _VIEW_FIELDS if number == _VIEWS else 0, None):
                yield


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (number, begin, end) of each field from `at` on, up to bytes that are not a field (wire types 3, 4)."""
    while at < end:
        tag, at = _varint(data, at, end)
        match tag & 7:
            case 0:
                size = _varint(data, at, end)[1] - at
            case 1:
                size = 8
            case 2:
                size, at = _varint(data, at, end)
            case 5:
                size = 4
            case _:
                return
        yield tag >> 3, at, min(at + size, end)
        at += size


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            break
    return value, at


class BoundedRequests(grpc.aio.ServerInterceptor):
    """Makes gRPC parse sessions' requests with `parse_request`."""

    async def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Replace the deserializer of a session's requests."""
        handler = await continuation(handler_call_details)
        if handler is not None and handler.request_deserializer == pb.SessionRequest.FromString:
            return handler._replace(request_deserializer=parse_request)
        return handler
