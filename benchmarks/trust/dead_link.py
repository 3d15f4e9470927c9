"""A link that dies in silence: how long until each side hears of it.

Promises that server and device have the keepalive of the product, or one that is scaled down as a whole.
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

from benchmarks.trust.relay import Relay
from edge_server.fake import fake_backend
from edge_server.server import start
from edge_server.settings import ServerSettings
from shared.rpc import channel
from shared.rpc.channel import Keepalive
from shared.rpc.tofc.v1 import tofc_pb2 as pb
from shared.rpc.tofc.v1 import tofc_pb2_grpc

WITHIN_S = 35.0
LONGEST_S = 120.0


class _Ended(logging.Handler):
    """Set when the server says that a session ended."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if "ended after" in record.getMessage():
            self.heard.set()


async def dead_link(keepalive: Keepalive = channel.KEEPALIVE, longest_s: float = LONGEST_S) -> dict[str, Any]:
    """Seconds until each side heard; infinite where it did not."""
    told, logger = _Ended(), logging.getLogger("edge_server.session")
    level = logger.level
    logger.addHandler(told)
    logger.setLevel(logging.INFO)
    clock = asyncio.get_running_loop().time
    with patch.object(channel, "make_server", partial(channel.make_server, keepalive=keepalive)):
        server = await start(ServerSettings(model=Path("unused"), port=0, grace=0.0), lambda _: fake_backend())
    try:
        async with Relay(server.port) as relay, channel.dial(f"127.0.0.1:{relay.port}", keepalive=keepalive) as dialled:
            stub: Any = tofc_pb2_grpc.TofcServiceStub(dialled)
            call = stub.Session()
            hello = pb.Hello(client_version="0", model_id="fake-model", codec_id="fake-codec")
            await call.write(pb.SessionRequest(hello=hello))
            assert (await call.read()).HasField("welcome")
            relay.die()
            begun = clock()

            async def device() -> float:
                with suppress(grpc.aio.AioRpcError):
                    await call.read()
                return clock() - begun

            async def other() -> float:
                await told.heard.wait()
                return clock() - begun

            waits = {name: asyncio.create_task(wait) for name, wait in (("device", device()), ("server", other()))}
            await asyncio.wait(waits.values(), timeout=longest_s)
            found = {name: round(wait.result(), 1) if wait.done() else None for name, wait in waits.items()}
            for wait in waits.values():
                wait.cancel()
            await asyncio.wait(waits.values())
    finally:
        logger.removeHandler(told)
        logger.setLevel(level)
        await server.stop()
    late = [name for name, heard in found.items() if heard is None or heard > WITHIN_S]
    return {"heard_after_s": found, "faults": [f"the {name} did not hear within {WITHIN_S:g} s" for name in late]}
