"""The port: served by a gRPC server, and by another one when that has stopped accepting calls.

gRPC's accept loop ends for good at a call it cannot decode (a path that is not UTF-8, without any token): it closes
its listener and says so to nobody while a session is open. Promises that the port is bound again within a second,
or that `watching` ends with an error; sessions that are open continue on the server that accepted them. Leaves what
is served to `server`.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import grpc
import grpc.aio

from shared.rpc import channel
from shared.rpc.channel import ServerSecurity
from shared.rpc.errors import UnavailableError

log = logging.getLogger(__name__)

WATCH_S = 0.25  # between two looks at the port; each is one attempt to bind it


class Unregistered:
    """A gRPC server as services see it that are added to it; their methods are found by name alone.

    For each method that is registered, too, gRPC waits apart. When its accept loop ends, it frees what it waits with,
    and then writes there: the process crashes.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Nothing."""


class Listener:
    """`make` builds a gRPC server with its services and without a port."""

    def __init__(self, make: Callable[[], grpc.aio.Server], host: str, port: int, security: ServerSecurity) -> None:
        """Binds the port (0: any free one). Raises UnsafeAddressError, UnavailableError."""
        self._make = make
        self._security = security
        self._server = make()
        self.watching: asyncio.Task[NoReturn]
        self._draining: set[asyncio.Task[None]] = set()  # servers that accept nothing, but have open sessions
        self._grace: asyncio.Future[float] = asyncio.get_running_loop().create_future()  # set when all stop
        self.host = host
        self.port = channel.bind(self._server, host, port, security)

    async def start(self) -> None:
        """Accept calls. `watching` ends, with UnavailableError, only where the port cannot be bound again."""
        await self._server.start()
        self.watching = asyncio.create_task(self._watch())

    async def stop(self, grace: float) -> None:
        """End every call after `grace` seconds at most."""
        self.watching.cancel()
        self._grace.set_result(grace)
        await asyncio.gather(self._server.stop(grace), *self._draining)

    async def _watch(self) -> NoReturn:
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                free = await asyncio.to_thread(channel.is_free, self.host, self.port)
            except OSError:  # strangers hold every file descriptor: that says nothing about the port
                continue
            if free:
                await self._bind_again()

    async def _bind_again(self) -> None:
        log.error("nothing listens on %s any more; listening again", channel.join_address(self.host, self.port))
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
        """Until the last session of a server has ended whose accept loop is dead; then free it.

        gRPC crashes where a server is collected that was not stopped, or is stopped twice at a time; and to cancel a
        wait for its end would cancel what tells that end.
        """
        ending: asyncio.Future[Any] = asyncio.ensure_future(server.wait_for_termination())
        await asyncio.wait({ending, self._grace}, return_when=asyncio.FIRST_COMPLETED)
        await server.stop(self._grace.result() if self._grace.done() else None)
        with contextlib.suppress(Exception):  # what ended the accept loop; gRPC has logged it
            await ending
