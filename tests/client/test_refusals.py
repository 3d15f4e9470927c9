"""A server that refuses: its own reason arrives every time, even if it ends the call before the device wrote."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from grpc_health.v1 import health, health_pb2_grpc

from device_client.exit_codes import NO_SERVER, REFUSED, exit_code
from device_client.link import Link, Target
from device_client.stream import WRITE_FAILED, Stream
from edge_server.cli import _get_server_info
from edge_server.credentials import write
from edge_server.fake import fake_backend
from edge_server.server import start
from edge_server.session_slots import SessionSlots
from edge_server.settings import ServerSettings
from tofc.errors import CallError, InvalidRequestError, LinkLostError, TokenError, UnavailableError
from tofc.rpc.channel import bind, make_server
from tofc.rpc.security import ClientSecurity
from tofc.v1 import tofc_pb2 as pb

TOKEN = "0123456789abcdef"
TIMES = 64  # handshakes one after the other, and then the same number, 16 at a time


class ServerThread:
    """An event loop in a thread of its own, as far from that of the device as one process allows."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.ends: list[Callable[[], Awaitable[Any]]] = []

    async def run(self, work: Any) -> Any:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))

    async def serve(self, load: Any = lambda _: fake_backend(), **settings: Any) -> Any:
        running = await self.run(start(ServerSettings(model=Path("unused"), port=0, grace_s=0.0, **settings), load))
        self.ends.append(running.stop)
        return running

    async def close(self) -> None:
        for end in self.ends:
            await self.run(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        await asyncio.to_thread(self._thread.join)
        self.loop.close()


@pytest_asyncio.fixture
async def server_thread() -> AsyncIterator[ServerThread]:
    made = ServerThread()
    yield made
    await made.close()


@pytest.fixture(autouse=True)
def busy() -> Iterator[None]:
    """Something else keeps a core busy: then the server's end and the device's first write meet in any order."""
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield
    spinning.kill()
    spinning.wait()


async def refusals(
    target: Target, model_id: str = "fake-model", codec_id: str = "fake-codec"
) -> Counter[tuple[str, int]]:
    """Count reasons and exit codes of many handshakes, one after the other and many at once."""

    async def shake_hands() -> tuple[str, int]:
        with pytest.raises(CallError) as refused:
            await Link.open(target, model_id, codec_id)
        return refused.value.reason, exit_code(refused.value)

    found = [await shake_hands() for _ in range(TIMES)]
    for _ in range(TIMES // 16):
        found += await asyncio.gather(*(shake_hands() for _ in range(16)))
    return Counter(found)


async def test_a_full_server(server_thread: ServerThread) -> None:
    target = Target(address=(await server_thread.serve(sessions=1)).address)
    first = await Link.open(target, "fake-model", "fake-codec")
    assert await refusals(target) == {("TOO_MANY_SESSIONS", REFUSED): 2 * TIMES}
    await first.close()


async def test_a_crowded_server(server_thread: ServerThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SessionSlots, "max_silent", 0)  # each stream is crowded out, while its Hello is on its way
    target = Target(address=(await server_thread.serve()).address)
    assert await refusals(target) == {("TOO_MANY_HANDSHAKES", REFUSED): 2 * TIMES}


async def test_a_server_that_stops(server_thread: ServerThread) -> None:
    server = await server_thread.serve()
    await server_thread.run(server.service.close(0))
    assert await refusals(Target(address=server.address)) == {("STOPPING", NO_SERVER): 2 * TIMES}


async def test_a_server_that_loads(server_thread: ServerThread, free_port: int) -> None:
    loading, loaded = threading.Event(), threading.Event()

    def load(_: ServerSettings) -> Any:
        loading.set()
        loaded.wait()
        return fake_backend()

    settings = ServerSettings(model=Path("unused"), port=free_port, grace_s=0.0)
    starting = asyncio.create_task(server_thread.run(start(settings, load)))
    try:
        await asyncio.to_thread(loading.wait)
        target = Target(address=f"127.0.0.1:{free_port}")
        assert await refusals(target) == {("LOADING", NO_SERVER): 2 * TIMES}
        with pytest.raises(UnavailableError, match="still loading its model"):
            await _get_server_info(target.address, ClientSecurity())
    finally:
        loaded.set()
    await server_thread.run((await starting).stop())


@pytest.mark.parametrize("token", [None, "x" * 16])
async def test_a_token_that_is_missing_or_wrong(server_thread: ServerThread, tmp_path: Path, token: str | None) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    server = await server_thread.serve(token_file=tmp_path / "token")
    target = Target(address=server.address, security=ClientSecurity(token=token))
    assert await refusals(target) == {("TOKEN_REFUSED", REFUSED): 2 * TIMES}


async def test_another_service(server_thread: ServerThread) -> None:
    async def begin() -> Any:
        other = make_server()
        health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), other)
        port = bind(other, "127.0.0.1", 0)
        await other.start()
        server_thread.ends.append(lambda: other.stop(0))
        return port

    target = Target(address=f"127.0.0.1:{await server_thread.run(begin())}")
    assert await refusals(target) == {("UNSUPPORTED", REFUSED): 2 * TIMES}
    with pytest.raises(CallError, match=rf"{target.address} speaks gRPC, but does not know this call"):
        await Link.open(target, "", "")


async def test_another_model_or_codec(server_thread: ServerThread) -> None:
    target = Target(address=(await server_thread.serve()).address)
    assert await refusals(target, model_id="other") == {("MODEL_MISMATCH", REFUSED): 2 * TIMES}
    assert await refusals(target, codec_id="other") == {("CODEC_MISMATCH", REFUSED): 2 * TIMES}


async def test_no_common_tls(server_thread: ServerThread, tmp_path: Path) -> None:
    ours, other = write(tmp_path / "ours", ["localhost"]), write(tmp_path / "other", ["localhost"])
    plain = await server_thread.serve()
    encrypted = await server_thread.serve(tls_cert=ours.certificate, tls_key=ours.key)
    trusting = ClientSecurity(ca=other.authority.read_bytes())
    target = Target(address=f"localhost:{encrypted.port}", security=trusting)
    assert await refusals(target) == {("TLS_FAILED", NO_SERVER): 2 * TIMES}
    assert await refusals(replace(target, address=plain.address)) == {("TLS_FAILED", NO_SERVER): 2 * TIMES}
    assert await refusals(replace(target, security=ClientSecurity())) == {("UNAVAILABLE", NO_SERVER): 2 * TIMES}


async def test_an_end_in_the_middle_reaches_a_device_that_is_writing(server_thread: ServerThread) -> None:
    """A rule of the protocol is broken while much more is under way, which nobody reads any more."""
    target = Target(address=(await server_thread.serve()).address)
    found = Counter[tuple[type[Exception] | None, str]]()
    for _ in range(TIMES):
        link = await Link.open(target, "fake-model", "fake-codec")
        ended = asyncio.Event()
        end = link.end

        def noting(failure: CallError, end: Any = end, ended: asyncio.Event = ended) -> None:
            end(failure)
            ended.set()

        link.end = noting  # type: ignore[method-assign]
        link.send(pictures=[pb.Picture(ref=1, picture_id=b"short")])
        for _ in range(200):
            if link.failure is None:
                link.send(asks=[pb.Ask(request=1, question="x" * 20_000)])
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await ended.wait()
        found[type(link.failure), link.failure.reason if link.failure else ""] += 1
        await link.close()
    assert found == {(InvalidRequestError, "PICTURE_ID_INVALID"): TIMES}


async def test_a_server_that_hangs_up_is_not_reached() -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as listening:
        target = Target(address=f"127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        found = await refusals(target)
    assert found == {("UNAVAILABLE", NO_SERVER): 2 * TIMES} and LinkLostError.reason not in {
        reason for reason, _ in found
    }


class CallWithoutStatus:
    """A call whose write failed first; grpc.aio does not report the status that came after that."""

    status = grpc.StatusCode.INTERNAL, WRITE_FAILED

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        raise StopAsyncIteration

    def add_done_callback(self, callback: Any) -> None:
        callback(self)

    def done(self) -> bool:
        return True

    async def code(self) -> grpc.StatusCode:
        return self.status[0]

    async def details(self) -> str:
        return self.status[1]

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata()


async def test_a_status_that_grpc_does_not_report_is_found() -> None:
    call = CallWithoutStatus()
    ending = asyncio.create_task(Stream(call).ended())
    await asyncio.sleep(0)
    call.status = grpc.StatusCode.UNAUTHENTICATED, "the token is wrong"
    assert isinstance(await ending, TokenError)
