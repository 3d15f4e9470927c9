"""Tests that need vLLM, which `make test-vllm` installs into an environment of its own.

Nothing here is collected elsewhere: vLLM takes gigabytes, and a minute of both cores to start.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.vllm.engines import Process, engine
from tofc.model.shipped import NANO
from tofc_lab.checkpoint.split import split

HERE = Path(__file__).parent
collect_ignore = [] if importlib.util.find_spec("vllm") else [file.name for file in HERE.glob("test_*.py")]


@pytest.fixture(scope="session")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return split(NANO, tmp_path_factory.mktemp("nano")).server


@pytest.fixture(scope="session")
def started(half: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Process]]:
    """Two engines, the second of which may be killed by the last test."""
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
