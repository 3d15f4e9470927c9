"""The port for whoever runs the server: /metrics for Prometheus, /livez and /readyz for an orchestrator.

    GET /metrics ─┐                       ┌─ in the event loop: read gauges
    GET /livez   ─┼─ a thread ─ asks, and waits at most LOOP_S ─┼─ is the port of devices still bound?
    GET /readyz  ─┘                       └─ is a model loaded, its engine alive, nothing draining?

Promises an answer even when the event loop hangs: then it is 503 with that reason, because a server whose loop does not
turn serves nobody. The port speaks plain HTTP without a token and shows no question, picture or client. Leaves what is
measured to `metrics`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from tofc.errors import UnavailableError
from tofc.rpc.address import join_address

log = logging.getLogger(__name__)

LOOP_S = 2.0  # within which the event loop must answer; a busy one takes milliseconds
READ_S = 5.0  # within which a request must arrive, so that an idle connection does not keep its thread

Problem = Callable[[], str | None]


class MonitoringPort:
    """Serves the three paths until `stop`. `live` and `ready` return what is wrong, in the event loop."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        registry: CollectorRegistry,
        read: Callable[[], None],
        live: Problem,
        ready: Problem,
    ) -> None:
        """Bind the port (0: any free one) and answer requests. `read` sets the gauges. Raises UnavailableError."""
        self._loop = asyncio.get_running_loop()
        self._read = read
        self._metrics: WSGIApplication = make_wsgi_app(registry)
        self._problems = {"/livez": live, "/readyz": ready}
        kind = _Server6 if ":" in host else _Server
        try:
            self._server = kind((host, port), _Handler)
        except OSError as error:
            raise UnavailableError(
                f"cannot listen on {join_address(host, port)} for metrics ({error.strerror or error}); give another "
                "--metrics-port or --metrics-host, or leave them out",
                reason="CANNOT_LISTEN",
            ) from error
        self._server.set_app(self._answer)
        self.address = join_address(host, int(self._server.server_address[1]))
        self._thread = threading.Thread(target=self._server.serve_forever, name="tofc-monitoring", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and free the port. Blocks up to half a second: call it in a worker thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")

        def reply(status: str, text: str) -> Iterable[bytes]:
            start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
            return [f"{text}\n".encode()]

        if path != "/metrics" and path not in self._problems:
            return reply("404 Not Found", "this port has /metrics, /livez and /readyz")
        try:
            problem = self._in_loop(self._problems.get(path, self._read))
        except TimeoutError:
            problem = f"the event loop did not answer within {LOOP_S:g} s"
        if problem is not None:
            return reply("503 Service Unavailable", problem)
        return self._metrics(environ, start_response) if path == "/metrics" else reply("200 OK", "ok")

    def _in_loop(self, call: Callable[[], str | None]) -> str | None:
        answer: Future[str | None] = Future()

        def ask() -> None:
            try:
                answer.set_result(call())
            except Exception as error:
                answer.set_exception(error)

        self._loop.call_soon_threadsafe(ask)
        return answer.result(LOOP_S)


class _Handler(WSGIRequestHandler):
    timeout = READ_S

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("%s: %s", self.address_string(), format % args)


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Bind without looking up the host's name, which takes seconds where no name server answers."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what a client's broken connection causes, instead of a traceback on stderr."""
        log.debug("a request for metrics failed", exc_info=True)


class _Server6(_Server):
    address_family = socket.AF_INET6
