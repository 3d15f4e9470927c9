"""How many parts a request may have, counted before it is parsed.

Promises that the memory a request takes is in proportion to its bytes: an empty part of two bytes becomes an object of
a hundred. Leaves bytes that are no message at all to the parser.
"""

from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio

from shared.rpc.errors import InvalidRequestError
from shared.rpc.tofc.v1 import tofc_pb2

PARTS = 4096  # pictures, views, chunks, questions with their turns, and cancellations
_ASKS = tofc_pb2.SessionRequest.DESCRIPTOR.fields_by_name["asks"].number


def parse_request(data: bytes) -> tofc_pb2.SessionRequest:
    """Raises InvalidRequestError for one of too many parts, protobuf's DecodeError for what is none."""
    for count, _ in enumerate(_parts(data), 1):
        if count > PARTS:
            raise InvalidRequestError(
                f"a request of more than {PARTS} parts; send several requests", reason="TOO_MANY_PARTS"
            )
    return tofc_pb2.SessionRequest.FromString(data)


def _parts(data: bytes) -> Iterator[None]:
    """One for each field, and one for each of a question's."""
    for number, begin, end in _fields(data, 0, len(data)):
        yield
        if number == _ASKS:
            for _ in _fields(data, begin, end):
                yield


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, begin, end) of each field from ``at`` on, as far as there are such (wire types 3 and 4 are none)."""
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
    """Lets `parse_request` read what sessions send."""

    async def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(handler_call_details)
        if handler is not None and handler.request_deserializer == tofc_pb2.SessionRequest.FromString:
            return handler._replace(request_deserializer=parse_request)
        return handler
