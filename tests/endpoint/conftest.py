"""Fixtures of the endpoint's tests: the real endpoint on 127.0.0.1, in front of the real edge server with nano."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from PIL import Image

from device_client.encoder import Encoder, TowerEncoder
from device_client.endpoint.options import EndpointOptions
from device_client.endpoint.serve import HttpServer, serve
from device_client.link import Target
from device_client.picture import Encoded
from device_client.retry_policy import RetryPolicy
from device_client.session import Session
from tests.e2e.conftest import MODEL, ServerThread

WAIT_S = 120.0  # after which a test fails instead of hanging
AT_ONCE = RetryPolicy(first_s=0.01, max_s=0.02)


class EndpointThread:
    """An endpoint with an event loop and a thread of its own."""

    def __init__(
        self, edge: str, *, encoder: Encoder | None = None, session: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Start it; `encoder`: nano's by default, `session`: options of the session."""
        self.url = ""
        self.failure: BaseException | None = None
        self.session: Session | None = None
        self.towers: list[object] = []  # an entry for each view that was encoded
        self._edge = edge
        self._encoder = encoder
        self._session_options = {"retry": AT_ONCE, "log": lambda _: None, **(session or {})}
        self._options = EndpointOptions(**{"port": 0, **options})
        self._server: HttpServer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(WAIT_S)
        if self.failure is not None:
            raise self.failure

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return self.url.split("/")[2]

    def _run(self) -> None:
        async def work() -> None:
            self._loop = asyncio.get_running_loop()
            encoder = self._encoder or _counted(self.towers)
            self.session = Session(Target(address=self._edge), encoder, **self._session_options)
            await serve(self.session, self._options, MODEL, say=self._say, started=self._started)

        try:
            asyncio.run(work())
        except BaseException as error:
            self.failure = error
        finally:
            self._ready.set()

    def _say(self, line: str) -> None:
        self.url = line.removeprefix("listening on ")

    def _started(self, server: HttpServer) -> None:
        self._server = server
        self._ready.set()

    def stop(self) -> None:
        """End it, and fail if it failed."""
        if self._thread.is_alive() and self._loop is not None and self._server is not None:
            self._loop.call_soon_threadsafe(setattr, self._server, "should_exit", True)
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive() and self.failure is None, self.failure


def _counted(towers: list[object]) -> TowerEncoder:
    """Return the real encoder, which adds each view that its tower encodes to `towers`."""
    made = TowerEncoder.open(MODEL)
    encode = made.encode

    def counting(image: Image.Image) -> Iterator[Encoded]:
        for encoded in encode(image):
            towers.append(encoded)
            yield encoded

    made.encode = counting  # type: ignore[method-assign]
    return made


Begin = Callable[..., EndpointThread]


@pytest.fixture(scope="session")
def edge() -> Iterator[ServerThread]:
    """Run one edge server for all tests that leave it usable."""
    made = ServerThread()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def endpoint(edge: ServerThread) -> Iterator[EndpointThread]:
    """Run one endpoint for all tests that leave it usable."""
    made = EndpointThread(edge.address)
    yield made
    made.stop()


@pytest.fixture
def begin(edge: ServerThread) -> Iterator[Begin]:
    """Start endpoints; they are stopped after the test."""
    made: list[EndpointThread] = []

    def start(address: str = "", **options: Any) -> EndpointThread:
        made.append(EndpointThread(address or edge.address, **options))
        return made[-1]

    yield start
    for one in made:
        one.stop()


@pytest.fixture
def http(endpoint: EndpointThread) -> Iterator[httpx2.Client]:
    """Return an HTTP client of the endpoint; paths are below the host."""
    with client(endpoint) as made:
        yield made


def client(endpoint: EndpointThread) -> httpx2.Client:
    """Return an HTTP client, which uses no proxy and waits for slow machines."""
    return httpx2.Client(base_url=endpoint.url.removesuffix("/v1"), timeout=WAIT_S, trust_env=False)
