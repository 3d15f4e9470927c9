"""Streams that send nothing cannot keep others from opening sessions."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from benchmarks.trust.attacks import SESSION
from benchmarks.trust.wire import SETTINGS, Wire, call, frame
from edge_server import session_slots
from edge_server.session import ServerSession
from edge_server.session_slots import HANDSHAKE_RETRY_S, SessionSlots
from tests.server.conftest import Connect, Serve
from tests.server.raw_client import until
from tofc.errors import CallError, LimitError


class Stream:
    """Records the error that it was ended with."""

    ended: CallError | None = None

    def end(self, error: CallError) -> None:
        self.ended = error


def test_the_peer_with_most_silent_streams_loses_its_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_slots, "MIN_SILENT", 4)
    held: SessionSlots[Stream] = SessionSlots(2)
    modest, *greedy = (Stream() for _ in range(6))
    held.open(modest, "ipv4:192.0.2.1:5")
    for port, stream in enumerate(greedy):
        held.open(stream, f"ipv4:192.0.2.2:{port}")
    assert [one.ended is not None for one in [modest, *greedy]] == [False, True, True, False, False, False]
    assert greedy[0].ended is not None and "4 streams of one device or address" in str(greedy[0].ended)
    held.enter(modest)
    held.enter(greedy[4])
    with pytest.raises(LimitError, match="--sessions 2"):
        held.enter(greedy[3])
    held.leave(modest)
    held.enter(greedy[3])
    held.leave(greedy[0])
    assert {*held} == {greedy[2], greedy[3], greedy[4]}


def test_a_device_with_a_name_is_not_blamed_for_others_behind_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_slots, "MIN_SILENT", 3)
    held: SessionSlots[Stream] = SessionSlots(2)
    kitchen, *greedy = (Stream() for _ in range(5))
    held.open(kitchen, "ipv4:192.0.2.1:5", "kitchen")
    for port, stream in enumerate(greedy):
        held.open(stream, f"ipv4:192.0.2.1:{port}", "garage")
    assert [one.ended is not None for one in [kitchen, *greedy]] == [False, True, True, False, False]


@pytest.mark.parametrize(("sessions", "silent"), [(1, 32), (64, 64)])
def test_as_many_devices_as_have_sessions_may_come_at_once(sessions: int, silent: int) -> None:
    held: SessionSlots[Stream] = SessionSlots(sessions)
    streams = [Stream() for _ in range(2 * silent)]
    for port, stream in enumerate(streams):
        held.open(stream, f"ipv4:192.0.2.1:{port}")
        assert held.silent <= silent
    assert [one.ended is not None for one in streams] == [True] * silent + [False] * silent
    for stream in streams[:silent]:
        assert isinstance(stream.ended, LimitError) and stream.ended.reason == "TOO_MANY_HANDSHAKES"
        assert stream.ended.retry_after_s == HANDSHAKE_RETRY_S


async def test_a_device_can_open_a_session_beside_streams_that_send_nothing(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_slots, "MIN_SILENT", 3)
    server = await serve(sessions=2)
    slots = server.service._slots
    silent, seen = [], set[ServerSession]()
    for _ in range(8):
        silent.append(connect(server))
        await until(lambda: {*slots._silent} - seen)
        seen.update(slots._silent)
    for one in silent[:5]:
        await one.not_heard(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_HANDSHAKES")
    assert slots.silent == 3
    device = connect(server)
    await device.hello()
    await device.ask(1, "in")
    assert (await device.answer(1))[0] == "in"
    full = connect(server)
    await full.hello()
    late = connect(server)
    await late.failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_SESSIONS")


async def test_streams_that_send_and_read_nothing_leave_nothing_behind(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_slots, "MIN_SILENT", 3)
    server = await serve(sessions=2, hello_timeout_s=0.01)
    before, opened, really_open = len(asyncio.all_tasks()), [], SessionSlots.open

    def spy(slots: SessionSlots[ServerSession], session: ServerSession, *whose: str) -> None:
        opened.append(whose)
        really_open(slots, session, *whose)

    monkeypatch.setattr(SessionSlots, "open", spy)
    async with Wire(int(server.address.rpartition(":")[2])) as wire:
        await wire.send(frame(SETTINGS, b"\0\4" + bytes(4)))  # nothing may be sent to it except headers
        for stream in range(1, 17, 2):
            await wire.call(call(SESSION), stream)
        await until(lambda: len(opened) == 8)  # five are crowded out, three are too late
        await until(lambda: len(asyncio.all_tasks()) <= before)
