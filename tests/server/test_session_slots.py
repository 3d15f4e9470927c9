"""Streams that send nothing cannot keep others from opening sessions."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from edge_server import session_slots
from edge_server.session_slots import SessionSlots
from tests.server.conftest import Connect, Serve
from tests.server.raw_client import ANSWERED
from tofc.errors import CallError, LimitError
from tofc.v1 import tofc_pb2 as pb


class Stream:
    """Records the error that it was ended with."""

    ended: CallError | None = None

    def end(self, error: CallError) -> None:
        self.ended = error


def test_the_peer_with_most_silent_streams_loses_its_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_slots, "MAX_SILENT", 4)
    held: SessionSlots[Stream] = SessionSlots(2)
    modest, *greedy = (Stream() for _ in range(6))
    held.open(modest, "ipv4:192.0.2.1:5")
    for port, stream in enumerate(greedy):
        held.open(stream, f"ipv4:192.0.2.2:{port}")
    assert [one.ended is not None for one in [modest, *greedy]] == [False, True, True, False, False, False]
    assert greedy[0].ended is not None and "4 streams of one client have not sent Hello" in str(greedy[0].ended)
    held.enter(modest)
    held.enter(greedy[4])
    with pytest.raises(LimitError, match="--sessions 2"):
        held.enter(greedy[3])
    held.leave(modest)
    held.enter(greedy[3])
    held.leave(greedy[0])
    assert {*held} == {greedy[2], greedy[3], greedy[4]}


async def test_a_device_can_open_a_session_beside_streams_that_send_nothing(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_slots, "MAX_SILENT", 3)
    server = await serve(sessions=2)
    silent = [connect(server) for _ in range(8)]
    for one in silent:
        async with asyncio.timeout(ANSWERED):
            await one.call.wait_for_connection()
            await one.stub.GetServerInfo(pb.GetServerInfoRequest())  # the server has accepted the stream before it
    ended = [await one.receive() for one in silent[:5]]
    assert {one.error.reason for one in ended} == {"HELLO_MISSING"}
    device = connect(server)
    await device.hello()
    await device.ask(1, "in")
    assert (await device.answer(1))[0] == "in"
    full = connect(server)
    await full.hello()
    late = connect(server)
    await late.failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_SESSIONS")
