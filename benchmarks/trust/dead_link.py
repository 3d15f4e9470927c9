"""A link that dies silently: how long until each side detects it.

Promises that server and device use the keepalive of the programs, or one that the caller gives. Leaves links that are
cut to `once`.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import grpc.aio

from benchmarks.relay import Relay
from edge_server.fake import fake_backend
from edge_server.server import start
from edge_server.settings import ServerSettings
from tofc.rpc import channel
from tofc.rpc.channel import Keepalive
from tofc.v1 import tofc_pb2 as pb
from tofc.v1 import tofc_pb2_grpc

WITHIN_S = 35.0
LONGEST_S = 120.0


class _Ended(logging.Handler):
    """A log handler that notices when the server logs the end of a session."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if "ended after" in record.getMessage():
            self.ended.set()


async def dead_link(keepalive: Keepalive = channel.DEFAULT_KEEPALIVE, longest_s: float = LONGEST_S) -> dict[str, Any]:
    """Measure the seconds until each side detects it; None for a side that does not."""
    handler, logger = _Ended(), logging.getLogger("edge_server.session")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    clock = asyncio.get_running_loop().time
    with patch.object(channel, "make_server", partial(channel.make_server, keepalive=keepalive)):
        server = await start(ServerSettings(model=Path("unused"), port=0, grace_s=0.0), lambda _: fake_backend())
    try:
        async with Relay(server.port) as relay, channel.dial(f"127.0.0.1:{relay.port}", keepalive=keepalive) as dialled:
            stub: Any = tofc_pb2_grpc.TofcServiceStub(dialled)
            call = stub.Session()
            hello = pb.Hello(client_version="0", model_id="fake-model", codec_id="fake-codec")
            await call.write(pb.SessionRequest(hello=hello))
            assert (await call.read()).HasField("welcome")
            relay.die()
            started = clock()

            async def detected_by_device() -> float:
                with suppress(grpc.aio.AioRpcError):
                    await call.read()
                return clock() - started

            async def detected_by_server() -> float:
                await handler.ended.wait()
                return clock() - started

            both = (("device", detected_by_device()), ("server", detected_by_server()))
            waits = {name: asyncio.create_task(wait) for name, wait in both}
            await asyncio.wait(waits.values(), timeout=longest_s)
            found = {name: round(wait.result(), 1) if wait.done() else None for name, wait in waits.items()}
            for wait in waits.values():
                wait.cancel()
            await asyncio.wait(waits.values())
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        await server.stop()
    late = [name for name, seconds in found.items() if seconds is None or seconds > WITHIN_S]
    faults = [f"the {name} did not detect the dead link within {WITHIN_S:g} s" for name in late]
    return {"heard_after_s": found, "faults": faults}
