"""nano's prompts, and the engine that a test of the suite runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from edge_server.engine.base import Engine
from tests.engine.engines import ENGINES, EngineUnderTest
from tests.engine.nano import Nano, load_nano

Start = Callable[..., Awaitable[Engine]]


@pytest.fixture(scope="session")
def nano() -> Nano:
    return load_nano()


@pytest.fixture(params=ENGINES)
def under_test(request: pytest.FixtureRequest, nano: Nano) -> EngineUnderTest:
    """Each engine of the suite in turn."""
    return ENGINES[request.param](nano)


@pytest_asyncio.fixture
async def start(under_test: EngineUnderTest) -> AsyncIterator[Start]:
    """Make engines under test; they are stopped after it."""
    engines: list[Engine] = []

    async def begin(**settings: Any) -> Engine:
        engines.append(await under_test.make(**settings))
        return engines[-1]

    yield begin
    for engine in engines:
        await engine.stop()
