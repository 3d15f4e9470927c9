"""A server's life: listen, load, serve, stop.

Promises that health says NOT_SERVING until the model is loaded and from the moment of stopping, that questions under
way then have `grace` seconds to be answered, and that streams end with an Error that says so before the engine goes.
Leaves calls to `service`.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from edge_server import backend as backends
from edge_server.access import Access
from edge_server.admission import Admission
from edge_server.answer import Workshop
from edge_server.backend import Backend
from edge_server.handshake import Identity
from edge_server.images import Darkroom
from edge_server.listener import Listener, Unregistered
from edge_server.request_bounds import BoundedRequests
from edge_server.service import TofcService
from edge_server.settings import ServerSettings
from shared.rpc import channel
from shared.rpc.tofc.v1 import tofc_pb2, tofc_pb2_grpc
from shared.rpc.version import software_version

log = logging.getLogger(__name__)

FAREWELL_S = 1.0  # for clients to hear why their session ended, beyond the grace for their questions

SERVICE = tofc_pb2.DESCRIPTOR.services_by_name["TofcService"].full_name


class RunningServer:
    """A server that is ready; `start` makes it. Give it back with `await stop()`."""

    def __init__(
        self,
        *,
        listener: Listener,
        grace: float,
        health_servicer: health.aio.HealthServicer,
        service: TofcService,
        access: Access,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.service = service
        self._access = asyncio.create_task(access.watch(service.keep))
        self._listener = listener
        self._grace = grace
        self._health = health_servicer
        self._pool = pool
        self._backend: Backend | None = None
        self._darkroom: Darkroom | None = None
        self._stopping: asyncio.Task[None] | None = None

    @property
    def backend(self) -> Backend:
        """What answers questions."""
        assert self._backend is not None, "start returns servers that are ready"
        return self._backend

    @property
    def port(self) -> int:
        return self._listener.port

    @property
    def address(self) -> str:
        """HOST:PORT, as a client dials it."""
        return channel.join_address(self._listener.host, self.port)

    async def serve(self, backend: Backend) -> None:
        """Opens the service with what was loaded."""
        self._backend = backend
        settings = self.service.settings
        if settings.take_images and backend.looker is not None:
            self._darkroom = Darkroom(
                looker=backend.looker, pictures=self.service.pictures, max_pixels=settings.limits.image_pixels
            )
        self.service.open(
            Identity(version=software_version(), model_id=backend.model_id, codec_id=backend.codec_id),
            Workshop(
                assembler=backend.assembler,
                engine=backend.engine,
                admission=Admission(settings.engine_parallel + settings.engine_queue),
                decode=backend.decode,
                marks=backend.marks,
                defaults=backend.defaults,
                pool=self._pool,
                picture_timeout=settings.picture_timeout,
                darkroom=self._darkroom,
            ),
            settings.limits.for_model(backend.most_views),
        )
        await self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)

    @property
    def watching(self) -> "asyncio.Task[NoReturn]":
        """Ends, with UnavailableError, only when the port was lost for good."""
        return self._listener.watching

    async def stop(self, grace: float | None = None) -> None:
        """Ends sessions, then the server, then the engine. `grace` is seconds; calling twice is harmless."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(self._grace if grace is None else grace))
        await asyncio.shield(self._stopping)

    async def _stop(self, grace: float) -> None:
        self._access.cancel()
        await self._health.enter_graceful_shutdown()
        await self.service.close(grace)
        await self._listener.stop(FAREWELL_S if grace else 0)
        if self._backend is not None:
            await self._backend.engine.stop()
        for pool in (self._pool, *([self._darkroom.pool] if self._darkroom else [])):
            pool.shutdown(wait=False, cancel_futures=True)
        log.info("stopped")


async def start(settings: ServerSettings, load: Callable[[ServerSettings], Backend] | None = None) -> RunningServer:
    """Listens, loads the model and returns when sessions are served.

    `load` makes the backend, in a worker thread; the default loads the checkpoint of the settings.
    Raises UnsafeAddressError, UnavailableError (port), CheckpointError; ValueError, OSError for files.
    """
    access = Access(settings)
    interceptors = [*access.interceptors, BoundedRequests()]
    servicer = health.aio.HealthServicer()
    await servicer.set(SERVICE, health_pb2.HealthCheckResponse.NOT_SERVING)
    service = TofcService(settings, access.tokens)

    def make() -> grpc.aio.Server:
        server = channel.make_server(interceptors)
        added: Any = Unregistered(server)
        tofc_pb2_grpc.add_TofcServiceServicer_to_server(service, added)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, added)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), added)
        return server

    listener = Listener(make, settings.host, settings.port, access.security)
    running = RunningServer(
        listener=listener,
        grace=settings.grace,
        health_servicer=servicer,
        service=service,
        access=access,
        pool=ThreadPoolExecutor(settings.threads, thread_name_prefix="tofc-worker"),
    )
    await listener.start()
    log.info("loading %s", settings.model)
    try:
        await running.serve(await asyncio.to_thread(load or backends.load, settings))
    except BaseException:
        await running.stop(0)
        raise
    return running


async def run(settings: ServerSettings, ready: Callable[[RunningServer], None]) -> None:
    """Serves until SIGTERM or SIGINT, then stops cleanly. `ready` is called once sessions are served.

    Ends the process when it is asked to stop while loading.
    """
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    starting = asyncio.create_task(start(settings))
    stopping = asyncio.create_task(asked.wait())
    try:
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            log.info("asked to stop while loading")
            starting.cancel()
            await asyncio.wait([starting])
            logging.shutdown()
            os._exit(0)  # the loading thread cannot be interrupted, Python would wait for it, and it writes nothing
        running = await starting
        ready(running)
        await asyncio.wait([stopping, running.watching], return_when=asyncio.FIRST_COMPLETED)
        lost = running.watching.exception() if running.watching.done() else None
        await running.stop(0 if lost else None)
        if lost is not None:
            raise lost
    finally:
        stopping.cancel()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
