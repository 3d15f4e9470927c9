"""The shipped model behind a real server, and clients as a program makes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import MODEL, ServerThread
from tofc import Client

EXAMPLE = MODEL / "example.jpg"  # a dog, two cats, a rocket and a sign with 42
SIGN, DOG = "what number is on the sign?", "is there a dog?"


@pytest.fixture(scope="session")
def server() -> Iterator[ServerThread]:
    made = ServerThread()
    yield made
    made.stop()


@pytest.fixture
def edge(server: ServerThread) -> Iterator[Client]:
    with Client(server.address) as made:
        yield made


@pytest.fixture
def example() -> Path:
    return EXAMPLE
