"""The port, served by a gRPC server, and by a new one when the old one has stopped accepting calls.

gRPC's accept loop ends for good at a call that it cannot decode (a path that is not UTF-8, even without a token): it
closes its listener and reports nothing while a session is open. Promises that the port is bound again within a second,
or that `watching` ends with an error; open sessions continue on the server that accepted them. Leaves what is served to
`server`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import grpc
import grpc.aio

from tofc.errors import UnavailableError
from tofc.rpc import channel
from tofc.rpc.address import join_address
from tofc.rpc.security import ServerSecurity

log = logging.getLogger(__name__)

WATCH_S = 0.25  # between two checks of the port; each is one attempt to bind it


class Unregistered:
    """Wraps a gRPC server so that added services do not register their methods, which are then found by name.

    gRPC waits for each registered method separately; when its accept loop ends, it frees the memory of those waits and
    writes to it afterwards, which crashes the process.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Add the handlers, which gRPC asks by a method's name."""
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Do nothing."""


class Listener:
    """Keeps a port served. `make` builds a gRPC server with its services and without a port."""

    def __init__(self, make: Callable[[], grpc.aio.Server], host: str, port: int, security: ServerSecurity) -> None:
        """Bind the port (0: any free one). Raises SecurityError, UnavailableError."""
        self._make = make
        self._security = security
        self._server = make()
        self.watching: asyncio.Task[NoReturn]
        self._draining: set[asyncio.Task[None]] = set()  # servers that accept no calls but have open sessions
        self._grace_s: asyncio.Future[float] = asyncio.get_running_loop().create_future()  # set when all stop
        self.host = host
        self.port = channel.bind(self._server, host, port, security)

    async def start(self) -> None:
        """Accept calls. `watching` ends, with UnavailableError, only if the port cannot be bound again."""
        await self._server.start()
        self.watching = asyncio.create_task(self._watch())

    async def stop(self, grace_s: float) -> None:
        """End every call after `grace_s` at most."""
        self.watching.cancel()
        self._grace_s.set_result(grace_s)
        await asyncio.gather(self._server.stop(grace_s), *self._draining)

    async def _watch(self) -> NoReturn:
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                free = await asyncio.to_thread(channel.is_port_free, self.host, self.port)
            except OSError:  # no file descriptor is left to check with, which says nothing about the port
                continue
            if free:
                await self._bind_again()

    async def _bind_again(self) -> None:
        log.error("nothing listens on %s any more; listening again", join_address(self.host, self.port))
        ended, server = self._server, self._make()
        try:
            channel.bind(server, self.host, self.port, self._security)
        except UnavailableError as error:
            raise UnavailableError(f"the port was lost: {error.message}", reason="PORT_LOST") from None
        await server.start()
        self._server = server
        draining = asyncio.create_task(self._drain(ended))
        self._draining.add(draining)
        draining.add_done_callback(self._draining.discard)

    async def _drain(self, server: grpc.aio.Server) -> None:
        """Wait for the last session of a server whose accept loop has ended; then stop that server.

        gRPC crashes if a server is garbage-collected without being stopped, or is stopped twice at the same time.
        Cancelling a wait for its termination would cancel the future that reports the termination.
        """
        ending: asyncio.Future[Any] = asyncio.ensure_future(server.wait_for_termination())
        await asyncio.wait({ending, self._grace_s}, return_when=asyncio.FIRST_COMPLETED)
        await server.stop(self._grace_s.result() if self._grace_s.done() else None)
        with contextlib.suppress(Exception):  # what ended the accept loop; gRPC has logged it
            await ending
