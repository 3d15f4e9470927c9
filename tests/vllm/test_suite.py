"""The suite of all engines against vLLM itself, behind a relay that is closed where an engine must be lost."""

from __future__ import annotations

import pytest

from benchmarks.relay import Relay
from edge_server.engine.base import Engine
from edge_server.engine.completion_request import CompletionFormat
from edge_server.engine.vllm_remote import VllmRemoteEngine, find_engines
from tests.engine.conftest import nano, start  # noqa: F401  # fixtures
from tests.engine.engines import EngineUnderTest
from tests.engine.nano import Nano
from tests.engine.remote import remote_model
from tests.engine.test_suite import *  # noqa: F403
from tests.vllm.engines import Process


class _Relayed(VllmRemoteEngine):
    """Asks vLLM through a relay, which is closed with it."""

    relay: Relay

    async def stop(self) -> None:
        await super().stop()
        await self.relay.__aexit__()


@pytest.fixture
def under_test(engines: list[Process], nano: Nano) -> EngineUnderTest:  # noqa: F811
    async def make(*, stops: bool = True, parallel: int = 16, queue: int = 64) -> Engine:
        relay = await Relay(engines[0].port).__aenter__()
        stop_tokens = sorted(nano.stop_tokens) if stops else []
        model = remote_model(form=CompletionFormat(dtype="float32", stop_tokens=stop_tokens))
        found = await find_engines([f"http://127.0.0.1:{relay.port}"], None, model)
        engine = _Relayed(found, None, model, parallel=parallel, queue=queue)
        engine.relay = relay
        return engine

    async def kill(engine: Engine) -> None:
        assert isinstance(engine, _Relayed)
        await engine.relay.__aexit__()

    return EngineUnderTest(make=make, kill=kill)
