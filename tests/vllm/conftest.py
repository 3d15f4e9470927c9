"""Tests that need vLLM, which `make test-vllm` installs into an environment of its own.

Nothing here is collected elsewhere: vLLM takes gigabytes, and a minute of both cores to start.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from edge_server.engine.vllm_remote import VllmRemoteEngine, find_engines
from tests.engine.remote import remote_model
from tests.vllm.engines import Process, Remote, engine
from tofc.model.shipped import NANO
from tofc_lab.checkpoint.split import split

HERE = Path(__file__).parent
collect_ignore = [] if importlib.util.find_spec("vllm") else [file.name for file in HERE.glob("test_*.py")]


@pytest.fixture(scope="session")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return split(NANO, tmp_path_factory.mktemp("nano")).server


@pytest.fixture(scope="session")
def started(half: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Process]]:
    """Two engines, which tests may kill."""
    logs = tmp_path_factory.mktemp("logs")
    engines = [engine(half, logs / f"engine{number}.log") for number in range(2)]
    for one in engines:
        one.start()
    yield engines
    for one in engines:
        one.kill()


@pytest_asyncio.fixture
async def engines(started: list[Process]) -> AsyncIterator[list[Process]]:
    for one in started:
        if not one.lives:
            one.start()
    for one in started:
        await one.ready()
    yield started


@pytest_asyncio.fixture
async def remote() -> AsyncIterator[Remote]:
    """Ask engines; the asking ends with the test."""
    found: list[VllmRemoteEngine] = []

    async def begin(*urls: str, **changed: Any) -> VllmRemoteEngine:
        model = remote_model(**changed)
        engines = await find_engines(urls, None, model)
        found.append(VllmRemoteEngine(engines, None, model, parallel=64, queue=64))
        return found[-1]

    yield begin
    for one in found:
        await one.stop()
