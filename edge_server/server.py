"""The life of a server: listen, load, serve, stop.

Promises that the health service reports NOT_SERVING until the model is loaded and again as soon as the server begins
to stop, that questions in progress then have `grace_s` to finish, and that every stream ends with the error STOPPING
before the engine stops. Leaves calls to `service`.
"""

from __future__ import annotations

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
from edge_server.backend import Backend
from edge_server.handshake import ServerIdentity
from edge_server.image_decoding import ImageDecodeQueue
from edge_server.listener import Listener, Unregistered
from edge_server.metrics import Metrics, Watched
from edge_server.monitoring_port import MonitoringPort
from edge_server.observer import SILENT, Observers
from edge_server.request_bounds import BoundedRequests
from edge_server.runtime import Runtime
from edge_server.service import TofcService
from edge_server.settings import ServerSettings
from edge_server.traces import Traces
from tofc.errors import UnavailableError
from tofc.model.feature_codecs import DEFAULT
from tofc.rpc import channel
from tofc.rpc.address import is_loopback, join_address
from tofc.tracing import OFF, Tracer, open_tracer
from tofc.v1 import tofc_pb2 as pb
from tofc.v1 import tofc_pb2_grpc
from tofc.version import software_version

log = logging.getLogger(__name__)

FAREWELL_S = 1.0  # after `grace_s`: for clients to read why their session ended

SERVICE = pb.DESCRIPTOR.services_by_name["TofcService"].full_name


class RunningServer:
    """A server, made by `start`, which returns it once it serves sessions. End it with `await stop()`."""

    def __init__(
        self,
        *,
        listener: Listener,
        grace_s: float,
        health_servicer: health.aio.HealthServicer,
        service: TofcService,
        access: Access,
        pool: ThreadPoolExecutor,
        tracer: Tracer,
    ) -> None:
        self.service = service
        self._tracer = tracer
        self.monitoring: MonitoringPort | None = None
        self._access_watch = asyncio.create_task(access.watch(service.end_revoked_sessions), name="access")
        self._listener = listener
        self._grace_s = grace_s
        self._health = health_servicer
        self._pool = pool
        self._backend: Backend | None = None
        self._image_decoder: ImageDecodeQueue | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._engine_lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._admission: Admission | None = None

    def open_monitoring(self, metrics: Metrics, port: int) -> None:
        """Serve metrics and probes from now on. Raises UnavailableError if the port cannot be bound."""
        self.monitoring = MonitoringPort(
            host=self.service.settings.metrics_host,
            port=port,
            registry=metrics.registry,
            read=lambda: metrics.read(self._watched()),
            live=self._not_live,
            ready=lambda: str(error) if (error := self.service.not_ready) else None,
        )
        if not is_loopback(self.service.settings.metrics_host):
            log.warning(
                "metrics on %s have neither TLS nor a token; keep this port in a private network",
                self.monitoring.address,
            )

    def _watched(self) -> Watched:
        service, settings = self.service, self.service.settings
        return Watched(
            pictures=service.pictures,
            sessions=service.sessions,
            sessions_allowed=settings.sessions,
            ready=service.not_ready is None,
            engine_up=self._backend is not None and service.engine_lost is None,
            backend=self._backend,
            admission=self._admission,
        )

    def _not_live(self) -> str | None:
        """Return why this process will never serve again; that it answers shows that its event loop turns."""
        return "the port was lost" if self._listener.watching.done() and self._stopping is None else None

    @property
    def backend(self) -> Backend:
        """What answers questions."""
        assert self._backend is not None, "start returns servers that are ready"
        return self._backend

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._listener.port

    @property
    def address(self) -> str:
        """HOST:PORT, as a client dials it."""
        return join_address(self._listener.host, self.port)

    async def serve(self, backend: Backend) -> None:
        """Start serving sessions with a loaded backend."""
        self._backend = backend
        settings = self.service.settings
        if settings.take_images and backend.view_encoder is not None:
            self._image_decoder = ImageDecodeQueue(
                encoder=backend.view_encoder,
                pictures=self.service.pictures,
                max_pixels=settings.limits.image_pixels,
                on_loss=self._on_loss,
            )
        places = min(settings.engine_parallel, backend.engine.load().running_allowed)
        self._admission = Admission(places, settings.engine_queue)
        self.service.open(
            ServerIdentity(version=software_version(), model_id=backend.model_id, codecs=backend.codecs),
            Runtime(
                backend=backend,
                admission=self._admission,
                pool=self._pool,
                picture_timeout_s=settings.picture_timeout_s,
                image_decoder=self._image_decoder,
                observer=self.service.observer,
            ),
            settings.limits.for_model(backend.max_views, backend.engine.max_positions),
        )
        served = [codec for codec in backend.codecs if codec.served]
        if len(served) > 1 or served[0].name != DEFAULT:
            log.info("codecs: %s", ", ".join(map(str, served)))
        await self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        backend.engine.watch(self._on_engine_health)

    def _on_loss(self, lost: UnavailableError) -> None:
        """End the server because the vision tower's GPU is lost for good."""
        self._on_engine_health(lost, recovers=False)

    def _on_engine_health(self, lost: UnavailableError | None, *, recovers: bool = True) -> None:
        """Report the server as not serving while its engine is lost; end it if the engine does not come back."""
        if self._stopping is not None:
            return
        log.log(logging.WARNING if lost else logging.INFO, "engine: %s", lost or "answers again")
        self.service.engine_lost = lost
        status = health_pb2.HealthCheckResponse.NOT_SERVING if lost else health_pb2.HealthCheckResponse.SERVING
        task = asyncio.create_task(self._health.set(SERVICE, status))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        recovers = recovers and self.backend.engine.recovers
        if lost is not None and not recovers and not self._engine_lost.done():
            self._engine_lost.set_exception(lost)

    @property
    def watching_engine(self) -> asyncio.Future[None]:
        """Ends only with UnavailableError: the engine was lost and does not come back."""
        return self._engine_lost

    @property
    def watching(self) -> asyncio.Task[NoReturn]:
        """The task that watches the port. It ends only with UnavailableError: the port cannot be bound again."""
        return self._listener.watching

    @property
    def watching_access(self) -> asyncio.Task[NoReturn]:
        """The task that watches the tokens. It ends only by a defect; revoked tokens would then stay valid."""
        return self._access_watch

    async def stop(self, grace_s: float | None = None) -> None:
        """End the sessions, then the server, then the engine; calling it twice is harmless."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(self._grace_s if grace_s is None else grace_s))
        await asyncio.shield(self._stopping)

    async def _stop(self, grace_s: float) -> None:
        self._access_watch.cancel()
        self._engine_lost.cancel()
        await self._health.enter_graceful_shutdown()
        await self.service.close(grace_s)
        await self._listener.stop(FAREWELL_S if grace_s else 0)
        if self._backend is not None:
            await self._backend.engine.stop()
        for pool in (self._pool, *([self._image_decoder.pool] if self._image_decoder else [])):
            pool.shutdown(wait=False, cancel_futures=True)
        if self.monitoring is not None:  # last: while the server drains, /readyz says so
            await asyncio.to_thread(self.monitoring.stop)
        await asyncio.to_thread(self._tracer.close)
        log.info("stopped")


async def start(settings: ServerSettings, load: Callable[[ServerSettings], Backend] | None = None) -> RunningServer:
    """Listen, load the model, and return once sessions are served.

    `load` makes the backend, in a worker thread; the default loads the checkpoint of the settings.
    Raises UsageError (SecurityError, CheckpointError), UnavailableError for the port, OSError for files.
    """
    access = Access(settings)
    interceptors = [*access.interceptors, BoundedRequests()]
    servicer = health.aio.HealthServicer()
    await servicer.set(SERVICE, health_pb2.HealthCheckResponse.NOT_SERVING)
    metrics = Metrics(software_version()) if settings.metrics_port is not None else None
    tracer = open_tracer("edge-server", wanted=settings.trace, warn=log.warning)
    observers = [*([metrics] if metrics else []), *([Traces(tracer)] if tracer is not OFF else [])]
    service = TofcService(settings, access.tokens, Observers(observers) if observers else SILENT)

    def make() -> grpc.aio.Server:
        server = channel.make_server(interceptors)
        registrar: Any = Unregistered(server)
        tofc_pb2_grpc.add_TofcServiceServicer_to_server(service, registrar)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, registrar)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), registrar)
        return server

    listener = Listener(make, settings.host, settings.port, access.security)
    running = RunningServer(
        listener=listener,
        grace_s=settings.grace_s,
        health_servicer=servicer,
        service=service,
        access=access,
        pool=ThreadPoolExecutor(settings.threads, thread_name_prefix="tofc-worker"),
        tracer=tracer,
    )
    await listener.start()
    log.info("loading %s", settings.model)
    try:
        if metrics is not None and settings.metrics_port is not None:
            running.open_monitoring(metrics, settings.metrics_port)
        await running.serve(await asyncio.to_thread(load or backends.load, settings))
    except BaseException:
        await running.stop(0)
        raise
    return running


async def run(settings: ServerSettings, ready: Callable[[RunningServer], None]) -> None:
    """Serve until SIGTERM or SIGINT, then stop cleanly. `ready` is called once sessions are served.

    A signal while the model is still loading ends the process at once.
    """
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled.set)
    starting = asyncio.create_task(start(settings))
    stopping = asyncio.create_task(signalled.wait())
    try:
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            log.info("asked to stop while loading")
            starting.cancel()
            await asyncio.wait([starting])
            logging.shutdown()
            # Python would wait for the loading thread, which cannot be interrupted. That thread writes no files.
            os._exit(0)
        running = await starting
        ready(running)
        watches: list[asyncio.Future[Any]] = [running.watching, running.watching_access, running.watching_engine]
        await asyncio.wait([stopping, *watches], return_when=asyncio.FIRST_COMPLETED)
        failed = [error for watch in watches if watch.done() and (error := watch.exception())]
        await running.stop(0 if failed else None)
        if failed:
            raise failed[0]
    finally:
        stopping.cancel()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
