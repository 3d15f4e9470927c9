"""Streams that never say Hello crowd out a device whose Hello is late: it waits as told, comes back and is answered."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from device_client.encoder import TowerEncoder
from device_client.link import Target
from device_client.session import Session
from device_client.stream import Stream
from edge_server import session_slots
from edge_server.server import RunningServer, start
from edge_server.session import ServerSession
from edge_server.session_slots import HANDSHAKE_RETRY_S
from edge_server.settings import ServerSettings
from tests.e2e.conftest import DEFAULTS, PICTURES
from tests.server.raw_client import RawClient, until
from tofc.rpc.channel import dial
from tofc.v1 import tofc_pb2 as pb

SILENT = 4  # streams without Hello that the server keeps
TIMES = 2  # that the device is crowded out

write = Stream.write


class Crowd:
    """Strangers at the device's address, who open streams and send nothing."""

    def __init__(self, server: RunningServer) -> None:
        self.streams: list[RawClient] = []
        self.came = 0
        self._server = server
        self._slots = server.service._slots
        self._known: set[ServerSession] = set()

    async def come(self) -> None:
        """Open as many streams as crowd out the device's, which was opened last and has not said Hello."""
        await until(lambda: {*self._slots._silent} - self._known)
        (device,) = {*self._slots._silent} - self._known
        self.streams += [RawClient(dial(self._server.address)) for _ in range(SILENT)]
        await until(lambda: device not in self._slots._silent)
        self._known = {*self._slots._silent}
        assert len(self._known) == SILENT
        self.came += 1


@pytest_asyncio.fixture
async def crowd(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Crowd]:
    """A server, and a crowd that comes TIMES times just before a device says Hello."""
    monkeypatch.setattr(session_slots, "MIN_SILENT", SILENT)
    server = await start(ServerSettings(**DEFAULTS, sessions=SILENT))
    made = Crowd(server)

    async def write_late(stream: Stream, request: pb.SessionRequest) -> bool:
        if request.HasField("hello") and made.came < TIMES:
            await made.come()
        return await write(stream, request)

    monkeypatch.setattr(Stream, "write", write_late)
    yield made
    for one in made.streams:
        await one.channel.close()
    await server.stop()


async def test_a_device_that_was_crowded_out_comes_back_and_is_answered(
    crowd: Crowd, encoder: TowerEncoder, asked: list[dict[str, str]]
) -> None:
    logged: list[str] = []
    pauses_s: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses_s.append(seconds)

    target = Target(address=crowd._server.address)
    async with Session(target, encoder, log=logged.append, sleep=sleep) as session:
        picture = session.open(PICTURES / asked[0]["image"])
        report = await session.ask([picture], asked[0]["question"]).result()
    assert report.answer.strip() == asked[0]["answer"]
    assert crowd.came == len(pauses_s) == TIMES
    assert all(HANDSHAKE_RETRY_S <= pause_s <= 1.2 * HANDSHAKE_RETRY_S for pause_s in pauses_s), pauses_s
    assert logged == [f"the server at {crowd._server.address} is busy opening sessions; waiting"]
    await crowd.streams[0].not_heard(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_HANDSHAKES")
    assert len(crowd.streams) == SILENT * TIMES and crowd._slots.silent <= SILENT, "the crowd is bounded"
