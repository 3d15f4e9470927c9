"""A server with a fake backend, and raw clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest_asyncio

from edge_server.backend import Backend
from edge_server.fake import fake_backend
from edge_server.server import RunningServer, start
from edge_server.settings import ServerSettings
from tests.server.raw_client import RawClient
from tofc.rpc.channel import dial
from tofc.rpc.security import ClientSecurity

Serve = Callable[..., Awaitable[RunningServer]]
Connect = Callable[..., RawClient]


@pytest_asyncio.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start servers on free ports; they are stopped after the test."""
    servers: list[RunningServer] = []

    async def begin(backend: Backend | None = None, **settings: Any) -> RunningServer:
        made = backend or fake_backend()
        servers.append(
            await start(ServerSettings(model=Path("unused"), port=0, grace_s=0.0, **settings), lambda _: made)
        )
        return servers[-1]

    yield begin
    for server in servers:
        await server.stop()


@pytest_asyncio.fixture
async def connect() -> AsyncIterator[Connect]:
    """Open sessions; their channels are closed after the test."""
    clients: list[RawClient] = []

    def begin(server: RunningServer, security: ClientSecurity = ClientSecurity(), **call: Any) -> RawClient:  # noqa: B008
        clients.append(RawClient(dial(server.address, security), **call))
        return clients[-1]

    yield begin
    for client in clients:
        await client.channel.close()
