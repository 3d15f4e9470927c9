"""Runs the endpoint until it is stopped: the session with the edge server, and uvicorn on the port.

Promises that the model begins to load and the edge server is called at once, that the address is printed when requests
are taken, and that answers which run when it is stopped have a few seconds to end. Leaves requests to `app`.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import uvicorn
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from device_client.endpoint.access import Access, CloseWithoutKey
from device_client.endpoint.app import Endpoint
from device_client.endpoint.body import BodyReader
from device_client.endpoint.described import TEMPLATE, Described
from device_client.endpoint.options import MIB, EndpointOptions
from device_client.endpoint.pictures import KeptPictures
from device_client.endpoint.protocol import TimedProtocol
from device_client.endpoint.run import Defaults
from device_client.endpoint.slots import Slots
from device_client.session import Session
from tofc.errors import Error, UsageError
from tofc.rpc.address import join_address
from tofc.rpc.tokens import Token

GRACE_S = 5  # for answers that run when the endpoint is stopped
KEEP_ALIVE_S = 75  # longer than clients keep a connection without using it: else a request meets one that closes
CONNECTIONS = 4  # for each request that may be answered


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: `serve` ends it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: uvicorn would raise the signal again after it has ended."""
        yield


def make_endpoint(session: Session, options: EndpointOptions, model: Path) -> Endpoint:
    """Return the endpoint of a session."""
    template = model / TEMPLATE
    described = Described(
        name=options.served_model or model.resolve().name,
        template=template.read_text(encoding="utf-8", errors="replace") if template.is_file() else "",
    )
    body_bytes = options.body_mib * MIB
    return Endpoint(
        session,
        described,
        pictures=KeptPictures(
            session.encoder.open,
            kept_bytes=options.keep_mib * MIB,
            picture_bytes=body_bytes,
            domains=options.domains,
        ),
        bodies=BodyReader(body_bytes, options.body_timeout_s),
        slots=Slots(options.requests),
        defaults=Defaults(
            timeout_s=options.timeout_s or None,
            thinking_budget=options.thinking_budget,
            include_thinking=not options.hide_thinking,
        ),
        order=options.order,
    )


def guarded(app: ASGIApp, options: EndpointOptions, keys: tuple[Token, ...]) -> ASGIApp:
    """Return the application behind access control."""
    guarded: ASGIApp = Access(app, keys=keys, origins=options.allow_origin, local=options.local)
    if options.allow_origin:
        guarded = CORSMiddleware(
            guarded, allow_origins=options.allow_origin, allow_methods=["GET", "POST"], allow_headers=["*"], max_age=600
        )
    return CloseWithoutKey(guarded, keys=keys)


async def serve(
    session: Session,
    options: EndpointOptions,
    model: Path,
    *,
    say: Callable[[str], None],
    started: Callable[[HttpServer], None] = lambda _: None,
) -> None:
    """Serve until a signal (SIGINT, SIGTERM) comes. `say` gets the address; `started` the server, before it serves.

    Raises UsageError for a port that cannot be bound, and what `EndpointOptions.keys` raises.
    """
    keys = tuple(options.keys())
    endpoint = make_endpoint(session, options, model)
    listening = _bind(options)
    config = uvicorn.Config(
        guarded(endpoint.app(), options, keys),
        http=TimedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=options.requests * CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
        ssl_certfile=options.endpoint_cert,
        ssl_keyfile=options.endpoint_key,
    )
    server = HttpServer(config)
    async with session:
        session.encoder.start()
        connecting = asyncio.create_task(_connect(endpoint))
        with listening, _stopped_by_signals(server):
            scheme = "http" if options.endpoint_cert is None else "https"
            address = join_address(*listening.getsockname()[:2])
            say(f"listening on {scheme}://{address}/v1")
            started(server)
            await server.serve(sockets=[listening])
        connecting.cancel()
        with suppress(asyncio.CancelledError):
            await connecting


async def _connect(endpoint: Endpoint) -> None:
    """Open the session before the first request needs it; if that fails, the first request does."""
    with suppress(Error):
        await endpoint.connect()


def _bind(options: EndpointOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host.strip("[]"), options.port), family=family, backlog=1024)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {join_address(options.host, options.port)} ({error.strerror or error}); give another "
            "--port or --host"
        ) from error


@contextmanager
def _stopped_by_signals(server: HttpServer) -> Iterator[None]:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        server.force_exit = server.should_exit  # the second signal does not wait for answers
        server.should_exit = True

    handled = []
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(ValueError, RuntimeError, NotImplementedError):  # not in the main thread
            loop.add_signal_handler(number, stop)
            handled.append(number)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
