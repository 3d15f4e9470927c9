"""Fixtures of the tests with the shipped model: a real server on 127.0.0.1 and the real device."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from device_client.encoder import TowerEncoder
from edge_server.backend import Backend
from edge_server.server import RunningServer, start
from edge_server.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "nano"
PICTURES = ROOT / "tests" / "e2e" / "pictures"

DEFAULTS: dict[str, Any] = {"model": MODEL, "port": 0, "grace_s": 0.0}


class ServerThread:
    """A server with an event loop and a thread of its own, so that it shares as little as possible with the client."""

    def __init__(self, backend: Backend | None = None, **settings: Any) -> None:
        """Start it, with nano unless there is a `backend`."""
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        made = ServerSettings(**{**DEFAULTS, **settings})
        self.running: RunningServer = self.run(start(made) if backend is None else start(made, lambda _: backend))

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    @property
    def address(self) -> str:
        return self.running.address

    def stop(self) -> None:
        self.run(self.running.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture(scope="session")
def server() -> Iterator[ServerThread]:
    """Run one server for all tests that leave it usable."""
    made = ServerThread()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def encoder() -> TowerEncoder:
    """Load the shipped tower and codec."""
    made = TowerEncoder.open(MODEL)
    made.load()
    return made


@pytest.fixture(scope="session")
def asked() -> list[dict[str, str]]:
    """Read the questions about the test pictures, with the right answers."""
    lines: list[dict[str, str]] = json.loads((PICTURES / "questions.json").read_text())
    return lines
