"""The memory that a request takes is in proportion to its bytes."""

from __future__ import annotations

import gc
import weakref

import grpc
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from edge_server.request_bounds import MAX_PARTS, parse_request
from edge_server.session import ServerSession
from tests.server.conftest import Connect, Serve
from tofc.errors import InvalidRequestError
from tofc.rpc.channel import MAX_UP_BYTES
from tofc.v1 import tofc_pb2 as pb

MANY = MAX_PARTS + 1
TOO_MANY = {
    "views": pb.SessionRequest(views=[pb.View()] * MANY).SerializeToString(),
    "cancels": pb.SessionRequest(cancels=[pb.Cancel(request=1)] * MANY).SerializeToString(),
    "turns": pb.SessionRequest(asks=[pb.Ask(history=[pb.Turn()] * MANY)]).SerializeToString(),
    "turns of many": pb.SessionRequest(asks=[pb.Ask(history=[pb.Turn()] * 9)] * (MANY // 10 + 1)).SerializeToString(),
    "refs": pb.SessionRequest(asks=[pb.Ask(refs=[1] * MANY)]).SerializeToString(),
    "unknown": bytes.fromhex("a80601") * MANY,
    "fixed": (b"\xad\x06" + bytes(4)) * MANY,
}


@pytest.mark.parametrize("data", TOO_MANY.values(), ids=TOO_MANY)
def test_too_many_parts_are_refused_unparsed(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("edge_server.request_bounds.pb")
    with pytest.raises(InvalidRequestError, match=f"at most {MAX_PARTS} parts; send several requests") as caught:
        parse_request(data)
    assert caught.value.reason == "TOO_MANY_PARTS"


def test_as_many_as_are_allowed_are_parsed() -> None:
    request = pb.SessionRequest(
        hello=pb.Hello(model_id="m"),
        views=[pb.View(ref=1, index=2, packets=[b"\x0a" * 50])] * (MAX_PARTS - 3),
        asks=[pb.Ask(question="\x0a" * 40)],
    )
    assert parse_request(request.SerializeToString()) == request


@given(st.binary(max_size=60))
def test_any_bytes_are_parsed_as_by_protobuf(data: bytes) -> None:
    try:
        expected = pb.SessionRequest.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            parse_request(data)
    else:
        assert parse_request(data) == expected


async def test_a_session_that_sends_too_many_parts_ends(serve: Serve, connect: Connect) -> None:
    server = await serve()
    client = connect(server)
    await client.hello()
    await client.call.write(pb.SessionRequest(views=[pb.View()] * (MAX_UP_BYTES // 2 - 10)))
    await client.failed(grpc.StatusCode.INVALID_ARGUMENT, "TOO_MANY_PARTS")


async def test_the_error_that_ended_a_session_does_not_keep_it_in_memory(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:

    seen: list[weakref.ref[ServerSession]] = []
    run = ServerSession.run

    async def recorded(self: ServerSession, requests: object) -> object:
        seen.append(weakref.ref(self))
        return await run(self, requests)  # type: ignore[arg-type]

    monkeypatch.setattr(ServerSession, "run", recorded)
    server = await serve()
    gc.disable()
    try:
        for _ in range(3):
            client = connect(server)
            await client.hello()
            await client.send(views=[pb.View(ref=9)])
            await client.failed(grpc.StatusCode.NOT_FOUND, "PICTURE_UNKNOWN")
        healthy = connect(server)
        await healthy.hello()
        await healthy.end()
        assert [one() for one in seen[:3]] == [None] * 3
    finally:
        gc.enable()
