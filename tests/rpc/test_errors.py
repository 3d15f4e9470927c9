"""Call errors on the wire: every class arrives on the device as it was raised on the server."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.rpc.status_pb2 import Status as RichStatus

from tofc import errors
from tofc.errors import CallError, InvalidRequestError, LimitError, Status, TokenError
from tofc.rpc.auth import TokenInterceptor
from tofc.rpc.channel import bind, dial, make_server
from tofc.rpc.errors import BY_STATUS, REASON_METADATA, abort, from_call, from_message, from_status, to_message
from tofc.rpc.tokens import Token
from tofc.v1 import tofc_pb2 as pb


def test_the_table_holds_every_status_once() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CallError)]
    assert {kind.status for kind in kinds} == set(BY_STATUS)
    for status, kind in BY_STATUS.items():
        assert kind.status is status
        assert kind.reason == kind.reason.upper()
        assert kind.sentence.endswith(".") and kind.sentence[0].isupper()
        assert kind().message == kind.sentence


@pytest.mark.parametrize("after_s", [None, 0.001, 2.5])
@pytest.mark.parametrize("kind", list(BY_STATUS.values()))
def test_an_error_survives_the_stream(kind: type[CallError], after_s: float | None) -> None:
    error = kind("the value is 3, allowed is 2; send less", reason="TOO_MUCH", retry_after_s=after_s)
    message = to_message(error, request=7)
    assert message.request == 7
    found = from_message(message)
    assert type(found) is kind
    assert found.retry_after_s == after_s
    assert (found.status, found.reason, found.message, str(found)) == (
        *(error.status, "TOO_MUCH"),
        *(error.message, error.message),
    )


def test_a_status_of_a_later_version_is_accepted() -> None:
    found = from_status(99, "NEW", "something new")
    assert type(found) is CallError
    assert (found.reason, found.message) == ("NEW", "something new")
    assert from_status(Status.ABORTED).message == CallError.sentence


def arities(refusal: CallError | None) -> grpc.GenericRpcHandler:
    async def one(request: Any, context: Any) -> bytes:
        if refusal is not None:
            await abort(context, refusal)
        return b"ok"

    async def many(request: Any, context: Any) -> Any:
        if refusal is not None:
            await abort(context, refusal)
        yield b"ok"

    handlers = {
        "UU": grpc.unary_unary_rpc_method_handler(one),
        "SU": grpc.stream_unary_rpc_method_handler(one),
        "US": grpc.unary_stream_rpc_method_handler(many),
        "SS": grpc.stream_stream_rpc_method_handler(many),
    }
    return grpc.method_handlers_generic_handler("test.Test", handlers)


async def called(channel: grpc.aio.Channel, arity: str, metadata: Any) -> bytes:
    async def requests() -> Any:
        await asyncio.Event().wait()  # a write after the call has ended would replace its status by gRPC's own
        yield b"request"

    if arity == "UU":
        return await channel.unary_unary("/test.Test/UU")(b"request", metadata=metadata, timeout=20)
    if arity == "SU":
        return await channel.stream_unary("/test.Test/SU")(requests(), metadata=metadata, timeout=20)
    if arity == "US":
        stream: Any = channel.unary_stream("/test.Test/US")(b"request", metadata=metadata, timeout=20)
    else:
        stream = channel.stream_stream("/test.Test/SS")(requests(), metadata=metadata, timeout=20)
    return b"".join([piece async for piece in stream])


@pytest.mark.parametrize("arity", ["UU", "SU", "US", "SS"])
async def test_an_aborted_call_keeps_its_reason(arity: str) -> None:
    server = make_server()
    server.add_generic_rpc_handlers((arities(LimitError("full; wait", reason="FULL", retry_after_s=1.5)),))
    port = bind(server, "127.0.0.1", 0)
    await server.start()
    async with dial(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await called(channel, arity, ())
    found = from_call(failed.value)
    assert type(found) is LimitError
    assert (found.reason, found.message, found.retry_after_s) == ("FULL", "full; wait", 1.5)
    (details,) = [value for key, value in failed.value.trailing_metadata() if key == "grpc-status-details-bin"]
    assert b"google.rpc.RetryInfo" in details, "which clients of other languages read too"
    await server.stop(0)


@pytest.mark.parametrize("arity", ["UU", "SU", "US", "SS"])
async def test_a_token_is_required_for_every_arity(arity: str) -> None:
    token = "0123456789abcdef"
    server = make_server([TokenInterceptor(lambda: [Token(token)])])
    server.add_generic_rpc_handlers((arities(None),))
    port = bind(server, "127.0.0.1", 0)
    await server.start()
    async with dial(f"127.0.0.1:{port}") as channel:
        assert await called(channel, arity, (("authorization", f"Bearer {token}"),)) == b"ok"
        for metadata in ((), (("authorization", token),), (("authorization", f"Bearer {token}x"),)):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await called(channel, arity, metadata)
            assert isinstance(from_call(failed.value), TokenError)
    await server.stop(0)


async def test_a_missing_server_is_explained() -> None:
    async with dial("127.0.0.1:1") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await called(channel, "UU", ())
    found = from_call(failed.value)
    assert type(found) is errors.UnavailableError
    assert found.message.startswith(found.sentence)


@pytest.mark.parametrize("length", [999, 1000, 1001, 800_000])
def test_messages_are_shortened_on_both_sides(length: int) -> None:
    error = InvalidRequestError("x" * length)
    cut = f"… ({length} characters)" if length > 1000 else ""
    for found in (to_message(error).message, from_message(pb.Error(status=3, message=error.message)).message):
        assert len(found) <= 1000 and found.startswith("x" * 900) and found.endswith(cut or "x")
    assert from_message(to_message(error)).message == to_message(error).message, "shortened only once"
    call = grpc.aio.AioRpcError(
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.aio.Metadata(),
        grpc.aio.Metadata((REASON_METADATA, "REASON")),
        details=error.message,
    )
    assert from_call(call).message == to_message(error).message


@pytest.mark.parametrize("reason", ["\x1b]52;c;\x07", "A" * 65, "no reason", "É"])
def test_a_malformed_reason_is_left_out(reason: str) -> None:
    assert from_message(pb.Error(status=3, reason=reason)).reason == InvalidRequestError.reason


@pytest.mark.parametrize("details", [b"\xff", RichStatus(code=8, message="another message").SerializeToString()])
def test_details_that_cannot_be_used_are_ignored(details: bytes) -> None:
    trailing = grpc.aio.Metadata((REASON_METADATA, "FULL"), ("grpc-status-details-bin", details))
    error = grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), trailing, details="full")
    found = from_call(error)
    assert (type(found), found.reason, found.message, found.retry_after_s) == (LimitError, "FULL", "full", None)
